"""What was logged of a model's inputs: its signature, and an example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import SettingError
from ...inputs import DTYPES, Input

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

Shape = tuple[int | None, ...]
"""None: a dynamic dimension."""


def of_signature(signature: ModelSignature | None) -> list[tuple[str, Shape]] | None:
    """Dtype and shape of each input, in order; None: the signature does not tell."""
    schema = signature.inputs if signature is not None else None
    if schema is None or not schema.is_tensor_spec():
        return None
    found = [(spec.type.name, tuple(None if n == -1 else int(n) for n in spec.shape)) for spec in schema.inputs]
    return found if all(dtype in DTYPES for dtype, _ in found) else None


def static(logged: Sequence[tuple[str, Shape]], uri: str) -> list[Input]:
    """Inputs of these shapes, where none is dynamic.

    Raises:
        SettingError: One is; the message says what to give.
    """
    if any(size is None for _, shape in logged for size in shape):
        shapes = "; ".join(f"{dtype} [{', '.join('-1' if n is None else str(n) for n in s)}]" for dtype, s in logged)
        options = " ".join(f"--input '{dtype}[{_sizes(shape)}]'" for dtype, shape in logged)
        python = ", ".join(f"mlflow_trt.Input({_python(shape)}, {dtype!r})" for dtype, shape in logged)
        raise SettingError(
            f"The inputs of {uri} have dynamic dimensions ({shapes}), and no ranges were given for them.",
            "the smallest, the usual and the largest size of each",
            f"give inputs=[{python}], or on the command line {options}, with sizes of your own for 1, 8 and 32",
        )
    return [Input(tuple(n for n in shape if n is not None), dtype) for dtype, shape in logged]


def _sizes(shape: Shape) -> str:
    return ",".join("1:8:32" if size is None else str(size) for size in shape)


def _python(shape: Shape) -> str:
    sizes = ["(1, 8, 32)" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def golden(example: Any, inputs: Any) -> list[Any] | None:
    """A logged example as golden inputs, where it certainly is one call of the model within the profiles.

    Args:
        example: An array or tensor, a sequence of these in the order of the model's parameters, or a dict by name.
        inputs: What the caller said of the inputs.

    Returns:
        None: it is something else, or does not fit.
    """
    given = [inputs] if isinstance(inputs, Input) else inputs
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(i, Input) for i in given):
        return None
    names = [i.name for i in given]
    if isinstance(example, Mapping):
        if None in names or set(example) != set(names):
            return None
        values = [example[name] for name in names]
    else:
        values = list(example) if isinstance(example, (list, tuple)) else [example]
        if len(values) != len(given) or (len(given) > 1 and any(names)):
            return None  # named inputs may stand in any order
    if not all(hasattr(value, "dtype") and hasattr(value, "__array__") for value in values):
        return None  # a table or a sparse matrix
    if not all(map(_finite, values)):
        return None  # no answer could be judged by it
    shapes = [tuple(int(n) for n in value.shape) for value in values]
    if not _fit(shapes, given):
        return None
    return [dict(zip(names, values))] if isinstance(example, Mapping) else [tuple(values)]


def _finite(value: Any) -> bool:
    """Whether an array or tensor, of any dtype, holds neither NaN nor infinities."""
    return bool(((value == value) & (value != math.inf) & (value != -math.inf)).all())


def _fit(shapes: Sequence[tuple[int, ...]], inputs: Sequence[Input]) -> bool:
    """Whether shapes lie in one optimization profile, and dimensions of one name are equal."""
    sizes: dict[str, int] = {}
    for shape, given in zip(shapes, inputs):
        if len(shape) != given.rank:
            return False
        named = zip(given.dimension_names, shape)
        if any(name is not None and sizes.setdefault(name, size) != size for name, size in named):
            return False
    return any(
        all(_within(shape, given, profile) for shape, given in zip(shapes, inputs))
        for profile in range(max(len(given.ranges) for given in inputs))
    )


def _within(shape: tuple[int, ...], given: Input, profile: int) -> bool:
    span = given.ranges[profile if len(given.ranges) > 1 else 0]
    return all(low <= size <= high for low, size, high in zip(span.min, shape, span.max))
