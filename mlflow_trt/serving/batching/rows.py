"""The rows of a batch: how many an engine is called with, how requests become one, and whether that changes answers.

Pure functions of arrays and manifests, but for :func:`rows_are_independent`, which asks an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import InputError, ManifestError
from ...plan.api import Engine, Result
from ...plan.batch_sizes import batch_sizes
from ...plan.manifest import Tolerance
from ...plan.parity import compare
from ...plan.signature import CallSignature, Shape

RowShapes = tuple[Shape, ...]
"""The shapes of all inputs without their first dimension: only requests that agree in it can be joined."""


def rows_are_independent(engine: Engine, inputs: Mapping[str, np.ndarray], tolerance: Tolerance) -> bool:
    """Tries whether a row's answer depends on the rows beside it: a softmax over the batch, ``x - x.mean(0)``.

    The rows run once in the largest batch that takes their shapes, and once in two halves, each in the smallest.

    Args:
        engine: The engine, at rest or at work.
        inputs: Rows that differ, at least two: such as the golden inputs of a profile's max.
        tolerance: How near the answers must be; a row is summed in another order where the batch has another size.

    Returns:
        False too if :func:`~mlflow_trt.plan.batch_sizes.batch_sizes` has none for these inputs.

    Raises:
        InputError: The inputs do not fit the engine, or are less than two rows.
        DeviceError: The GPU refused.
    """
    call_signature = CallSignature(engine.interface, engine.profiles)
    call = call_signature.check(inputs)
    row_shapes = tuple(shape[1:] for shape in call.shapes)
    sizes = fitting(call_signature, batch_sizes(engine.interface, engine.profiles), row_shapes)
    if not sizes:
        return False
    rows = call.shapes[0][0]
    if rows < 2:
        raise InputError(f"The inputs are {rows} row.", "at least 2", "give those of a larger batch")

    def run(start: int, end: int, size: int) -> Result:
        arrays = [array[start:end] for array in call.arrays]
        result = engine.predict(dict(zip(call_signature.names, joined([arrays], end - start, size))))
        check_rows(result, size)
        return cut(result, 0, end - start)

    half = rows // 2
    try:
        together = run(0, rows, sizes[-1])
        halves = [(s, e, run(s, e, next_size(sizes, e - s))) for s, e in ((0, half), (half, rows))]
    except ManifestError:
        return False
    return all(o.passed for s, e, alone in halves for o in compare(alone, cut(together, s, e), tolerance))


def call(engine: Engine, names: Sequence[str], parts: Sequence[Sequence[np.ndarray]], rows: int, size: int) -> Result:
    """Calls an engine with the rows of several requests.

    A TensorRT engine puts them together where the GPU reads them, which saves a copy of the whole batch.

    Args:
        engine: The engine.
        names: Its inputs.
        parts: The arrays of each request, in their order.
        rows: How many rows they have together.
        size: How many the engine is called with.
    """
    stacked = getattr(engine, "predict_stacked", None)
    if stacked is None or (rows == size and len(parts) == 1):
        return engine.predict(dict(zip(names, joined(parts, rows, size))))
    result: Result = stacked(list(zip(*parts)), size)
    return result


def fitting(call_signature: CallSignature, sizes: Sequence[int], row_shapes: RowShapes) -> tuple[int, ...]:
    """The batch sizes that some optimization profile takes together with these other dimensions."""

    def fits(size: int) -> bool:
        try:
            call_signature.profile_of(tuple((size, *shape) for shape in row_shapes))
        except InputError:
            return False
        return True

    return tuple(size for size in sizes if fits(size))


def next_size(sizes: Sequence[int], rows: int) -> int:
    """The smallest size that holds the rows; without one, the rows as they are."""
    return next((size for size in sizes if size >= rows), rows)


def joined(parts: Sequence[Sequence[np.ndarray]], rows: int, size: int) -> list[np.ndarray]:
    """The inputs of a batch: those of a lone request of the right size as they are, else one copy of all.

    Args:
        parts: Of each request its arrays.
        rows: Of all together.
        size: Rows to make; those that are missing repeat the last one, whose values the model surely takes.
    """
    if len(parts) == 1 and rows == size:
        return list(parts[0])
    inputs = []
    for arrays in zip(*parts):
        array = np.empty((size, *arrays[0].shape[1:]), arrays[0].dtype.newbyteorder("="))
        np.concatenate(arrays, out=array[:rows])
        array[rows:] = array[rows - 1]
        inputs.append(array)
    return inputs


def cut(result: Result, start: int, end: int) -> Result:
    """A request's rows of a batch's answer."""
    rows = {name: array[start:end] for name, array in result.items()}
    return Result(rows, result.backend, result.plan, result.profile)


def check_rows(result: Result, size: int) -> None:
    """Raises ManifestError where an output has not one row for each of the batch: cut, they would be other callers'."""
    for name, array in result.items():
        if array.shape[:1] != (size,):
            raise ManifestError(
                f"The engine answered {name!r} of shape {array.shape} for a batch of {size}.",
                "one row for each, as the manifest says",
                "serve it without batching, and log the model again",
            )
