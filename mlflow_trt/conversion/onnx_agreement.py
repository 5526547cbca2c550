"""Whether an ONNX graph answers as the model does, by ONNX Runtime on the CPU.

Half precision is computed in float32 there, from the graph's own rounded weights: ONNX Runtime has few kernels for it,
and what then differs is the graph, not rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from .._torch import pytree
from ..errors import ConverterError
from ..plan.files import GoldenTensors
from . import onnx_runtime
from .agreement import differs, rounding
from .job import Job
from .operators import QUANTIZERS, operator_name
from .program import module_of

_logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)
_ROUNDING = 1e-3
"""Relative L2 error of float32 by other kernels, as between a module and its program."""
_ROUNDING_OF_FP8 = 5e-2
"""A value half way between two steps of a quantizer may go to either: a step is a sixteenth."""


def check(path: Path, program: ExportedProgram, job: Job, golden: GoldenTensors, names: Sequence[str]) -> None:
    """Compares the graph of a file with the model at every golden point.

    Args:
        path: The graph, its weights beside it.
        program: What it was exported from.
        job: What its inputs and outputs are called.
        golden: What the model answers.
        names: What its outputs are called there.

    Raises:
        ConverterError: It is no valid graph, fails where the model answers, or answers otherwise.
    """
    try:
        session = onnx_runtime.widened_session(path)
    except onnx_runtime.NotThereError as error:
        _logger.warning("ONNX Runtime can't compute the model's ONNX graph, so it was not compared: %s", error)
        return
    except Exception as error:
        raise _refused(f"is not valid: {onnx_runtime.words(error)}") from error
    half = any(t in _HALF for t in _dtypes(program))
    quantized = any(operator_name(node) in QUANTIZERS for node in program.graph.nodes)
    least = _ROUNDING_OF_FP8 if quantized else _ROUNDING
    for profile, point, inputs, outputs in golden.points():
        where = f"{point} of profile {profile}"
        fed = {spec.name: inputs[spec.name] for spec in job.inputs}
        try:
            got = session.run(list(job.outputs), {i.name: fed[i.name] for i in session.get_inputs()})
        except Exception as error:
            raise _refused(f"fails at {where}: {onnx_runtime.words(error)}") from error
        wanted = [outputs[name] for name in names]
        what = _differs(wanted, got, names, max(rounding(program), least))
        if what is not None and half:
            # Rounding adds up in some networks: then it is the program itself that says what the graph should answer.
            what = _differs(_answered(program, list(fed.values())), got, names, least)
        if what is not None:
            raise _refused(f"answers otherwise than the model at {where}: {what}")


def _refused(what: str) -> ConverterError:
    return ConverterError(
        f"The model's ONNX graph {what}",
        "a graph that answers as the model does",
        "another release of torch or onnxscript may export it rightly; converter='torch_tensorrt' goes without ONNX",
    )


def _differs(wanted: Sequence[Any], got: Sequence[Any], names: Sequence[str], rel: float) -> str | None:
    pairs = [(np.asarray(w), np.asarray(g)) for w, g in zip(wanted, got)]
    return differs(
        [torch.from_numpy(w.copy()) for w, _ in pairs],
        [torch.from_numpy(g.astype(w.dtype)) for w, g in pairs],
        dict(enumerate(names)),
        lambda tensor: tensor.numpy(),
        rel,
    )


def _dtypes(program: ExportedProgram) -> set[torch.dtype]:
    values = (v for node in program.graph.nodes for v in pytree.tree_leaves(node.meta.get("val")))
    return {value.dtype for value in values if isinstance(value, torch.Tensor)}


class _Widened(torch.fx.Interpreter):
    """Runs a program with float32 in place of half precision."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(_wide, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _wide(super().get_attr(target, args, kwargs))


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _HALF:
        return value.float()
    return torch.float32 if value in _HALF else value


def _answered(program: ExportedProgram, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    module = module_of(program)
    assert isinstance(module, torch.fx.GraphModule)
    with torch.no_grad():
        answered = _Widened(module).run(*(torch.from_numpy(array.copy()) for array in arrays))
    return [np.asarray(v) for v in pytree.tree_leaves(answered)]
