"""Requests, responses and interfaces for tests of the protocol: written by hand, and by NVIDIA's client."""

from __future__ import annotations

import json

import tritonclient.http as triton

from mlflow_trt.plan.manifest import Branch, Interface, Tensor
from mlflow_trt.serving.protocol.inference_request import InferenceRequest
from mlflow_trt.serving.protocol.json_body import encode

EIGHT = b"\0" * 8
"""The raw data of two FP32 zeros."""


def client_input(name, array, datatype, binary=True):
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def client_request(inputs, outputs=None, **options):
    return triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs, **options)


def client_result(encoded):
    text = b"".join(encoded.parts)
    return triton.InferenceServerClient.parse_response_body(text, header_length=encoded.header_length)


def received(encoded, name):
    """An output as the client gives it; of BYTES in JSON it gives strings."""
    array = client_result(encoded).as_numpy(name)
    if array.dtype == object:
        array.flat = [item.encode() if isinstance(item, str) else item for item in array.flat]
    return array


def tensor(name, dtype="float32", binding_dtype=None, shape=("batch",)):
    return Tensor(name=name, binding=name, dtype=dtype, binding_dtype=binding_dtype or dtype, shape=shape)


def interface(inputs=(), outputs=()):
    branch = Branch(kind="tuple", items=())
    return Interface(inputs=tuple(inputs), outputs=tuple(outputs), arguments=branch, result=branch)


def asking(outputs=None, binary=True, id=""):
    return InferenceRequest(id=id, inputs={}, datatypes={}, outputs=outputs, binary=binary, timeout=None)


def answered(outputs, request):
    """The response that gives these arrays, to a client."""
    tensors = [tensor(name, array.dtype.name) for name, array in outputs.items()]
    return encode(request, outputs, interface(outputs=tensors), model="m", version="7")


def body(*inputs, **more):
    return json.dumps({"inputs": list(inputs), **more}).encode()


def entry(**changes):
    return {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **changes}


def raw_entry(size, **changes):
    changed = entry(parameters={"binary_data_size": size}, **changes)
    del changed["data"]
    return changed


def with_raw(raw, *inputs, length=0, **more):
    text = body(*inputs, **more)
    return text + raw, len(text) + length


def same(found, expected):
    """Asserts that two arrays are, bit for bit."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype == object:
        assert found.tolist() == expected.tolist()
    else:
        assert found.tobytes() == expected.tobytes()  # -0.0 and NaN too
