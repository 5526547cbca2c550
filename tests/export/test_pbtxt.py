"""The text format, as the reader of Protocol Buffers takes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.export import pbtxt

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
text_format = pytest.importorskip("google.protobuf.text_format")


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.text(st.characters(exclude_categories=["Cs"]))
)
def test_any_string_survives_the_text_format(name, binding):
    text = pbtxt.dumps({"name": name, "input": [{"name": binding, "dims": [1, -1]}], "max_batch_size": 3})
    config = text_format.Parse(text, pb.ModelConfig())

    assert text.isascii()
    assert config == pb.ModelConfig(name=name, input=[pb.ModelInput(name=binding, dims=[1, -1])], max_batch_size=3)


def test_every_kind_of_value_in_the_text_format():
    message = {
        "name": 'a "b"\\\n\x00é',
        "input": [{"name": "x", "is_shape_tensor": True, "optional": False}],
        "instance_group": [{"kind": pbtxt.Name("KIND_GPU"), "gpus": [], "profile": ["0", "1"]}],
        "output": [],
    }

    assert text_format.Parse(pbtxt.dumps(message), pb.ModelConfig()) == pb.ModelConfig(
        name='a "b"\\\n\x00é',
        input=[pb.ModelInput(name="x", is_shape_tensor=True)],
        instance_group=[pb.ModelInstanceGroup(kind="KIND_GPU", profile=["0", "1"])],
    )
    assert pbtxt.dumps(message).splitlines()[1:4] == ["input {", '  name: "x"', "  is_shape_tensor: true"]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({}, ""),
        ({"dims": []}, ""),
        ({"dims": [1, -1]}, "dims: [1, -1]\n"),
        ({"flag": False}, "flag: false\n"),  # not left out: a field may be true by default
        ({"kind": pbtxt.Name("KIND_GPU")}, "kind: KIND_GPU\n"),
        ({"a": {"b": {"c": 1}}}, "a {\n  b {\n    c: 1\n  }\n}\n"),
        ({"a": [{"b": 1}, {"b": 2}]}, "a {\n  b: 1\n}\na {\n  b: 2\n}\n"),
        ({"a": {}}, "a {\n}\n"),
    ],
)
def test_how_it_is_written(message, text):
    assert pbtxt.dumps(message) == text
