"""What ONNX calls dtypes, and how long their values are: by their names, as numpy's differ from release to release."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING

from ...plan.dtypes import ONNX

if TYPE_CHECKING:
    from onnx import TensorProto, ValueInfoProto


def name_of(number: int) -> str | None:
    """A dtype's name as in :mod:`mlflow_trt.plan.dtypes` (``"float32"``), where it is there; None: onnx knows none."""
    from onnx import TensorProto

    if number not in TensorProto.DataType.values() or number == TensorProto.UNDEFINED:
        return None
    name = str(TensorProto.DataType.Name(number))
    return ONNX.get(name, name.lower())


def kind_of(value: ValueInfoProto) -> str:
    """What a value of a graph is: its dtype, or that it is a sequence, a map and the like."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return _KINDS.get(kind, "of an unknown type")
    return name_of(value.type.tensor_type.elem_type) or "of an unknown dtype"


_KINDS = {
    "sequence_type": "a sequence",
    "map_type": "a map",
    "optional_type": "an optional",
    "sparse_tensor_type": "a sparse tensor",
}


def bits(number: int) -> int:
    """How many bits a number of a dtype has; a string has none."""
    name = name_of(number) or ""
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 8 * (name == "bool")


def size(tensor: TensorProto) -> int:
    """How many bytes a tensor's values are, raw: those of less than a byte lie several in one."""
    return -(-int(prod(tensor.dims)) * bits(tensor.data_type) // 8)


def entries(tensor: TensorProto) -> int:
    """How many entries a tensor's values are in the field for their dtype, where they are not raw."""
    count = int(prod(tensor.dims))
    if bits(tensor.data_type) < 8:
        return size(tensor)
    return 2 * count if (name_of(tensor.data_type) or "").startswith("complex") else count
