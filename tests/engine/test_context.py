"""Execution contexts: what each is bound to, and what TensorRT says no to."""

from __future__ import annotations

import numpy as np
import pytest
import standin
from affine import AFFINE, affine, rows, write_plan
from interfaces import interface, tensor
from manifests import host
from standin import Binding, Engine

from mlflow_trt.engine import cuda
from mlflow_trt.engine.context import OutputMemory
from mlflow_trt.engine.engine import TensorRTEngine
from mlflow_trt.errors import PlanError


def with_two_profiles(trt):
    made = affine(trt)
    made.profiles = [{"x": ((1, 3), (1, 3), (2, 3))}, {"x": ((2, 3), (16, 3), (32, 3))}]
    made.num_optimization_profiles = 2
    return made


def test_where_nothing_can_be_captured_tensorrt_makes_its_own_graphs(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        module.engines[0].capturable = False
        for _ in range(3):
            np.testing.assert_array_equal(engine.predict({"x": rows(2)})["y"], rows(2) * 2 + 1)
        assert module.cudart.launches == 0
        assert module.engines[0].config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert module.engines[0].contexts == 1


def test_a_context_keeps_its_shape(engine, module):
    for _ in range(4):
        for n in (1, 8, 3):
            np.testing.assert_array_equal(engine.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)
    assert module.engines[0].contexts == 3
    assert engine.memory["lanes"] == 3


def test_shape_tensor_is_part_of_what_a_context_is_bound_to(tmp_path, monkeypatch):
    def resize(trt):
        def shapes(given):
            return {"output0": (3,)}

        return Engine(
            trt,
            [Binding("x", "FLOAT", (3,), True), Binding("s", "INT64", (1,), True, on_host=True),
             Binding("output0", "FLOAT", (3,), False)],
            [{"x": ((3,),) * 3}],
            lambda given: {"output0": given["x"] * given["s"][0]},
            shapes,
        )  # fmt: skip

    standin.install(monkeypatch, resize)
    face = interface([tensor("x", (3,)), tensor("s", (1,), "int64")], [tensor("y", (3,), binding="output0")])
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        x = np.ones(3, np.float32)
        for s in (2, 3, 2, 5, 3, 2):
            np.testing.assert_array_equal(engine(x, np.array([s])), x * s)
        assert engine.memory["lanes"] == 3


def test_profiles_each_have_their_own_contexts(tmp_path, monkeypatch):
    standin.install(monkeypatch, with_two_profiles)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        for _ in range(2):
            assert [engine.predict({"x": rows(n)}).profile for n in (1, 2, 3, 32)] == [0, 0, 1, 1]
        np.testing.assert_array_equal(engine.predict({"x": rows(32)})["y"], rows(32) * 2 + 1)


# --- what TensorRT says no to ---


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("set_input_shape", False, r"setting the shape of 'x' to \(2, 3\)"),
        ("infer_shapes", ["x", "s"], "inferring shapes, where x, s is not known"),
        ("infer_shapes", RuntimeError("of its own"), r"inferring shapes \(of its own\)"),
        ("set_tensor_address", False, "binding 'x'"),
        ("execute_async_v3", False, "running the engine"),
    ],
)
def test_a_refusal_names_the_step(engine, monkeypatch, method, answer, message):
    def refuse(self, *arguments):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(standin.Context, method, refuse)
        with pytest.raises(PlanError, match=message):
            engine.predict({"x": rows(2)})
    np.testing.assert_array_equal(engine.predict({"x": rows(2)})["y"], rows(2) * 2 + 1)


def test_a_profile_that_can_not_be_chosen_is_named(tmp_path, monkeypatch):
    standin.install(monkeypatch, with_two_profiles)
    monkeypatch.setattr(standin.Context, "set_optimization_profile_async", lambda self, profile, stream: False)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        engine.predict({"x": rows(1)})
        with pytest.raises(PlanError, match="choosing optimization profile 1"):
            engine.predict({"x": rows(9)})


# --- outputs whose size only the data decide ---


def test_output_memory_grows_and_tells_the_shape(module):
    memory = OutputMemory(module)
    first = memory.allocator.reallocate_output("v", 0, 1000, 256)
    assert first
    assert memory.allocator.reallocate_output_async("v", first, 500, 256, 0) == first, "there is room"
    second = memory.allocator.reallocate_output("v", first, 5000, 256)
    assert second not in (0, first)
    assert memory.nbytes == module.cudart.used == 5000, "the smaller one is given back"
    memory.allocator.notify_shape("v", [np.int64(3), 4])
    assert memory.shapes == {"v": (3, 4)}
    memory.close()
    assert module.cudart.used == memory.nbytes == 0


def test_output_memory_that_is_not_there_is_0_and_what_was_there_stays(module):
    """An exception can't pass through TensorRT."""
    memory = OutputMemory(module)
    first = memory.grow("v", 1000)
    assert memory.grow("v", module.cudart.total) == 0
    assert memory.grow("v", 1000) == first
    memory.close()


def test_a_stream_is_given_back_if_there_is_no_scratch_memory(module):
    from mlflow_trt.engine.context import StreamResources

    module.cudart.total = 1000
    with pytest.raises(cuda.OutOfMemory):
        StreamResources(4096)
    assert not module.cudart.streams
