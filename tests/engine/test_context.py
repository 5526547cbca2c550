"""Execution contexts: what each is bound to, and what TensorRT says no to."""

from __future__ import annotations

import numpy as np
import standin
from affine import AFFINE, affine, rows, write_plan
from interfaces import interface, tensor
from manifests import host
from standin import Binding, Engine

from mlflow_trt.engine.engine import TensorRTEngine


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
    def two(trt):
        made = affine(trt)
        made.profiles = [{"x": ((1, 3), (1, 3), (2, 3))}, {"x": ((2, 3), (16, 3), (32, 3))}]
        made.num_optimization_profiles = 2
        return made

    standin.install(monkeypatch, two)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        for _ in range(2):
            assert [engine.predict({"x": rows(n)}).profile for n in (1, 2, 3, 32)] == [0, 0, 1, 1]
        np.testing.assert_array_equal(engine.predict({"x": rows(32)})["y"], rows(32) * 2 + 1)
