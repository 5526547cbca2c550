"""From arrays to where a GPU reads them and back: copies, graphs, and what is bound where."""

from __future__ import annotations

import numpy as np
import pytest
import standin
from affine import AFFINE, rows, write_plan
from interfaces import interface, tensor
from manifests import host
from standin import Binding, Engine

from mlflow_trt.engine import bound_contexts
from mlflow_trt.engine.engine import TensorRTEngine
from mlflow_trt.errors import DeviceError, InputError
from mlflow_trt.plan import casts


def test_answers_belong_to_the_caller(engine):
    first = engine.predict({"x": rows(2)})["y"]
    kept = first.copy()
    second = engine.predict({"x": rows(2, 100)})["y"]
    np.testing.assert_array_equal(first, kept)
    assert second.flags.owndata
    assert second.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(rows(4)),
        rows(8)[::2],
        rows(4).astype(">f4"),
        np.ascontiguousarray(rows(4).T).T,
        np.frombuffer(rows(4).tobytes(), np.float32).reshape(4, 3),
        rows(4).tolist(),
        np.full((4, 3), np.nan, np.float32),
    ],
    ids=["fortran", "strided", "big-endian", "transposed", "read-only", "list", "nan"],
)
def test_takes_any_memory_layout(engine, array):
    want = np.asarray(array, np.float32) * 2 + 1
    for _ in range(3):
        np.testing.assert_array_equal(engine.predict({"x": array})["y"], want)


def test_the_first_call_records_a_graph_and_later_ones_launch_it(engine, module):
    for _ in range(5):
        engine.predict({"x": rows(2)})
    assert module.cudart.graphs == 1
    assert module.cudart.launches == 6  # one without specialized kernels, to compare them with


def test_without_cuda_graphs_every_call_is_enqueued(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), cuda_graphs=False) as engine:
        for _ in range(3):
            engine.predict({"x": rows(2)})
    assert module.cudart.launches == 0


def test_data_dependent_output(tmp_path, monkeypatch):
    def positive(trt):
        return Engine(
            trt,
            [Binding("x", "FLOAT", (-1,), True), Binding("output0", "FLOAT", (-1,), False),
             Binding("output1", "INT64", (-1,), False)],
            [{"x": ((1,), (4,), (1000,))}],
            lambda given: {"output0": given["x"][given["x"] > 0], "output1": np.flatnonzero(given["x"] > 0)},
            lambda shapes: {"output0": (-1,), "output1": (-1,)},
        )  # fmt: skip

    module = standin.install(monkeypatch, positive)
    face = interface(
        [tensor("x", ("n",))], [tensor("v", ("m",), binding="output0"), tensor("i", ("m",), "int64", binding="output1")]
    )
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        for x in ([1, -1, 2], [-1, -1, -1], [3, 4, 5], list(range(1000)), [0, 1, 0]):
            x = np.asarray(x, np.float32)
            answer = engine.predict({"x": x})
            np.testing.assert_array_equal(answer["v"], x[x > 0])
            np.testing.assert_array_equal(answer["i"], np.flatnonzero(x > 0))
        assert module.cudart.launches == 0
    assert module.cudart.used == 0


def test_narrower_and_rounded_bindings(tmp_path, monkeypatch):
    def narrow(trt):
        return Engine(
            trt,
            [Binding("x", "BF16", (2,), True), Binding("i", "INT32", (2,), True),
             Binding("output0", "BF16", (2,), False), Binding("output1", "INT32", (1,), False)],
            [{"x": ((2,),) * 3, "i": ((2,),) * 3}],
            lambda given: {"output0": given["x"], "output1": given["i"][:1]},
            lambda shapes: {"output0": (2,), "output1": (1,)},
        )  # fmt: skip

    standin.install(monkeypatch, narrow)
    face = interface(
        [tensor("x", (2,), "float32", "bfloat16"), tensor("i", (2,), "int64", "int32")],
        [tensor("y", (2,), "float32", "bfloat16", "output0"), tensor("n", (), "int64", "int32", "output1")],
    )
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        x = np.array([1.00390625, 3.14159265], np.float32)
        answer = engine.predict({"x": x, "i": np.array([5, 6])})
        np.testing.assert_array_equal(answer["y"], casts.from_bfloat16(casts.to_bfloat16(x)))
        assert answer["y"].dtype == np.float32
        assert answer["n"].dtype == np.int64
        assert answer["n"].shape == ()
        assert answer["n"] == 5
        with pytest.raises(InputError, match="int32"):
            engine.predict({"x": x, "i": np.array([1 << 40, 0])})
        assert engine.memory["lanes"] == 1  # refusing it cost no context


