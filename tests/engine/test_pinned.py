"""Inputs that a GPU fetches from where they lie, on the stand-in for GPU and TensorRT (see standin.py)."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import standin
from affine import write_plan
from interfaces import interface, tensor
from manifests import host
from standin import Binding, Engine

from mlflow_trt.engine import pinned
from mlflow_trt.engine.engine import TensorRTEngine

WIDE = 16 << 10
ROW = 4 * WIDE
"""Bytes."""
FACE = interface([tensor("x", ("batch", WIDE))], [tensor("y", ("batch", WIDE), binding="output0")])


def scaled(trt):
    """y = 2 x + 1, in wide rows."""
    return Engine(
        trt,
        [Binding("x", "FLOAT", (-1, WIDE), True), Binding("output0", "FLOAT", (-1, WIDE), False)],
        [{"x": ((1, WIDE), (4, WIDE), (8, WIDE))}],
        lambda given: {"output0": given["x"] * 2 + 1},
        lambda shapes: {"output0": shapes["x"]},
    )


@pytest.fixture
def cudart(monkeypatch):
    return standin.install(monkeypatch, scaled).cudart


@pytest.fixture
def engine(tmp_path, cudart):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), FACE, max_contexts=1, host=host()) as made:
        yield made
    assert not cudart.graphs


@pytest.fixture
def memory():
    """Sixteen rows in memory of their own; writes to them are seen by who has locked it."""
    shared = mmap.mmap(-1, 16 * ROW)
    array = np.frombuffer(shared, np.float32).reshape(16, WIDE)
    array[:] = np.random.default_rng(0).standard_normal(array.shape, np.float32)
    return array


def lock(array):
    assert pinned.lock(address(array), array.nbytes, 0)


def address(array):
    return array.__array_interface__["data"][0]


def warm(engine, rows):
    for _ in range(3):
        engine.predict({"x": np.arange(rows * WIDE, dtype=np.float32).reshape(rows, WIDE)})


def test_rows_are_fetched_from_where_they_lie(engine, cudart, memory):
    lock(memory)
    warm(engine, 4)
    graphs, launches = cudart.graphs, cudart.launches
    for first in range(3):
        parts = [memory[first : first + 1], memory[first + 4 : first + 6]]
        cudart.fetched.clear()
        found = engine.predict_stacked([parts], 4)
        # One copy for each part, and the last row once more; none of the bound context's whole block.
        assert cudart.fetched == [ROW, 2 * ROW, ROW]
        want = np.concatenate([*parts, parts[-1][-1:]]) * 2 + 1
        np.testing.assert_array_equal(found["y"], want)
    assert cudart.launches == launches + 3
    assert cudart.graphs == graphs, "both graphs are made while the model warms up"


def test_a_single_request_too(engine, cudart, memory):
    lock(memory)
    warm(engine, 2)
    cudart.fetched.clear()
    np.testing.assert_array_equal(engine.predict({"x": memory[3:5]})["y"], memory[3:5] * 2 + 1)
    assert cudart.fetched == [2 * ROW]


def test_memory_that_is_locked_after_the_warm_up(engine, cudart, memory):
    warm(engine, 2)
    assert cudart.graphs == 1
    lock(memory)
    for start in (0, 2, 4):
        found = engine.predict({"x": memory[start : start + 2]})["y"]
        np.testing.assert_array_equal(found, memory[start : start + 2] * 2 + 1)
    assert cudart.graphs == 2


def elsewhere(memory):
    return [memory[:1], memory[1:2].copy()]


def strided(memory):
    return [memory[::2][:2]]


def other_byte_order(memory):
    return [memory[:2].view(">f4")]


def across_two_locks(memory):
    return [memory[7:9]]


@pytest.mark.parametrize("parts", [elsewhere, strided, other_byte_order, across_two_locks])
def test_what_a_gpu_cannot_fetch_is_copied(engine, cudart, memory, parts):
    lock(memory[:8])
    lock(memory[8:])
    warm(engine, 2)
    given = parts(memory)
    cudart.fetched.clear()
    with np.errstate(all="ignore"):
        found = engine.predict_stacked([given], 2)["y"]
        np.testing.assert_array_equal(found, np.concatenate(given).astype(np.float32) * 2 + 1)
    assert cudart.fetched == [2 * ROW], "the bound context's block, in one copy"


def test_small_rows_are_copied(monkeypatch, tmp_path, memory):
    """Each would be a call of its own."""
    from affine import AFFINE, affine

    cudart = standin.install(monkeypatch, affine).cudart
    lock(memory)
    small = memory.ravel()[: 4 * 3].reshape(4, 3)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, max_contexts=1, host=host()) as engine:
        for _ in range(3):
            found = engine.predict_stacked([[small[:1], small[1:2], small[2:]]], 4)
        np.testing.assert_array_equal(found["y"], small * 2 + 1)
        assert set(cudart.fetched) == {256}
        assert cudart.graphs == 1


def test_shape_tensors_are_not_fetched(monkeypatch, tmp_path, memory):
    def times(trt):
        return Engine(
            trt,
            [Binding("x", "FLOAT", (WIDE,), True), Binding("s", "INT64", (1,), True, on_host=True),
             Binding("output0", "FLOAT", (WIDE,), False)],
            [{"x": ((WIDE,),) * 3}],
            lambda given: {"output0": given["x"] * given["s"][0]},
            lambda shapes: {"output0": (WIDE,)},
        )  # fmt: skip

    cudart = standin.install(monkeypatch, times).cudart
    lock(memory)
    face = interface([tensor("x", (WIDE,)), tensor("s", (1,), "int64")], [tensor("y", (WIDE,), binding="output0")])
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        for s in (2, 3, 2, 3, 2, 3):
            found = engine.predict({"x": memory[s], "s": np.array([s])})["y"]
            np.testing.assert_array_equal(found, memory[s] * s)
    assert set(cudart.fetched) == {ROW}


def test_what_was_unlocked_is_copied_again(engine, cudart, memory):
    lock(memory[:8])
    lock(memory[8:])
    warm(engine, 1)
    pinned.unlock(address(memory), 0)
    assert pinned.address_of(memory[:1]) is None
    assert pinned.address_of(memory[8:9]) == address(memory) + 8 * ROW
    cudart.fetched.clear()
    np.testing.assert_array_equal(engine.predict({"x": memory[:1]})["y"], memory[:1] * 2 + 1)
    pinned.unlock(address(memory[8:]), 0)
    assert not pinned.any_locked()


def test_memory_that_cannot_be_locked(cudart, memory, caplog):
    cudart.fail_next = standin.real.cudaError_t.cudaErrorMemoryAllocation
    assert not pinned.lock(address(memory), memory.nbytes, 0)
    assert not pinned.any_locked()
    assert "can't be page-locked" in caplog.text


def test_without_a_gpu_there_is_nothing_to_tell(cudart, memory, monkeypatch, caplog):
    monkeypatch.setattr(cudart, "cudaGetDeviceCount", lambda: (standin.real.cudaError_t.cudaErrorNoDevice, 0))
    assert not pinned.lock(address(memory), memory.nbytes, 0)
    assert not caplog.text
