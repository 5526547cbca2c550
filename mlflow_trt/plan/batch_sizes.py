"""Which sizes of a batch an engine is called with, where requests can be joined to one."""

from __future__ import annotations

from collections.abc import Sequence

from .manifest import Interface, Profile
from .signature import symbols_of


def batch_sizes(interface: Interface, profiles: Sequence[Profile]) -> tuple[int, ...]:
    """Decides which batch sizes an engine is called with.

    Requests of a model can be joined if every input and output has the same symbol as its first dimension, no other
    dimension depends on that symbol, and no output's on the data. An engine that someone else built does not say which
    of its sizes are equal: its requests are not joined.

    Args:
        interface: The model's inputs and outputs.
        profiles: The engine's optimization profiles.

    Returns:
        Of every profile min, opt, max and the powers of two between, ascending. None if requests can't be joined, or if
        no profile takes more than one row.
    """
    if not _is_batchable(interface):
        return ()
    sizes: set[int] = set()
    for profile in profiles:
        ranges = [profile[t.name] for t in interface.inputs if t.name in profile]
        low = max([max(r.min[0], 1) for r in ranges], default=1)
        high = min([r.max[0] for r in ranges], default=0)
        wanted = {low, high, *(r.opt[0] for r in ranges), *(1 << n for n in range(high.bit_length()))}
        sizes.update(size for size in wanted if low <= size <= high)
    return tuple(sorted(sizes)) if max(sizes, default=0) > 1 else ()


def _is_batchable(interface: Interface) -> bool:
    tensors = (*interface.inputs, *interface.outputs)
    if not interface.inputs or not all(t.shape for t in tensors):
        return False
    batch = interface.inputs[0].shape[0]
    if not isinstance(batch, str) or any(t.shape[0] != batch for t in tensors):
        return False
    inner = {symbol for t in interface.inputs for size in t.shape[1:] for symbol in symbols_of(size)}
    # A symbol that only outputs have depends on the data: on all rows of the batch.
    used = {symbol for t in interface.outputs for size in t.shape[1:] for symbol in symbols_of(size)}
    return symbols_of(batch) == {batch} and batch not in inner and used <= inner
