"""What is given as a model in ONNX and is none."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest

from mlflow_trt.conversion.from_onnx import parsing
from mlflow_trt.conversion.from_onnx.parsing import parse
from mlflow_trt.errors import ConversionError, SettingError

from .made import linear

STRANGERS = {
    "empty": b"",
    "an HTML or XML page": b"<!DOCTYPE html><html>404",
    "a zip archive": b"PK\x03\x04" + b"\0" * 200,
    "a pickle": pickle.dumps({"a": 1}),
    "compressed": gzip.compress(b"a model"),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n",
    "a JSON file": b'{"error": 1}',
    "a text file": b"no such bucket",
    "only zeros": b"\0" * 2000,
    "a safetensors file": (20).to_bytes(8, "little") + b'{"a":{}}            ',
    "a TensorRT engine already": b"vtrt" + b"\0" * 100,
    "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "begins with": np.random.default_rng(0).bytes(500),
}


@pytest.mark.parametrize(("what", "content"), STRANGERS.items(), ids=STRANGERS)
def test_another_kind_of_file_is_named(what, content, tmp_path):
    (tmp_path / "net.onnx").write_bytes(content)
    for source, name in ((content, "The model"), (tmp_path / "net.onnx", str(tmp_path / "net.onnx"))):
        with pytest.raises(ConversionError, match=f"^{name} .*{what}") as caught:
            parse(source)
        assert "a model in ONNX" in caught.value.expected
        assert "engine inside" not in caught.value.remedy


def test_a_model_that_was_cut_is_not_whole():
    content = linear(16, 64).SerializeToString()
    for end in range(3, len(content) - 8, 97):
        with pytest.raises(ConversionError, match=rf"damaged or was cut short: it ends after {end:,} bytes"):
            parse(content[:end])


def test_where_nothing_is(tmp_path):
    with pytest.raises(SettingError, match="does not exist"):
        parse(tmp_path / "no.onnx")
    with pytest.raises(SettingError, match="is a folder") as caught:
        parse(tmp_path)
    assert "a.onnx" not in str(caught.value)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(SettingError, match=r"is a folder, which holds a.onnx"):
        parse(str(tmp_path))
    with pytest.raises(SettingError, match="as int"):
        parse(42)


def test_a_file_that_protobuf_can_not_parse_for_its_size(tmp_path):
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(parsing.MOST + 1)
    with pytest.raises(ConversionError, match="2,147,483,648 bytes") as caught:
        parse(tmp_path / "large.onnx")
    assert "save_as_external_data=True" in caught.value.remedy


def test_a_proto_without_a_graph():
    empty = linear()
    empty.ClearField("graph")
    with pytest.raises(ConversionError, match="it has no graph"):
        parse(empty)
