"""Bytes to requests and answers to bytes, against protobuf itself and the stubs that NVIDIA's client brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_trt.plan.casts import to_bfloat16
from mlflow_trt.plan.manifest import Interface
from mlflow_trt.serving.protocol import protobuf
from mlflow_trt.serving.protocol.datatypes import DATATYPES, NAMES
from mlflow_trt.serving.protocol.inference_request import InferenceRequest, RequestedOutput
from mlflow_trt.serving.protocol.json_body import ProtocolError
from mlflow_trt.serving.protocol.protobuf import ModelInferRequest, ModelInferResponse

from ..echo import interface

PROTO = Path(protobuf.__file__).with_name("open_inference.proto")


def described(descriptor: Any) -> DescriptorProto:
    """All of a message that decides how it travels."""

    def without_json_names(message: DescriptorProto) -> DescriptorProto:
        for field in message.field:  # protoc writes them or not, depending on what for
            field.ClearField("json_name")
        for nested in message.nested_type:
            without_json_names(nested)
        return message

    found = DescriptorProto()
    descriptor.CopyToProto(found)
    return without_json_names(found)


def filled(fields: dict[str, Any]) -> dict[str, Any]:
    """A message's fields with messages in its maps, where protobuf before 5 takes no dict."""
    parameter = protobuf.message("InferParameter")
    made: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "parameters":
            made[name] = {key: parameter(**each) for key, each in value.items()}
        elif name in ("inputs", "outputs"):
            made[name] = [filled(each) for each in value]
        else:
            made[name] = value
    return made


def all_messages() -> list[str]:
    methods = protobuf.METHODS.values()
    names = {kind.name for method in methods for kind in (method.input_type, method.output_type)}
    return sorted(names | {"InferParameter", "InferTensorContents"})


@pytest.mark.parametrize("name", all_messages())
def test_messages_are_those_of_tritons_client(name: str) -> None:
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    ours, theirs = protobuf.message(name).DESCRIPTOR, service_pb2.DESCRIPTOR.message_types_by_name[name]
    assert ours is not theirs
    assert ours.full_name == theirs.full_name
    assert described(ours) == described(theirs)


def test_methods_are_those_of_tritons_client() -> None:
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == protobuf.SERVICE
    assert set(protobuf.METHODS) == {
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
    }
    for name, method in protobuf.METHODS.items():
        theirs = service.methods_by_name[name]
        assert method.input_type.full_name == theirs.input_type.full_name
        assert method.output_type.full_name == theirs.output_type.full_name


def test_the_compiled_file_is_that_of_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    made = tmp_path / "made.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", PROTO.parent, "--descriptor_set_out", made, PROTO]
    subprocess.run([str(part) for part in command], check=True)
    assert made.read_bytes() == PROTO.with_suffix(".binpb").read_bytes()


def request(**fields: Any) -> Any:
    """A ModelInferRequest with one FP32 input of two elements, but for what is given."""
    x = {"name": "x", "datatype": "FP32", "shape": [2]}
    raw = [np.float32([1, 2]).tobytes()]
    return ModelInferRequest(**filled({"model_name": "m", "inputs": [x], "raw_input_contents": raw, **fields}))


def read(message: Any) -> InferenceRequest:
    return protobuf.decode(*protobuf.split(message.SerializeToString()))


_PARAMETER = st.one_of(
    st.builds(lambda v: {"bool_param": v}, st.booleans()),
    st.builds(lambda v: {"int64_param": v}, st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda v: {"string_param": v}, st.text(max_size=5)),
)
_PARAMETERS = st.dictionaries(st.text(max_size=5), _PARAMETER, max_size=3)
_INPUT = st.fixed_dictionaries(
    {"name": st.text(max_size=5), "shape": st.lists(st.integers(0, 2**40), max_size=4), "parameters": _PARAMETERS}
)
_SERIALIZED = st.lists(
    # Any of these alone is a message, and so are several one after the other.
    st.one_of(
        st.builds(lambda raw: {"raw_input_contents": raw}, st.lists(st.binary(max_size=300), max_size=3)),
        st.builds(lambda inputs: {"inputs": inputs}, st.lists(_INPUT, max_size=2)),
        st.builds(lambda p: {"parameters": p}, _PARAMETERS),
        st.builds(lambda n: {"model_name": n, "id": n}, st.text(max_size=200)),
    ),
    max_size=6,
).map(lambda parts: b"".join(ModelInferRequest(**filled(part)).SerializeToString() for part in parts))


@settings(derandomize=True, deadline=None)
@given(_SERIALIZED)
def test_a_message_is_split_as_protobuf_reads_it(data: bytes) -> None:
    expected = ModelInferRequest.FromString(data)
    message, raw = protobuf.split(data)
    assert [bytes(item) for item in raw] == list(expected.raw_input_contents)
    del expected.raw_input_contents[:]
    del message.raw_input_contents[:]
    assert message == expected


