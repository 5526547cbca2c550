"""A model in ONNX, read and written."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mlflow_trt.conversion.from_onnx import external_data
from mlflow_trt.conversion.from_onnx.model import GraphTensor, OnnxModel, external_files, fixed, loaded, read, write
from mlflow_trt.errors import ConversionError, SettingError

from .made import answers, linear, model, node, rows, value


def saved_beside(folder, name="a.onnx", location="a.bin"):
    onnx.save(linear(4, 1000), folder / name, save_as_external_data=True, location=location, size_threshold=0)
    return folder / name


def test_each_source_is_read(tmp_path):
    onnx.save(linear(), tmp_path / "linear.onnx")
    path = tmp_path / "linear.onnx"
    for source in (linear(), linear().SerializeToString(), path, str(path)):
        made = read(source)
        assert made.inputs == (GraphTensor("x", "float32", ("batch", 4)),)
        assert made.outputs == (GraphTensor("y", "float32", ("batch", 4)),)
        assert made.folder is None


def test_what_is_read_shares_nothing_with_what_was_given():
    given = model([node("Relu", ["x"], ["y"])], [value("x", (-1, 4))])
    before = given.SerializeToString()
    made = read(given)
    made.proto.graph.node[0].op_type = "Neg"
    fixed(read(given), {"x": (2, 4)})
    assert given.SerializeToString() == before


def test_weights_with_a_default_are_no_inputs_and_minus_one_is_no_size():
    proto = model(
        [node("Add", ["x", "w"], ["y"])], [value("x", (-1, None, "n", 3)), value("w", (3,))], ["y"], {"w": rows(3)}
    )
    assert read(proto).inputs == (GraphTensor("x", "float32", (None, None, "n", 3)),)


def test_names_stay_as_they_are():
    names = ("serving_default_x:0", "input.1", "a/b;c d")
    proto = model([node("Sum", names, ["y:0"])], names, ["y:0"])
    assert tuple(i.name for i in read(proto).inputs) == names


def test_weights_in_a_file_of_their_own_are_loaded_and_written(tmp_path):
    made = read(saved_beside(tmp_path, location="job.json"))
    assert external_files(made) == {"job.json"}
    weights = linear(4, 1000).graph.initializer[0]
    np.testing.assert_array_equal(
        numpy_helper.to_array(loaded(made).graph.initializer[0]), numpy_helper.to_array(weights)
    )
    assert made.proto.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    (tmp_path / "elsewhere").mkdir()
    path = write(made, tmp_path / "elsewhere")
    assert all(file.name.startswith(path.name) for file in path.parent.iterdir())
    assert len([*path.parent.iterdir()]) == 2
    again = read(path)
    assert loaded(again).graph.initializer[0].raw_data == weights.raw_data


def test_weights_that_are_too_large_together_are_written_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(external_data, "MOST_WITHIN", 4000)
    monkeypatch.setattr("mlflow_trt.conversion.from_onnx.skeleton.SMALL", 4)
    shapes = {"a": (3, 333), "b": (1, 5), "c": (5, 7), "d": (2, 2)}
    proto = model([node("Identity", ["x"], ["y"])], weights={name: rows(*shape) for name, shape in shapes.items()})
    path = write(OnnxModel(proto), tmp_path)
    assert path.stat().st_size < 1000
    written = onnx.load(str(path), load_external_data=False)
    assert [bool(t.raw_data) for t in written.graph.initializer] == [False, False, False, True]
    for tensor, own in zip(loaded(read(path)).graph.initializer, proto.graph.initializer):
        assert (tensor.name, tensor.dims, tensor.raw_data) == (own.name, own.dims, own.raw_data)


def test_more_than_two_gigabytes_are_read_without_being_loaded(tmp_path):
    path = tmp_path / "large.onnx"
    proto = linear(4, 4)
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].dims[:] = [4, 150_000_000]
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="large.bin")
    path.write_bytes(proto.SerializeToString())
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(2_400_000_000)
    code = f"""
from pathlib import Path
from mlflow_trt.conversion.from_onnx.model import fixed, read
from mlflow_trt.conversion.from_onnx.plain import plain
made = plain(fixed(read({str(path)!r}), {{"x": (8, None)}}))
assert made.inputs[0].shape == (8, 4)
(line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(line.split()[1]) >> 10)  # unlike ru_maxrss, not that of the process that this one was forked from
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000, "MB"
    with (tmp_path / "large.bin").open("r+b") as file:
        file.truncate(2_300_000_000)
    with pytest.raises(ConversionError, match="which has 2,300,000,000"):
        read(path)


def test_reading_needs_no_torch():
    code = """
import sys
from mlflow_trt.conversion.from_onnx import plain
from mlflow_trt.conversion.from_onnx.model import read
from onnx import parser
text = '<ir_version: 9, opset_import: ["": 18]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
plain.plain(read(parser.parse_model(text)))
print([name for name in ("torch", "torch_tensorrt", "onnxruntime") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_is_fixed_wherever_it_stands():
    inputs = [value("x", ("batch", "length", 4)), value("z", ("batch", 1, None))]
    proto = model([node("Add", ["x", "z"], ["y"])], inputs, [value("y", ("batch", "length", 4))])
    made = fixed(read(proto), {"x": (2, None, 4)})
    assert [i.shape for i in (*made.inputs, *made.outputs)] == [(2, "length", 4), (2, 1, None), (2, "length", 4)]
    made = fixed(made, {"x": (None, 3, None), "z": (None, None, 4)})
    assert [i.shape for i in (*made.inputs, *made.outputs)] == [(2, 3, 4), (2, 1, 4), (2, 3, 4)]
    got = answers(made.proto, x=rows(2, 3, 4), z=rows(2, 1, 4))["y"]
    np.testing.assert_array_equal(got, rows(2, 3, 4) + rows(2, 1, 4))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"x": (2,)}, "has 2 dimensions, and 1 sizes"),
        ({"q": (2, 4)}, "q is not there"),
        ({"x": (2, 5)}, "Dimension 1 of the input x is 4, and 5"),
        ({"x": (2, 4), "z": (3, 4)}, r"Dimension 0 of the input z \(batch\) is 2, and 3"),
    ],
)
def test_sizes_that_the_graph_has_not_are_refused(sizes, words):
    made = read(model([node("Add", ["x", "z"], ["y"])], ["x", "z"]))
    with pytest.raises(SettingError, match=words):
        fixed(made, sizes)
