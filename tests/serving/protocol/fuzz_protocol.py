"""Fuzzes the protocol's codec: decode, fit, encode and back, on bytes that libFuzzer makes up (Linux, atheris).

In this folder (the first keeps what it finds in NEW, the second the fewest of these that reach as much):

    python fuzz_protocol.py -max_total_time=60 NEW corpus
    python fuzz_protocol.py -set_cover_merge=1 -use_counters=0 SMALL NEW

A file of the corpus is a byte that picks the interface, four bytes of header length (little-endian, -1: none), and the
body. Whatever they are, nothing but the codec's own errors may come out; and what is taken must survive the way back.
"""

from __future__ import annotations

import json
import random
import shlex
import struct
import sys
from typing import Any

import numpy as np

START = struct.Struct("<Bi")


def run(data: bytes) -> str:
    """One execution. Returns how far the request came."""
    from mlflow_trt.errors import InputError
    from mlflow_trt.serving.protocol import json_body
    from mlflow_trt.serving.protocol.inference_request import fit

    if len(data) < START.size:
        return "too short"
    which, length = START.unpack_from(data)
    body, interface = data[START.size :], INTERFACES[which % len(INTERFACES)]
    try:
        request = json_body.decode(body, None if length == -1 else length)
    except json_body.ProtocolError as error:
        return refused("decode", error)
    try:
        inputs = fit(request, interface)
    except (json_body.ProtocolError, InputError) as error:
        return refused("fit", error)
    try:
        response = json_body.encode(request, inputs, interface, model="m", version="1")
    except json_body.ProtocolError as error:
        return refused("encode", error)
    check_echo(request, inputs, response)
    return "answered"


def refused(where: str, error: Any) -> str:
    """Errors have all their parts, are short, and can be sent."""
    from mlflow_trt.serving.protocol import json_body

    assert all((error.found, error.expected, error.remedy))
    assert len(str(error)) < 2000
    assert error.get_http_status_code() == 400
    assert json.loads(json_body.error_body(str(error))) == {"error": str(error)}
    str(error).encode()
    return where


def check_echo(request: Any, inputs: dict[str, np.ndarray], response: Any) -> None:
    """The model answered with its inputs: the response, read as a request, holds them again."""
    from mlflow_trt.serving.protocol import json_body

    body = b"".join(response.parts)
    header = json.loads(body[: response.header_length], parse_constant=lambda word: 1 / 0)
    assert header.get("id", "") == request.id
    "".join([request.id, *inputs]).encode()
    assert (header["model_name"], header["model_version"]) == ("m", "1")
    wanted = list(inputs) if request.outputs is None else [output.name for output in request.outputs]
    assert [output["name"] for output in header["outputs"]] == wanted
    floats = [output.get("data", ()) for output in header["outputs"] if output["datatype"].startswith(("FP", "BF"))]
    if any(type(value) is str for data in floats for value in data):
        return  # in a response's JSON NaN is a string, which no request may hold
    text = json.dumps({"inputs": header["outputs"]}).encode()
    length = None if response.header_length is None else len(text)
    again = json_body.decode(text + b"".join(response.parts[1:]), length)
    for name in wanted:
        assert again.inputs[name].shape == inputs[name].shape
        assert again.inputs[name].dtype == inputs[name].dtype
        assert again.inputs[name].tolist() == inputs[name].tolist() or again.inputs[name].dtype.kind == "f"
        if again.inputs[name].dtype != object:
            assert again.inputs[name].tobytes() == inputs[name].tobytes()


def interface(*tensors: tuple[str, str, str]) -> Any:
    from mlflow_trt.plan.manifest import Branch, Interface, Tensor

    branch = Branch(kind="tuple", items=())
    named = tuple(
        Tensor(name=name, binding=name, dtype=dtype, binding_dtype=binding, shape=("batch",))
        for name, dtype, binding in tensors
    )
    return Interface(inputs=named, outputs=named, arguments=branch, result=branch)