@settings(max_examples=300, derandomize=True, deadline=None)
@given(_SERIALIZED, st.data())
def test_a_damaged_message_is_refused_where_protobuf_refuses_it(data: bytes, choices: st.DataObject) -> None:
    for _ in range(choices.draw(st.integers(1, 3))):
        start = choices.draw(st.integers(0, len(data)))
        end = choices.draw(st.integers(start, min(len(data), start + 3)))
        data = data[:start] + choices.draw(st.binary(max_size=3)) + data[end:]
    try:
        expected = ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(ProtocolError, match="is not a ModelInferRequest"):
            protobuf.split(data)
        return
    message, raw = protobuf.split(data)
    assert [bytes(item) for item in raw] == list(expected.raw_input_contents)
    assert [item.name for item in message.inputs] == [item.name for item in expected.inputs]


def test_raw_data_is_not_copied() -> None:
    data = request().SerializeToString()
    array = protobuf.decode(*protobuf.split(data)).inputs["x"]
    assert array.tolist() == [1, 2]
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("data", [b"\x3a" + b"\xff" * 100_000, b"\x3a\x80", b"\x3a\x05abc", b"\x08\x01", b"\x3f"])
def test_raw_data_of_impossible_sizes_and_types(data: bytes) -> None:
    try:
        expected = list(ModelInferRequest.FromString(data).raw_input_contents)
    except DecodeError:
        expected = None
    if expected is None:
        with pytest.raises(ProtocolError, match="is not a ModelInferRequest"):
            protobuf.split(data)
    else:
        assert protobuf.split(data)[1] == expected


def test_a_request_in_full() -> None:
    found = read(
        request(
            id="some id",
            parameters={"timeout": {"int64_param": 1_500_000}, "of_ours": {"double_param": 0.5}},
            outputs=[{"name": "b"}, {"name": "a"}],
        )
    )
    assert found.id == "some id"
    assert found.timeout == 1.5
    assert found.datatypes == {"x": "FP32"}
    assert found.outputs is not None
    assert [wanted.name for wanted in found.outputs] == ["b", "a"]
    assert read(request()).outputs is None
    assert read(request()).timeout is None


