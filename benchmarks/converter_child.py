"""What :mod:`benchmarks.converters` does in a process of its own: one conversion, or the engines of one network.

    python -m benchmarks.converter_child save NAME PRECISION CONVERTER FOLDER
    python -m benchmarks.converter_child time NAME SECONDS FOLDER FOLDER

Its last line of output is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .coverage import words
from .logging_cost import seconds_of
from .timing import Rounds, interleave

if TYPE_CHECKING:
    import numpy as np

    from mlflow_trt import Engine

    from .architectures import Architecture

BATCHES = (1, 8)
"""That engines are timed with; the second is the opt and the largest size."""


def made(name: str) -> Architecture:
    """The architecture of a name: at a real size, or as LIBRARY/ARCHITECTURE one of the small ones."""
    from . import architectures, real_sizes

    return real_sizes.make(name) if name in real_sizes.NETWORKS else architectures.make(name)


def save(name: str, precision: str, converter: str, folder: Path) -> dict[str, Any]:
    """Saves an architecture as a user would.

    Returns:
        Its outcome; ``seconds``: ``save_model`` less what measuring on a GPU takes, which is no converter's;
        ``rel_l2``: the largest relative error against PyTorch that was recorded, or ``parity``: why there is none.
    """
    import mlflow_trt
    from mlflow_trt.errors import ParityError, TrtError
    from mlflow_trt.evidence import recorded

    architecture = made(name)
    batch = (BATCHES[0], BATCHES[1], BATCHES[1])
    inputs = {key: mlflow_trt.Input((batch, *shape), dtype) for key, shape, dtype in architecture.inputs}
    with seconds_of(recorded, "measure") as measuring:
        begin = time.perf_counter()
        try:
            mlflow_trt.save_model(
                architecture.module, folder, kwarg_inputs=inputs, precision=None if precision == "own" else precision,
                converter=converter,
            )  # fmt: skip
        except ParityError as error:
            return {"outcome": "wrong", "why": words(error)}
        except TrtError as error:
            return {"outcome": "refused", "why": words(error)}
        except Exception as error:
            return {"outcome": "failed", "why": f"{type(error).__name__}: {words(error)}"}
        seconds = time.perf_counter() - begin - sum(measuring)
    parity = mlflow_trt.inspect(folder).plans[0].parity
    found: dict[str, Any] = {"outcome": "saved", "seconds": seconds}
    if parity.status == "not_measured":
        return {**found, "parity": parity.reason}
    return {**found, "rel_l2": max(output.rel_l2 for point in parity.points for output in point.outputs)}


def time_engines(name: str, folders: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    """Times ``predict`` of saved models in turn.

    Args:
        name: The architecture, for its inputs.
        folders: By converter, what it saved.
        seconds: After which no new round begins.

    Returns:
        ``batches``: by batch size, the rounds of each converter; or ``why``: what keeps an engine from answering here.
        The reference backend is no engine.
    """
    import mlflow_trt

    for converter, folder in folders.items():
        if not mlflow_trt.check(folder).accepted:
            return {"why": f"the engine by {converter} does not load on this machine"}
    engines = {converter: mlflow_trt.load_model(folder) for converter, folder in folders.items()}
    architecture = made(name)
    end = time.monotonic() + seconds
    share = seconds / len(BATCHES)
    batches = {}
    for left, batch in enumerate(BATCHES[::-1]):
        batches[str(batch)] = in_turn(engines, arrays(architecture, batch), end - share * (len(BATCHES) - 1 - left))
    return {"batches": batches}


def arrays(architecture: Architecture, batch: int) -> dict[str, np.ndarray]:
    """Inputs of an architecture."""
    import torch

    example = architecture.example(batch, torch.Generator().manual_seed(batch))
    return {name: tensor.numpy() for name, tensor in example.items()}


def in_turn(
    engines: Mapping[str, Engine], inputs: Mapping[str, np.ndarray], deadline: float, rounds: int = 20, calls: int = 20
) -> dict[str, Rounds]:
    """Times what each engine takes for the same inputs, its kernels compiled before."""
    from .predicting import warm

    ways = {converter: (lambda engine=engine: engine.predict(inputs)) for converter, engine in engines.items()}
    warm(*ways.values())
    return interleave(ways, rounds=rounds, calls=calls, deadline=deadline)


def main(arguments: list[str]) -> None:
    """Does what it is told, prints what came of it, and ends the process."""
    warnings.filterwarnings("ignore")
    what, name, *rest = arguments
    try:
        if what == "save":
            found = save(name, rest[0], rest[1], Path(rest[2]))
        else:
            found = time_engines(name, {Path(folder).name: Path(folder) for folder in rest[1:]}, float(rest[0]))
    except ImportError as error:
        found = {"outcome": "not measured", "why": str(error)}
    print(f"\n{json.dumps(found)}", flush=True)
    # TensorRT and CUDA may crash while an interpreter is torn down; what was found is told already.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
