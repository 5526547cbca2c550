"""The values of weights and constants, in the dtype that a graph needs them in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...plan.casts import from_bfloat16, to_bfloat16

if TYPE_CHECKING:
    from onnx import TensorProto

HALF_LIMITS = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
"""The largest number of each dtype of 16 bits."""


def array(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """A tensor's values; bfloat16 as float32, which holds them exactly.

    Args:
        tensor: The tensor; it stays as it is.
        folder: Where its bytes lie, if they lie in a file.
    """
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        outside, tensor = tensor, TensorProto()
        tensor.CopyFrom(outside)  # onnx would read the bytes into the caller's
    if tensor.data_type != TensorProto.BFLOAT16:
        return np.asarray(numpy_helper.to_array(tensor, str(folder or "")))
    bits = TensorProto()
    bits.CopyFrom(tensor)
    bits.data_type = TensorProto.UINT16
    return from_bfloat16(numpy_helper.to_array(bits, str(folder or "")))


def in_dtype(tensor: TensorProto, dtype: int, folder: Path | None, name: str = "") -> TensorProto:
    """A floating tensor in another floating dtype; finite numbers stay finite.

    A mask of float32's minimum would become an infinity, and a softmax over a row of these is NaN.

    Args:
        tensor: The tensor; it stays as it is.
        dtype: Of ``TensorProto``: FLOAT, FLOAT16 or BFLOAT16.
        folder: Where its bytes lie, if they lie in a file.
        name: The new tensor's; the old one's, if there is none.
    """
    from onnx import TensorProto

    values = clamped(array(tensor, folder), dtype)
    if dtype == TensorProto.BFLOAT16:
        values = to_bfloat16(values.astype(np.float32, copy=False))
    else:
        values = values.astype(np.float16 if dtype == TensorProto.FLOAT16 else np.float32, copy=False)
    made = TensorProto(name=name or tensor.name, data_type=dtype, dims=tensor.dims)
    made.raw_data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return made


def clamped(values: np.ndarray, dtype: int) -> np.ndarray:
    """Finite numbers that a dtype can't hold, as its own limit."""
    most = limit(dtype)
    if (
        not values.size
        or values.dtype == np.float16
        or not np.any(too_large := np.isfinite(values) & (np.abs(values) > most))
    ):
        return values
    return np.where(too_large, np.copysign(np.asarray(most, values.dtype), values), values)


def limit(dtype: int) -> float:
    """The largest finite number of a floating dtype of ``TensorProto``."""
    from onnx import TensorProto

    own = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    return HALF_LIMITS[own[dtype]] if dtype in own else float(np.finfo(np.float32).max)
