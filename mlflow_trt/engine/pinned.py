"""Host memory that a GPU reads by itself: what lies there is not copied by the processor first.

A GPU's copies go from page-locked memory alone. Inputs that lie elsewhere are put into a bound context's own block
before. What another process writes for this one, again and again in the same place, can be page-locked once and for
all.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right

import numpy as np

from ..errors import DeviceError
from . import cuda

_logger = logging.getLogger(__name__)

_lock = threading.Lock()
_ranges: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
"""Where they begin, in order, and where each ends. Replaced as a whole, so that it is read without the lock."""


def lock(address: int, nbytes: int, device: int) -> bool:
    """Page-locks memory for all GPUs of this process; it must stay mapped until :func:`unlock`.

    Args:
        address: Where it begins.
        nbytes: Its size.
        device: A GPU of this process.

    Returns:
        False: there is no GPU, or the driver or the system refused.
    """
    if not cuda.device_count()[0]:
        return False
    try:
        previous = cuda.enter(device)
        try:
            cuda.page_lock(address, nbytes)
        finally:
            cuda.leave(previous)
    except DeviceError as error:
        _logger.warning("%s bytes can't be page-locked; they are copied instead: %s", f"{nbytes:,}", error.found)
        return False
    _change(address, address + nbytes)
    return True


def unlock(address: int, device: int) -> None:
    """Lets go of memory that :func:`lock` took, with the same device; no call may be reading it."""
    _change(address, None)
    previous = cuda.enter(device)
    try:
        cuda.page_unlock(address)
    finally:
        cuda.leave(previous)


def any_locked() -> bool:
    """Whether there is such memory at all."""
    return bool(_ranges[0])


def address_of(array: np.ndarray) -> int | None:
    """Where an array begins that lies in such memory without gaps; None for any other."""
    starts, ends = _ranges
    if not array.flags.c_contiguous:
        return None
    address: int = array.__array_interface__["data"][0]
    index = bisect_right(starts, address) - 1
    return address if index >= 0 and address + array.nbytes <= ends[index] else None


def _change(start: int, end: int | None) -> None:
    global _ranges
    with _lock:
        known = dict(zip(*_ranges))
        if end is None:
            del known[start]
        else:
            known[start] = end
        _ranges = (tuple(sorted(known)), tuple([known[key] for key in sorted(known)]))
