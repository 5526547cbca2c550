"""Memory that two processes share; page-locked on the stand-in for a GPU (see tests/standin.py)."""

from __future__ import annotations

import os

import numpy as np
import pytest
import standin

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
