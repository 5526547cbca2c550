"""What ONNX Runtime answers at every point is what the engine is compared with."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from onnx import TensorProto

from mlflow_trt import Input
from mlflow_trt.conversion.from_onnx import golden, inputs, values
from mlflow_trt.conversion.from_onnx.model import read, write
from mlflow_trt.errors import ConversionError, SettingError

from .networks import encoder, model, noise, perceptron


def asked(folder, proto, given=None, own=None, limit=golden.LIMIT, **dims):
    one = read(proto)
    fed = inputs.describe(one, given, dims=dims or None)
    return golden.compute(write(one, folder), fed, values.roles(one.proto), own, limit)


def test_the_graph_is_asked_at_min_opt_max_and_between(tmp_path):
    tensors = asked(tmp_path, perceptron(), batch=(1, 4, 9))
    shapes = {point: tuple(got["y"].shape) for _, point, _, got in tensors.points()}
    assert shapes == {"min": (1, 3), "opt": (4, 3), "max": (9, 3), "between": (3, 3)}
    proto = perceptron()
    weights = {w.name: np.frombuffer(w.raw_data, np.float32).reshape(w.dims) for w in proto.graph.initializer}
    for _, _, given, got in tensors.points():
        wanted = np.maximum(given["x"] @ weights["w"] + weights["b"], 0) @ weights["v"]
        np.testing.assert_allclose(got["y"], wanted, rtol=1e-4, atol=1e-5)


def test_dimensions_of_one_name_are_of_one_size_between_too(tmp_path):
    tensors = asked(tmp_path, encoder(), batch=(1, 2, 4), tokens=(2, 8, 16))
    for _, _, given, got in tensors.points():
        assert given["input_ids"].shape == given["attention_mask"].shape
        assert got["states"].shape[:2] == given["input_ids"].shape


def test_own_inputs_are_asked_and_fill_the_points(tmp_path):
    own = np.full((2, 8), 3, np.float32)
    tensors = asked(tmp_path, perceptron(), own=[own, {"x": own[:1]}], batch=(1, 2, 4))
    points = {point: given["x"] for _, point, given, _ in tensors.points()}
    assert points["user0"].shape == (2, 8)
    assert points["user1"].shape == (1, 8)
    assert (points["max"] == 3).all()


def test_several_profiles_and_the_limit_of_bytes(tmp_path):
    given = [Input(profiles=[((1, 1, 1), 8), ((2, 4, 6), 8)])]
    every = asked(tmp_path, perceptron(), given)
    assert next((profile, point) for profile, point, *_ in every.points()) == (0, "opt")
    assert {profile for profile, *_ in every.points()} == {0, 1}
    few = asked(tmp_path, perceptron(), limit=100, batch=(1, 4, 9))
    assert [point for _, point, *_ in few.points()] == ["min"]


def test_half_precision_is_answered(tmp_path):
    proto = model(
        [("MatMul", "x w", "y")],
        {"x": ("FLOAT16", ["n", 4])},
        {"y": ("FLOAT16", ["n", 2])},
        {"w": noise(4, 2).astype(np.float16)},
    )
    (_, _, given, got), *_ = asked(tmp_path, proto, n=(1, 2, 4)).points()
    np.testing.assert_allclose(got["y"], given["x"].astype(np.float32) @ noise(4, 2), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([{"z": noise(1, 8)}], r"golden_inputs\[0\] has z"),
        ([(noise(1, 8), noise(1, 8))], "another number of arrays"),
        ([noise(9, 8)], r"has the shapes x \[9, 8\]"),
    ],
)
def test_own_inputs_that_do_not_fit_are_refused(tmp_path, own, message):
    with pytest.raises(SettingError, match=message):
        asked(tmp_path, perceptron(), own=own, batch=(1, 2, 4))


def test_own_inputs_of_unequal_sizes_are_refused(tmp_path):
    ids = np.ones((2, 8), np.int64)
    with pytest.raises(SettingError, match="batch is 2 in input_ids and 1 in attention_mask"):
        asked(tmp_path, encoder(), own=[(ids, ids[:1])], batch=(1, 2, 4), tokens=8)


def test_a_graph_that_fails_within_its_ranges_is_refused(tmp_path):
    proto = model([("Add", "x w", "y")], {"x": ("FLOAT", ["n"])}, {"y": ("FLOAT", ["n"])}, {"w": noise(4)})
    with pytest.raises(ConversionError) as refused:
        asked(tmp_path, proto, n=(3, 4, 5))
    assert re.search(r"ONNX Runtime fails at \w+ of profile 0 \(x \[\d\]\)", str(refused.value))


def test_random_answers_are_refused(tmp_path):
    proto = model(
        [("RandomNormalLike", "x", "r", {"dtype": TensorProto.FLOAT}), ("Add", "x r", "y")],
        {"x": ("FLOAT", [4])},
        {"y": ("FLOAT", [4])},
    )
    with pytest.raises(ConversionError, match="differently from call to call"):
        asked(tmp_path, proto)


def test_what_onnx_runtime_lacks_is_said(tmp_path):
    proto = model(
        [("MatMul", "x w", "y"), ("Det", "y", "d")],
        {"x": ("FLOAT16", [3, 3])},
        {"d": ("FLOAT16", [])},
        {"w": noise(3, 3).astype(np.float16)},
    )
    (_, _, _, got), *_ = asked(tmp_path, proto).points()  # has no kernel in half precision
    assert np.isfinite(got["d"])
