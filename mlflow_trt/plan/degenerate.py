"""Answers of a model that no engine can be judged by: zero, not finite, beyond a precision, the same for every row.

Numpy only. A network without its trained weights answers so, and so does one that is fed noise. The comparison then
fails for no fault of the engine's, or passes for no merit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .files import GoldenTensors

LARGEST, SMALLEST, SMALLEST_NORMAL = 65504.0, 2.0**-24, 2.0**-14
"""Of float16: 65504, 6e-8 and, below which digits are lost, 6.1e-5."""

Arrays = Mapping[str, np.ndarray]

START = "The model's own answer"
"""How each reason begins."""

REMEDY = "give golden_inputs= with real inputs, and convert the model with its trained weights"


def reasons(golden: GoldenTensors, precision: str | None) -> list[str]:
    """Says of each of the model's outputs what makes it unfit for a comparison.

    Integer and boolean outputs are never so: a classifier may well answer the same class for every row.

    Args:
        golden: Inputs and the model's answers.
        precision: What the engine computes in, as :func:`mlflow_trt.convert` takes it.

    Returns:
        One sentence for each such output; none if all are fit.
    """
    points = list(golden.points())
    names = dict.fromkeys(name for *_, outputs in points for name in outputs)
    return [reason for name in names if (reason := _reason(name, points, precision)) is not None]


def _reason(name: str, points: Sequence[tuple[int, str, Arrays, Arrays]], precision: str | None) -> str | None:
    answers = [(f"{p}.{point}", inputs, outputs[name]) for p, point, inputs, outputs in points if name in outputs]
    answers = [(where, inputs, array) for where, inputs, array in answers if array.dtype.kind == "f" and array.size]
    for where, _, array in answers:
        if broken := int(np.sum(~np.isfinite(array))):
            kind = "NaN" if np.isnan(array).any() else "infinite"
            return f"{START} {name} holds {broken} of {array.size} entries that are {kind} (at {where})."
    if not answers:
        return None
    largest = max(float(np.abs(array.astype(np.float64)).max()) for _, _, array in answers)
    if largest == 0.0:
        return f"{START} {name} is zero throughout, at every point."
    if precision == "fp16" and largest > LARGEST:
        return f"{START} {name} reaches {largest:.3g}, and float16 ends at 65504."
    if precision == "fp16" and largest < SMALLEST_NORMAL:
        what = "float16 holds nothing below 6e-08" if largest < SMALLEST else "float16 loses digits below 6.1e-05"
        return f"{START} {name} is at most {largest:.3g} in magnitude: {what}."
    if _same_rows(answers):
        return f"{START} {name} is the same for every row, though the rows of the inputs differ."
    return None


def _same_rows(answers: Iterable[tuple[str, Arrays, np.ndarray]]) -> bool:
    """Whether the rows of an output are equal at every point where those of an input differ."""
    compared = False
    for _, inputs, array in answers:
        rows = array.shape[0] if array.ndim else 0
        if rows < 2 or not any(_differ(value) for value in inputs.values() if value.ndim and value.shape[0] == rows):
            continue
        if _differ(array):
            return False
        compared = True
    return compared


def _differ(array: np.ndarray) -> bool:
    if array.dtype.kind != "f":
        return bool((array[1:] != array[:1]).any())
    first = array[:1].astype(np.float64)
    return bool((np.abs(array.astype(np.float64) - first) > 1e-6 * np.abs(first).max(initial=0.0)).any())
