"""Names and shapes of outputs are what the graph really answers, whatever it declares."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

import numpy as np
from onnx import TensorProto

from mlflow_trt.conversion.from_onnx import golden, inputs, interface, values
from mlflow_trt.conversion.from_onnx.model import read, write
from mlflow_trt.errors import SettingError

from .networks import encoder, model, perceptron


def described(folder, proto, names=None, **dims):
    one = read(proto)
    fed = inputs.describe(one, dims=dims or None)
    asked = golden.compute(write(one, folder), fed, values.roles(one.proto))
    return interface.describe(one, fed, asked, interface.output_names(one, names), [])


def test_a_model_of_one_input_and_output_is_called_with_an_array(tmp_path):
    made = described(tmp_path, perceptron(), batch=(1, 4, 8))
    assert made.outputs[0].shape == ("batch", 3)
    assert made.result.kind == "tensor"
    assert [item.kind for item in made.arguments.items[0].items] == ["tensor"]


def test_several_are_called_and_answer_by_name(tmp_path):
    made = described(tmp_path, encoder(), ["mean", "all"], batch=(1, 2, 4), tokens=(2, 8, 16))
    assert [(o.name, o.binding, o.shape) for o in made.outputs] == [
        ("mean", "pooled", ("batch", 16)),
        ("all", "states", ("batch", "tokens", 16)),
    ]
    assert made.result.keys == ("mean", "all")
    assert made.arguments.items[1].keys == ("input_ids", "attention_mask")


def test_shapes_are_told_from_answers_where_the_graph_declares_none_or_wrong_ones(tmp_path):
    proto = model(
        [
            ("Concat", "x x", "twice", {"axis": 0}),
            ("Concat", "x one", "more", {"axis": 0}),
            ("Shape", "x", "shape"),
            ("NonZero", "x", "found"),
        ],
        {"x": ("FLOAT", ["n", 4])},
        {"twice": ("FLOAT", None), "more": ("FLOAT", [7, 4]), "shape": ("INT64", None), "found": ("INT64", None)},
        {"one": np.zeros((1, 4), np.float32)},
    )
    shapes = {o.name: o.shape for o in described(tmp_path, proto, n=(1, 3, 6)).outputs}
    assert shapes["twice"] == ("2*n", 4)
    assert shapes["more"] == ("n + 1", 4)
    assert shapes["shape"] == (2,)
    assert shapes["found"][0] == 2


def test_a_size_that_depends_on_the_data_has_a_name_of_its_own(tmp_path):
    proto = model(
        [("Cast", "x", "b", {"to": TensorProto.BOOL}), ("Compress", "w b", "y")],
        {"x": ("INT64", ["n"])},
        {"y": ("FLOAT", None)},
        {"w": np.arange(32, dtype=np.float32)},
    )
    made = described(tmp_path, proto, n=(4, 16, 32))
    assert made.outputs[0].shape == ("u0",)


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_every_output_gets_a_name_of_its_own(names):
    with pytest.raises(SettingError, match="the graph's outputs are pooled, states"):
        interface.output_names(read(encoder()), names)
