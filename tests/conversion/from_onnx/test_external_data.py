"""Weights that lie beside a model, and places where they must not lie."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_trt.conversion.from_onnx import external_data
from mlflow_trt.conversion.from_onnx.model import loaded, read
from mlflow_trt.errors import ConversionError, SettingError

from .made import linear, model, node

LARGE = 1000
"""Columns of weights that are not read with the model."""


def beside(folder, location="w.bin", columns=3, **entries):
    """A model whose weights of 48 bytes, or large ones, are said to lie somewhere; they lie in w.bin."""
    proto = linear(4, columns)
    tensor = proto.graph.initializer[0]
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(entry))
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


@pytest.mark.parametrize(
    ("location", "entries", "words"),
    [
        ("/etc/passwd", {}, "are said to lie at '/etc/passwd'"),
        ("../w.bin", {}, "are said to lie at '../w.bin'"),
        ("a/../../w.bin", {}, "are said to lie at"),
        ("..\\w.bin", {}, "are said to lie at"),
        ("C:\\w.bin", {}, "are said to lie at"),
        ("", {}, "are said to lie at ''"),
        ("no.bin", {}, "which is missing"),
        (".", {}, "which is missing"),
        ("w.bin", {"offset": 4}, "end at 52 of w.bin, which has 48"),
        ("w.bin", {"offset": -4}, "48 bytes at -4"),
        ("w.bin", {"offset": "four"}, "'four'"),
        ("w.bin", {"length": 40}, "are 40 bytes at 0"),
    ],
)
def test_places_that_are_refused(tmp_path, location, entries, words):
    with pytest.raises(ConversionError, match=words.replace("\\", "\\\\")):
        read(beside(tmp_path, location, **entries))


def test_a_link_may_not_lead_out(tmp_path):
    path = beside(tmp_path / "model", "link.bin", LARGE)
    (tmp_path / "secret").write_bytes(b"0" * 16 * LARGE)
    (path.parent / "link.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ConversionError, match="a link to"):
        read(path)
    (path.parent / "link.bin").unlink()
    (path.parent / "link.bin").symlink_to("w.bin")
    assert read(path).folder == path.parent


def test_links_of_a_cache_lead_to_where_the_model_lies(tmp_path):
    path = beside(tmp_path / "blobs", columns=LARGE)
    (tmp_path / "snapshot").mkdir()
    for file in path.parent.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert loaded(read(tmp_path / "snapshot" / "net.onnx")).graph.initializer[0].raw_data


def test_without_a_folder_there_is_nothing_beside(tmp_path):
    path = beside(tmp_path)
    for source in (path.read_bytes(), onnx.load(str(path), load_external_data=False)):
        with pytest.raises(SettingError, match="came without its folder"):
            read(source)


@pytest.mark.parametrize(("columns", "small"), [(3, True), (LARGE, False)])
def test_a_part_of_a_file_is_read_at_once_if_it_is_small(tmp_path, columns, small):
    path = beside(tmp_path, columns=columns, offset=16, length=16 * columns)
    (tmp_path / "w.bin").write_bytes(b"0" * 16 + (tmp_path / "w.bin").read_bytes() + b"0" * 16)
    assert (read(path).folder is None) is small
    np.testing.assert_array_equal(
        numpy_helper.to_array(loaded(read(path)).graph.initializer[0]).ravel(), np.arange(4 * columns)
    )


def test_a_file_that_became_shorter_since(tmp_path):
    made = read(beside(tmp_path, columns=LARGE))
    (tmp_path / "w.bin").write_bytes(b"0" * 12)
    with pytest.raises(ConversionError, match="which has 12"):
        loaded(made)


def test_constants_and_branches_may_lie_beside_too(tmp_path):
    array = np.ones(64, np.float32)
    branch = helper.make_graph(
        [node("Constant", [], ["z"], value=numpy_helper.from_array(array))], "b", [], [onnx.ValueInfoProto(name="z")]
    )
    proto = model([node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], weights={"c": np.array(True)})
    for tensor in external_data.tensors(proto):
        if tensor.dims:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="c.bin")
    (tmp_path / "c.bin").write_bytes(array.tobytes())
    external_data.check(proto, tmp_path / "net.onnx")
    external_data.load(proto, tmp_path)
    assert [t.raw_data == array.tobytes() for t in external_data.tensors(proto) if t.dims] == [True, True]
