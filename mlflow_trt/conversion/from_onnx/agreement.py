"""Whether the graph that TensorRT was given answers as the original, by ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path

from ...errors import ConverterError
from ...plan.files import GoldenTensors
from ...plan.manifest import Tolerance
from ...plan.parity import compare
from .. import onnx_runtime
from .graphs import nodes
from .kinds import QUANTIZERS

_logger = logging.getLogger(__name__)

_ROUNDING = {"fp16": 3e-2, "bf16": 1e-1}
"""Relative L2 error of rounded weights, which some networks multiply; sums are float32 here."""
_ROUNDING_OF_FLOAT32 = 1e-3
_ROUNDING_OF_QUANTIZED = 5e-2
"""A value half way between two steps of a quantizer may go to either."""


def check(path: Path, golden: GoldenTensors, precision: str | None) -> None:
    """Compares the graph of a file with the original at every golden point.

    Args:
        path: The graph, its weights beside it.
        golden: What the original answers.
        precision: What the graph was cast to.

    Raises:
        ConverterError: It answers otherwise.
    """
    import onnx

    quantized = any(node.op_type in QUANTIZERS for node in nodes(onnx.load(str(path), load_external_data=False)))
    rel = max(_ROUNDING.get(precision or "", _ROUNDING_OF_FLOAT32), _ROUNDING_OF_QUANTIZED if quantized else 0.0)
    try:
        session = onnx_runtime.widened_session(path)
    except onnx_runtime.NotThereError as error:
        _logger.warning("ONNX Runtime can't compute the graph as it was cast, so it was not compared: %s", error)
        return
    except Exception as error:
        raise _refused(f"is not valid: {onnx_runtime.words(error)}") from error
    names = [o.name for o in session.get_outputs()]
    for profile, point, asked, answered in golden.points():
        where = f"{point} of profile {profile}"
        try:
            got = session.run(names, {i.name: asked[i.name] for i in session.get_inputs()})
        except Exception as error:
            raise _refused(f"fails at {where}: {onnx_runtime.words(error)}") from error
        results = {name: value.astype(answered[name].dtype) for name, value in zip(names, got)}
        for figures in compare(answered, results, Tolerance(rel_l2=rel, cosine=-1.0)):
            if not figures.passed and figures.rel_l2 > rel:
                raise _refused(
                    f"answers otherwise than the original at {where}: {figures.output}: rel L2 {figures.rel_l2:.2g}"
                )


def _refused(what: str) -> ConverterError:
    return ConverterError(
        f"The graph as it was cast for the engine {what}",
        "a graph that answers as the original does",
        "ask for another precision (bf16 has float32's range), or precision=None for the graph's own dtypes",
    )