INTERFACES = (
    interface(("x", "float32", "float32")),
    interface(("h", "float32", "float16"), ("b", "float32", "bfloat16"), ("d", "float64", "float32")),
    interface(("i", "int64", "int32"), ("m", "bool", "bool"), ("u", "uint8", "uint8")),
    interface(("s", "object", "object"), ("f", "float16", "float16"), ("w", "uint64", "uint64")),
)

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 4, 8, 2**31, 2**63, 2**64, 10**400, 0.5, 1e39, -0.0),
    *("", "x", "\0", "\ud800", "FP32", "FP16", "BF16", "FP64", "INT64", "UINT64", "UINT8", "BOOL", "BYTES"),
    *([], [[]], [1], [[1], [2]], [0, 2**62], ["a", "é"], [True]),
    *({}, {"binary_data": True}, {"binary_data_size": 4}),
]
KEYS = [
    *("id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "other"),
    *("binary_data_size", "binary_data", "binary_data_output", "timeout"),
    *("classification", "sequence_id", "shared_memory_region"),
]


def seeds() -> list[bytes]:
    """Valid requests, as files of the corpus: every interface, in JSON and in binary."""
    return [seed(which, form) for which in range(len(INTERFACES)) for form in ("flat", "nested", "binary")]


def seed(which: int, form: str) -> bytes:
    from mlflow_trt.serving.protocol.datatypes import DATATYPES, NAMES

    entries, raw = [], b""
    for tensor in INTERFACES[which].inputs:
        datatype = NAMES[tensor.dtype]
        entry: dict[str, Any] = {"name": tensor.name, "shape": [2], "datatype": datatype}
        values: list[Any] = {"b": [True, False], "O": ["a", "é"]}.get(DATATYPES[datatype].kind, [1, 2])
        if form == "binary":
            data = np.array(values, DATATYPES[datatype]).tobytes()
            data = b"\1\0\0\0a\2\0\0\0\xc3\xa9" if datatype == "BYTES" else data
            entry["parameters"] = {"binary_data_size": len(data)}
            raw += data
        else:
            entry.update({"data": values} if form == "flat" else {"shape": [1, 2, 1], "data": [[[v] for v in values]]})
        entries.append(entry)
    header: dict[str, Any] = {"id": "1", "inputs": entries, "parameters": {"timeout": 1000, "binary_data_output": True}}
    if form != "binary":
        header["outputs"] = [{"name": entries[0]["name"], "parameters": {"binary_data": form == "flat"}}]
    return pack(which, header, raw)


def pack(which: int, header: Any, raw: bytes) -> bytes:
    text = json.dumps(header).encode()
    return START.pack(which, len(text) if raw else -1) + text + raw


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Half of the time changes the JSON as JSON, which random bytes hardly ever do; else as libFuzzer does."""
    import atheris

    rng = random.Random(seed)
    if rng.random() < 0.5 or len(data) < START.size:
        return atheris.Mutate(data, most)
    which, length = START.unpack_from(data)
    body = data[START.size :]
    cut = len(body) if length < 0 else length
    try:
        header = json.loads(body[:cut])
    except (ValueError, RecursionError):
        return atheris.Mutate(data, most)
    for _ in range(rng.randint(1, 3)):
        header = mutate_json(header, rng)
    raw = body[cut:]
    if rng.random() < 0.2:
        raw = atheris.Mutate(raw or b"\0", 64)
    return pack(which, header, raw)[:most]


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Changes one place of a JSON value, deep places as likely as shallow ones."""
    if isinstance(value, dict) and rng.random() < 0.9:
        if not value or rng.random() < 0.1:
            return {**value, rng.choice(KEYS): rng.choice(VALUES)}
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate_json(value[key], rng)}
    if isinstance(value, list) and rng.random() < 0.9:
        if not value or rng.random() < 0.1:
            return [*value, rng.choice(VALUES)]
        place = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:place] + value[place + 1 :] + value[place : place + 1] * rng.randint(0, 2)
        return [*value[:place], mutate_json(value[place], rng), *value[place + 1 :]]
    return rng.choice(VALUES)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["mlflow_trt.serving", "mlflow_trt.plan.dtypes"]):
        import mlflow_trt.serving.protocol.json_body  # noqa: F401

    # To merge, libFuzzer starts its own first argument again, as a shell's command.
    command = shlex.join([sys.executable, sys.argv[0]])
    atheris.Setup([command, *sys.argv[1:]], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
