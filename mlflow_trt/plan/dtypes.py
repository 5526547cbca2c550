"""Every dtype with its names: ours, TensorRT's, Torch-TensorRT's, the protocol's, Triton's.

Imports neither torch nor this package's errors: the child process that builds without a GPU reads it too, and has no
time for MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Dtype:
    """A dtype: what it is called where, and how numpy holds it. None: it is unknown there."""

    name: str
    """Ours, numpy's and torch's: ``"bfloat16"``."""
    storage: np.dtype | None = None
    """Holds its bits; None: it is found inside an engine alone."""
    tensorrt: str | None = None
    """``tensorrt.DataType``'s member."""
    torch_tensorrt: str | None = None
    """``torch_tensorrt.dtype``'s member."""
    torch_alias: str | None = None
    """The other name that torch has for it."""
    precision: str | None = None
    """The precision of a network that computes in it."""
    protocol: str | None = None
    """The Open Inference Protocol's datatype."""
    contents: str | None = None
    """The field of its ``InferTensorContents``; None: gRPC has it as raw data alone."""
    triton: str | None = None
    """The name in Triton's model configuration, where its TensorRT backend takes it (Triton's documentation,
    "Datatypes")."""
    onnx: str | None = None
    """``onnx.TensorProto.DataType``'s member."""
    tensor: bool = True
    """Whether a model's inputs and outputs may have it."""
    caller: str | None = None
    """What callers give and get instead, where numpy lacks it."""
    wider: str | None = None
    """Where no engine takes it: the one to convert it to."""


# fmt: off
TABLE = (
    Dtype("bool", np.dtype(np.bool_), tensorrt="BOOL", torch_tensorrt="b",
          protocol="BOOL", contents="bool_contents", triton="TYPE_BOOL", onnx="BOOL"),
    Dtype("int8", np.dtype(np.int8), tensorrt="INT8", torch_tensorrt="i8",
          protocol="INT8", contents="int_contents", triton="TYPE_INT8", onnx="INT8"),
    Dtype("uint8", np.dtype(np.uint8), tensorrt="UINT8", torch_tensorrt="u8",
          protocol="UINT8", contents="uint_contents", triton="TYPE_UINT8", onnx="UINT8"),
    Dtype("int32", np.dtype(np.int32), tensorrt="INT32", torch_tensorrt="i32", torch_alias="int",
          protocol="INT32", contents="int_contents", triton="TYPE_INT32", onnx="INT32"),
    Dtype("int64", np.dtype(np.int64), tensorrt="INT64", torch_tensorrt="i64", torch_alias="long",
          protocol="INT64", contents="int64_contents", triton="TYPE_INT64", onnx="INT64"),
    Dtype("float16", np.dtype(np.float16), tensorrt="HALF", torch_tensorrt="f16", torch_alias="half",
          precision="fp16", protocol="FP16", triton="TYPE_FP16", onnx="FLOAT16"),
    Dtype("bfloat16", np.dtype(np.uint16), tensorrt="BF16", torch_tensorrt="bf16",
          precision="bf16", protocol="BF16", triton="TYPE_BF16", caller="float32", onnx="BFLOAT16"),
    Dtype("float32", np.dtype(np.float32), tensorrt="FLOAT", torch_tensorrt="f32", torch_alias="float",
          precision="fp32", protocol="FP32", contents="fp32_contents", triton="TYPE_FP32", onnx="FLOAT"),
    Dtype("float64", np.dtype(np.float64), torch_tensorrt="f64", torch_alias="double",
          protocol="FP64", contents="fp64_contents", onnx="DOUBLE"),
    # The protocol's, which no engine takes.
    Dtype("int16", np.dtype(np.int16), protocol="INT16", contents="int_contents",
          tensor=False, wider="int32", onnx="INT16"),
    Dtype("uint16", np.dtype(np.uint16), protocol="UINT16", contents="uint_contents",
          tensor=False, wider="int32", onnx="UINT16"),
    Dtype("uint32", np.dtype(np.uint32), protocol="UINT32", contents="uint_contents",
          tensor=False, wider="int64", onnx="UINT32"),
    Dtype("uint64", np.dtype(np.uint64), protocol="UINT64", contents="uint64_contents",
          tensor=False, wider="int64", onnx="UINT64"),
    Dtype("object", np.dtype(np.object_), protocol="BYTES", contents="bytes_contents", tensor=False),
    # Inside engines alone.
    Dtype("float8", tensorrt="FP8", tensor=False, onnx="FLOAT8E4M3FN"),
    Dtype("int4", tensorrt="INT4", tensor=False, onnx="INT4"),
    Dtype("float4", tensorrt="FP4", tensor=False, onnx="FLOAT4E2M1"),
    Dtype("float8_e8m0", tensorrt="E8M0", tensor=False, onnx="FLOAT8E8M0"),
)
# fmt: on
"""Every dtype, one a row: nothing else in this package has a table of their names."""

STORAGE = {d.name: d.storage for d in TABLE if d.tensor and d.storage is not None}
"""A binding's dtype → the numpy dtype that holds its bits."""

CALLERS = {d.name: d.caller or d.name for d in TABLE if d.tensor}
"""A binding's dtype → the one that callers give and get."""

TENSORRT = {d.tensorrt: d.name for d in TABLE if d.tensorrt}
"""``tensorrt.DataType``'s members → our names."""

ONNX = {d.onnx: d.name for d in TABLE if d.onnx}
"""``onnx.TensorProto.DataType``'s members → our names."""

WIDER = {d.name: d.wider for d in TABLE if d.wider}
"""A dtype that no engine takes → the one to convert it to."""

DTYPE_OF = {"tf32": "float32", **{d.precision: d.name for d in TABLE if d.precision}}
"""A network's precision → the dtype that it computes in. TF32 is float32 with fewer bits in matrix products."""

PRECISION_OF = {d.name: d.precision for d in TABLE if d.precision}
"""The dtype that a network computes in → its precision."""

_TORCH_ALIASES = {d.torch_alias: d.name for d in TABLE if d.torch_alias}
_TORCH_TENSORRT = {d.torch_tensorrt: d.name for d in TABLE if d.torch_tensorrt}


def torch_name(name: str) -> str:
    """Returns the plain name for one of torch's others, ``"half"``; any other as it is."""
    return _TORCH_ALIASES.get(name, name)


def torch_tensorrt_name(name: str) -> str:
    """Returns our name for Torch-TensorRT's, ``"f16"``; any other as it is."""
    return _TORCH_TENSORRT.get(name, name)


def tensorrt_name(name: str) -> str:
    """Returns our name for a member of TensorRT's ``DataType``; any other in lower case."""
    return TENSORRT.get(name.upper(), name.lower())
