"""From the caller's dtype to the engine's and back, where the two differ.

Numpy has no bfloat16, so a bfloat16 binding is float32 to the caller; its bits travel as uint16. What is float64 or
int64 to the caller may be float32 or int32 in the engine, where Torch-TensorRT truncated it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import InputError, ManifestError
from .dtypes import STORAGE

Encode = Callable[[np.ndarray, np.ndarray], None]
"""(the caller's array, the binding's memory) → writes the one into the other."""
Decode = Callable[[np.ndarray], np.ndarray]
"""(the binding's memory) → a new array for the caller."""


def storage(name: str, where: str) -> np.dtype:
    """Returns the numpy dtype that holds a binding's bits.

    Args:
        name: The binding's dtype, ``"bfloat16"``.
        where: What has it, for the message.

    Raises:
        ManifestError: Neither numpy nor this package can hold it: float8, int4.
    """
    dtype = STORAGE.get(name)
    if dtype is None:
        raise ManifestError(
            f"{where} has the dtype {name}.",
            f"one of {', '.join(STORAGE)}",
            "build the engine with inputs and outputs of such a dtype; inside it may hold any",
        )
    return dtype


def encoder(public: str, binding: str, name: str) -> Encode:
    """Returns the function that writes a caller's array into a binding.

    Args:
        public: The caller's dtype.
        binding: The engine's.
        name: The input's name, for messages.
    """
    if public == binding:
        return _copy
    if binding == "bfloat16":
        return _copy_as_bfloat16
    if np.can_cast(STORAGE[public], STORAGE[binding], "same_kind") and STORAGE[public].kind == "f":
        return _copy_rounded

    def narrow(array: np.ndarray, out: np.ndarray) -> None:
        limits = np.iinfo(out.dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise InputError(
                f"Input {name!r} holds {array.min()} to {array.max()}.",
                f"{limits.min} to {limits.max}: the engine computes it as {binding}",
                "give smaller numbers, or convert without truncation",
            )
        np.copyto(out, array, casting="unsafe")

    return narrow


def decoder(public: str, binding: str) -> Decode:
    """Returns the function that copies a binding's memory into a new array of the caller's dtype."""
    if public == binding:
        return np.ndarray.copy
    if binding == "bfloat16":
        return from_bfloat16
    target = STORAGE[public]
    return lambda bits: bits.astype(target)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounds float32 to bfloat16, to nearest even; NaN stays NaN, and what is too large becomes infinite.

    Returns:
        The bits, uint16.
    """
    bits = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)
    # Adding half of the last kept place, less one where that place is even, carries exactly when rounding goes up.
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    result = np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)
    return result.reshape(np.shape(array))


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Returns bfloat16 bits (uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _copy(array: np.ndarray, out: np.ndarray) -> None:
    # "equiv" lets byte order differ and nothing else.
    np.copyto(out, array, casting="equiv")


def _copy_rounded(array: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, array, casting="same_kind")


def _copy_as_bfloat16(array: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, to_bfloat16(array))
