"""Memory that two processes share; page-locked on the stand-in for a GPU (see tests/standin.py)."""

from __future__ import annotations

import os

import numpy as np
import pytest
import standin
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_trt.engine import pinned
from mlflow_trt.serving.workers import shared_memory
from mlflow_trt.serving.workers.shared_memory import SharedMemory, create

SIZE = 40 << 20
STEP = 16 << 20


@pytest.fixture
def cudart(monkeypatch):
    return standin.install(monkeypatch, lambda trt: None).cudart


@pytest.fixture
def both():
    """The two sides' views of one memory."""
    descriptor = create(SIZE)
    yield SharedMemory(descriptor, SIZE), SharedMemory(descriptor, SIZE)
    os.close(descriptor)


def row(side, offset, count=1000):
    return side.array(offset, "float32", (count,))


def test_what_one_side_writes_the_other_reads(both):
    writer, reader = both
    offset = writer.allocate(4000)
    row(writer, offset)[:] = np.arange(1000)
    np.testing.assert_array_equal(row(reader, offset), np.arange(1000))


def test_blocks_are_used_again_and_never_given_twice(both):
    writer, _ = both
    taken = [writer.allocate(5000) for _ in range(4)]
    assert taken == [0, 8192, 16384, 24576]
    writer.free(taken[1], 5000)
    assert [writer.allocate(6000), writer.allocate(4096)] == [8192, 32768]


def test_a_full_memory_has_no_block(both):
    writer, _ = both
    assert writer.allocate(32 << 20) == 0
    assert writer.allocate(16 << 20) is None
    assert writer.allocate(8 << 20) == 32 << 20


def test_it_is_page_locked_as_far_as_it_is_used(both, cudart):
    _, reader = both
    assert reader.page_lock(1, 0)
    assert pinned.address_of(row(reader, 0)) is not None
    assert pinned.address_of(row(reader, STEP)) is None
    assert reader.page_lock(STEP, 0)
    assert len(cudart.pinned) == 1
    assert reader.page_lock(STEP + 4000, 0)
    assert pinned.address_of(row(reader, STEP)) is not None
    assert pinned.address_of(row(reader, STEP - 4)) is None, "two parts"
    assert reader.page_lock(SIZE, 0)
    assert sorted(len(part) for part in cudart.pinned.values()) == [SIZE - 2 * STEP, STEP, STEP]


def test_it_is_given_back(both, cudart):
    _, reader = both
    reader.page_lock(1, 0)
    reader.page_lock(STEP + 1, 0)
    reader.page_unlock()
    assert not cudart.pinned
    assert not pinned.any_locked()
    assert reader.page_lock(1, 0), "and may be locked again"


def test_a_refusal_is_told(both, cudart):
    _, reader = both
    cudart.fail_next = standin.real.cudaError_t.cudaErrorNotSupported
    assert not reader.page_lock(1, 0)
    assert not pinned.any_locked()
    reader.page_unlock()


def test_the_smallest_block_is_a_page(both):
    writer, _ = both
    assert [writer.allocate(0), writer.allocate(1)] == [0, 1 << shared_memory.SMALLEST]


# --- when the memory was used up once ---


def fill(writer, nbytes):
    """All blocks of a size that there is room for."""
    return list(iter(lambda: writer.allocate(nbytes), None))


@pytest.mark.parametrize(("first", "then"), [(8 << 20, 4096), (4096, 8 << 20), (4096, 32 << 20), (1 << 20, 3 << 20)])
def test_what_was_full_of_one_size_has_room_for_another(both, first, then):
    writer, _ = both
    blocks = fill(writer, first)
    assert writer.allocate(then) is None
    for offset in blocks:
        writer.free(offset, first)
    power = 1 << max((then - 1).bit_length(), shared_memory.SMALLEST)
    assert len(fill(writer, then)) == SIZE // power


def test_a_gap_between_blocks_is_used_by_smaller_ones_alone(both):
    writer, _ = both
    blocks = fill(writer, 8 << 20)
    writer.free(blocks[2], 8 << 20)
    assert writer.allocate(16 << 20) is None
    small = fill(writer, 2 << 20)
    assert sorted(small) == [blocks[2] + (n << 21) for n in range(4)]
    for offset in small:
        writer.free(offset, 2 << 20)
    writer.free(blocks[3], 8 << 20)
    assert writer.allocate(16 << 20) == blocks[2]


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30 << 20), st.integers(0, 100)), max_size=60))
def test_no_two_blocks_ever_overlap(steps):
    descriptor = create(SIZE)
    try:
        writer = SharedMemory(descriptor, SIZE)
        taken = []
        for take, nbytes, which in steps:
            if take or not taken:
                offset = writer.allocate(nbytes)
                if offset is not None:
                    assert 0 <= offset <= SIZE - max(nbytes, 1)
                    assert all(offset + nbytes <= o or o + n <= offset for o, n in taken)
                    taken.append((offset, max(nbytes, 1)))
            else:
                writer.free(*taken.pop(which % len(taken)))
        for block in taken:
            writer.free(*block)
        assert writer.allocate(SIZE // 2) is not None, "what was freed is lost"
    finally:
        os.close(descriptor)