VALUES = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP32": [0.5, float("inf")],
    "FP64": [0.1, 1e300],
    "BYTES": [b"", b"\xff\x00"],
}
FIELDS = {**dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"), "BOOL": "bool_contents"}
FIELDS |= dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents")


def field(datatype: str) -> str:
    return FIELDS.get(datatype, f"{datatype.lower()}_contents")


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("shape", [[2], [1, 2, 1]])
def test_typed_contents(datatype: str, shape: list[int]) -> None:
    x = {"name": "x", "datatype": datatype, "shape": shape, "contents": {field(datatype): VALUES[datatype]}}
    found = read(request(inputs=[x], raw_input_contents=[])).inputs["x"]
    assert found.dtype == DATATYPES[datatype]
    assert found.shape == tuple(shape)
    assert found.reshape(-1).tolist() == VALUES[datatype]


@pytest.mark.parametrize("datatype", VALUES)
def test_typed_contents_of_no_elements(datatype: str) -> None:
    found = read(request(inputs=[{"name": "x", "datatype": datatype, "shape": [0, 3]}], raw_input_contents=[]))
    assert found.inputs["x"].shape == (0, 3)
    assert found.inputs["x"].dtype == DATATYPES[datatype]


def typed(datatype: str, shape: list[int], **contents: Any) -> dict[str, Any]:
    x = {"name": "x", "datatype": datatype, "shape": shape, "contents": contents}
    return {"inputs": [x], "raw_input_contents": []}


def other(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], **fields}]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "int8 too large": (typed("INT8", [1], int_contents=[128]), "is INT8 and holds 128 to 128"),
    "int16 too small": (typed("INT16", [1], int_contents=[-40000]), "-32768 to 32767"),
    "uint16 too large": (typed("UINT16", [2], uint_contents=[1, 65536]), "holds 1 to 65536"),
    "too few": (typed("FP32", [2, 3], fp32_contents=[1, 2]), r"has 2 fp32_contents.\n.*6 of them"),
    "none": (typed("FP32", [2]), "has 0 fp32_contents"),
    "those of another datatype": (typed("FP32", [2], fp64_contents=[1, 2]), "has 0 fp32_contents, and fp64_contents"),
    "two kinds": (typed("INT64", [1], int64_contents=[1], bytes_contents=[b"a"]), "and bytes_contents"),
    "half precision": (typed("FP16", [1], fp32_contents=[1]), "FP16 and has no raw data"),
    "brain float": (typed("BF16", [1]), "BF16 and has no raw data"),
    "huge shape": (typed("FP32", [2**62, 2**62]), "too large"),
    "negative size": (typed("FP32", [-1], fp32_contents=[1]), "none below 0"),
    "no such datatype": (typed("FP8", [1]), "the datatype 'FP8'"),
    "raw and typed": (other(contents={"fp32_contents": [1, 2]}), "has contents, and the request has raw"),
    "raw size": (other(shape=[3]), r"8 bytes of binary data.\n.*12: FP32 of shape \[3\]"),
    "fewer raw than inputs": ({"inputs": [other()["inputs"][0], {"name": "y"}]}, "2 inputs and 1 raw_input_contents"),
    "more raw than inputs": ({"inputs": []}, "0 inputs and 1 raw_input_contents"),
    "twice": ({"inputs": other()["inputs"] * 2, "raw_input_contents": [b"\0" * 8] * 2}, "'x' is there twice"),
    "output twice": ({"outputs": [{"name": "y"}] * 2}, "Output 'y' is there twice"),
    "shared memory": (other(parameters={"shared_memory_region": {"string_param": "r"}}), "to be in shared memory"),
    "shared memory of an output": (
        {"outputs": [{"name": "y", "parameters": {"shared_memory_region": {"string_param": "r"}}}]},
        "Output 'y' is to be in shared memory",
    ),
    "classification": (
        {"outputs": [{"name": "y", "parameters": {"classification": {"int64_param": 3}}}]},
        "as a classification",
    ),
    "sequence": ({"parameters": {"sequence_id": {"int64_param": 3}}}, "part of a sequence"),
    "timeout": ({"parameters": {"timeout": {"string_param": "soon"}}}, "timeout is 'soon'"),
    "NaN": ({"parameters": {"x": {"double_param": float("nan")}}}, "NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(ProtocolError, match=f"(?s){message}"):
        read(request(**fields))


@pytest.mark.parametrize("part", ["inputs", "outputs", "raw_input_contents", "parameters"])
def test_more_parts_than_anybody_needs(part: str) -> None:
    many: dict[str, Any] = {
        "inputs": [{}] * 5000,
        "outputs": [{}] * 5000,
        "raw_input_contents": [b""] * 5000,
        "parameters": {str(number): {} for number in range(5000)},
    }
    with pytest.raises(ProtocolError, match="too many parts"):
        read(request(**{part: many[part]}))


def answer_of(array: np.ndarray, dtype: str, wanted: tuple[str, ...] | None = None) -> Any:
    outputs = None if wanted is None else tuple(RequestedOutput(name, True) for name in wanted)
    asked = InferenceRequest(id="an id", inputs={}, datatypes={}, outputs=outputs, binary=True, timeout=None)
    data = protobuf.encode(asked, {"x": array}, interface(("x", dtype, dtype)), model="m", version="3")
    return ModelInferResponse.FromString(data)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21])
def test_a_response_of_any_size(size: int) -> None:
    array = np.zeros(size, np.uint8)
    array[-3:] = 7
    response = answer_of(array, "uint8")
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "an id")
    (output,) = response.outputs
    assert (output.name, output.datatype, output.shape) == ("x", "UINT8", [size])
    assert not output.HasField("contents")
    assert response.raw_output_contents == [array.tobytes()]


@pytest.mark.parametrize("dtype", [name for name in NAMES if name != "object"])
def test_a_response_of_every_dtype(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    response = answer_of(array.T, dtype)  # neither contiguous nor in the order that travels
    assert response.outputs[0].shape == [3, 2]
    assert response.raw_output_contents == [array.T.tobytes()]


def test_wanted_outputs_come_in_the_order_they_were_asked_for() -> None:
    both: Interface = interface(("a", "float32", "float32"), ("b", "int64", "int64"))
    answer = {"a": np.float32([1]), "b": np.int64([2])}
    for wanted in (("b", "a"), ("b",), None):
        outputs = None if wanted is None else tuple(RequestedOutput(name, False) for name in wanted)
        asked = InferenceRequest(id="", inputs={}, datatypes={}, outputs=outputs, binary=False, timeout=None)
        data = protobuf.encode(asked, answer, both, model="m", version="1")
        response = ModelInferResponse.FromString(data)
        names = list(wanted or ("a", "b"))
        assert [output.name for output in response.outputs] == names
        assert response.raw_output_contents == [answer[name].tobytes() for name in names]


def test_brain_floats_are_float32_here() -> None:
    values = np.float32([1.5, -2.0])
    x = {"name": "x", "datatype": "BF16", "shape": [2]}
    found = read(request(inputs=[x], raw_input_contents=[to_bfloat16(values).tobytes()]))
    assert found.inputs["x"].dtype == np.float32
    assert found.inputs["x"].tolist() == values.tolist()
    assert found.datatypes == {"x": "BF16"}