def test_rows_of_several_calls_are_put_together_where_the_gpu_reads_them(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        first, second = rows(1, 5.0), rows(2, 50.0).astype(">f4")
        for _ in range(3):  # first call, capture, launch
            found = engine.predict_stacked([[first, second]], 4)
            assert (found.backend, found.profile) == ("tensorrt", 0)
            whole = np.concatenate([first, second, second[1:]])
            np.testing.assert_array_equal(found["y"], whole * 2 + 1)
        with pytest.raises(InputError, match="above the maximum"):
            engine.predict_stacked([[rows(1)]], 99)


@pytest.mark.parametrize(("size", "expected"), [(0, 256), (1, 256), (256, 256), (257, 512), (1000, 1024)])
def test_blocks_begin_where_tensorrt_wants_them(size, expected):
    assert bound_contexts.aligned(size) == expected


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [("f4", (2, 3), 24), ("u1", (), 1), ("i8", (4, 0), 0), ("f4", (1 << 20,) * 2, 1 << 42)],
)
def test_bytes_of_an_array(dtype, shape, expected):
    assert bound_contexts.nbytes(np.dtype(dtype), shape) == expected


@pytest.mark.parametrize(
    ("given", "declared", "expected"),
    [
        ((1,), (), ()),  # TensorRT gives a scalar as (1,)
        ((), (1,), (1,)),
        ((), ("n", 1), (1, 1)),
        ((1,), ("n",), (1,)),
        ((2,), (), (2,)),  # not a scalar at all: as it is
        ((2, 3), ("n", 3), (2, 3)),
    ],
)
def test_an_answer_has_the_rank_that_the_manifest_says(given, declared, expected):
    assert bound_contexts.as_declared(np.zeros(given), tensor("y", declared)).shape == expected


def test_what_can_not_be_captured_is_enqueued_for_good(engine, module, monkeypatch):
    """The first call runs, the second tries to record it, all later ones do without."""
    tried = []

    def refuse(stream, work):
        tried.append(stream)
        raise DeviceError("found", "expected", "remedy")

    monkeypatch.setattr("mlflow_trt.engine.cuda.capture", refuse)
    for _ in range(4):
        np.testing.assert_array_equal(engine.predict({"x": rows(2)})["y"], rows(2) * 2 + 1)
    assert module.cudart.launches == 0
    bound = _bound(engine)
    assert bound.graph == "enqueue"
    assert len(tried) <= 2, "once for each context"


def _bound(engine):
    """The bound context that served the last call."""
    (slot,) = [slot for slot in engine._pool._slots if slot.contexts]
    return list(slot.contexts.values())[-1].bound


def test_it_tells_how_it_runs_and_what_it_holds(engine):
    for _ in range(3):
        engine.predict({"x": rows(2)})
    bound = _bound(engine)
    assert bound.graph == "graph"
    assert (bound.in_bytes, bound.out_bytes) == (256, 512)  # x; y and z
    assert bound.nbytes == bound.context_bytes + 768
    bound.clear_first()
    assert bound.graph == "enqueue", "a graph that was recorded does not clear"
    np.testing.assert_array_equal(engine.predict({"x": rows(2)})["y"], rows(2) * 2 + 1)


def test_an_output_whose_shape_nobody_told_is_an_error(tmp_path, monkeypatch):
    def silent(trt):
        return Engine(
            trt,
            [Binding("x", "FLOAT", (-1,), True), Binding("output0", "FLOAT", (-1,), False)],
            [{"x": ((1,), (4,), (8,))}],
            lambda given: {"output0": None},
            lambda shapes: {"output0": (-1,)},
        )

    standin.install(monkeypatch, silent)
    face = interface([tensor("x", ("n",))], [tensor("v", ("m",), binding="output0")])
    told = pytest.raises(DeviceError, match="did not tell the shape of the output 'output0'")
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine, told:
        engine.predict({"x": np.ones(3, np.float32)})
