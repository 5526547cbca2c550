"""Each operator of scikit-learn's that standard ones replace, and how: as ONNX Runtime computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .inference import sizes
from .writer import Writer

if TYPE_CHECKING:
    from onnx import NodeProto, TypeProto

Attributes = Mapping[str, Any]
Types = Mapping[str, "TypeProto"]


class NotKnown(Exception):
    """An operator in a form that is not written out; it says in which."""


def _scaler(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    shifted = writer.write("Sub", _float(writer, node.input[0]), writer.constant(own.get("offset", [0.0])))
    writer.write("Mul", shifted, writer.constant(own.get("scale", [1.0])), out=node.output[0])


def _normalizer(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    if len(sizes(types, node.input[0]) or ()) != 2:
        raise NotKnown("its input is not known to be a table of samples")
    from onnx import TensorProto

    norm, value = own.get("norm", b"MAX"), _float(writer, node.input[0])
    length = writer.write(_NORMS[norm], value, axes=[1], keepdims=1)
    # A row of zeros stays.
    any_ = writer.write("Cast", length, to=TensorProto.BOOL)
    divisor = writer.write("Where", any_, length, writer.constant(np.array(1, np.float32)))
    writer.write("Div", value, divisor, out=node.output[0])


_NORMS = {b"MAX": "ReduceMax", b"L1": "ReduceL1", b"L2": "ReduceL2"}


def _binarizer(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    threshold = writer.constant(np.array(own.get("threshold", 0.0), np.float32))
    above = writer.write("Greater", _float(writer, node.input[0]), threshold)
    _float(writer, above, node.output[0])


def _imputer(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    if "imputed_value_floats" not in own:
        raise NotKnown("it fills in integers")
    replaced = np.array(own.get("replaced_value_float", 0.0), np.float32)
    value = node.input[0]
    missing = (
        writer.write("IsNaN", value) if np.isnan(replaced) else writer.write("Equal", value, writer.constant(replaced))
    )
    writer.write("Where", missing, writer.constant(own["imputed_value_floats"]), value, out=node.output[0])


def _linear_regressor(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    scores = _scores(node, own, writer, int(own.get("targets", 1)))
    _transformed(own, writer, scores, node.output[0])


def _linear_classifier(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    names, numbers = own.get("classlabels_strings", []), own.get("classlabels_ints", [])
    rows = len(own.get("intercepts", [])) or max(len(names), len(numbers))
    if rows < 2:
        raise NotKnown("it has the scores of one class alone")
    label, probabilities = node.output[0], node.output[1] if len(node.output) > 1 else ""
    scores = _scores(node, own, writer, rows)
    if probabilities:
        _transformed(own, writer, scores, probabilities)
    if label and not names:
        best = writer.write("ArgMax", scores, axis=1, keepdims=0)
        writer.write("Gather", writer.constant(np.array(numbers, np.int64)), best, axis=0, out=label)


def _scores(node: NodeProto, own: Attributes, writer: Writer, rows: int) -> str:
    weights = np.array(own["coefficients"], np.float32).reshape(rows, -1)
    bias = writer.constant(own.get("intercepts") or [0.0] * rows)
    return writer.write("Gemm", _float(writer, node.input[0]), writer.constant(weights), bias, transB=1)


def _transformed(own: Attributes, writer: Writer, scores: str, out: str) -> None:
    transform = own.get("post_transform", b"NONE")
    if transform not in _TRANSFORMS:
        raise NotKnown(f"its post_transform is {transform.decode()}")
    operator, settings = _TRANSFORMS[transform]
    writer.write(operator, scores, out=out, **settings)


_TRANSFORMS: dict[bytes, tuple[str, dict[str, Any]]] = {
    b"NONE": ("Identity", {}),
    b"LOGISTIC": ("Sigmoid", {}),
    b"SOFTMAX": ("Softmax", {"axis": 1}),
}


def _array_feature_extractor(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    shape = sizes(types, node.input[0])
    if not shape:
        raise NotKnown("the rank of its input is not known")
    columns = writer.write("Reshape", node.input[1], writer.constant(np.array([-1], np.int64)))
    if len(shape) > 1:
        writer.write("Gather", node.input[0], columns, axis=len(shape) - 1, out=node.output[0])
    else:  # a vector counts as one sample
        taken = writer.write("Gather", node.input[0], columns, axis=0)
        writer.write("Unsqueeze", taken, axes=[0], out=node.output[0])


def _zip_map(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    writer.write("Identity", node.input[0], out=node.output[0])


def _label_encoder(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    keys = next((_array(own[name], dtype) for name, dtype in _KEYS.items() if name in own), None)
    values = next((_array(own[name], dtype) for name, dtype in _VALUES.items() if name in own), None)
    if keys is None or values is None or np.isnan(keys).any():
        raise NotKnown("it does not map numbers to numbers")
    _check_opset(writer)
    whole = values.dtype == np.int64
    default = _array(own.get("default_int64", -1) if whole else own.get("default_float", -0.0), values.dtype)
    same = writer.write("Equal", writer.write("Unsqueeze", node.input[0], axes=[-1]), writer.constant(keys))
    found = _float(writer, same)
    value = writer.write("Gather", writer.constant(values), writer.write("ArgMax", found, axis=-1, keepdims=0), axis=0)
    known = writer.write("Greater", writer.write("ReduceMax", found, axes=[-1], keepdims=0), writer.constant(_HALF))
    writer.write("Where", known, value, writer.constant(default), out=node.output[0])


_KEYS = {"keys_int64s": np.int64, "keys_floats": np.float32}
_VALUES = {"values_int64s": np.int64, "values_floats": np.float32}
_HALF = np.array(0.5, np.float32)


def _one_hot_encoder(node: NodeProto, own: Attributes, writer: Writer, types: Types) -> None:
    if "cats_int64s" not in own:
        raise NotKnown("its categories are strings")
    _check_opset(writer)
    from onnx import TensorProto

    value = writer.write("Unsqueeze", writer.write("Cast", node.input[0], to=TensorProto.INT64), axes=[-1])
    same = writer.write("Equal", value, writer.constant(np.array(own["cats_int64s"], np.int64)))
    _float(writer, same, node.output[0])


def _check_opset(writer: Writer) -> None:
    """Before opset 11 no float is equal to another, and an axis is counted from the front alone."""
    if writer.opset < 11:
        raise NotKnown(f"it is written out in opset 11 and newer, and the model is of opset {writer.opset}")


def _float(writer: Writer, name: str, out: str = "") -> str:
    from onnx import TensorProto

    return writer.write("Cast", name, out=out, to=TensorProto.FLOAT)


def _array(values: Sequence[float] | float, dtype: Any) -> np.ndarray:
    return np.array(values, dtype)


FORMS: dict[str, Callable[[NodeProto, Attributes, Writer, Types], None]] = {
    "ArrayFeatureExtractor": _array_feature_extractor,
    "Binarizer": _binarizer,
    "Imputer": _imputer,
    "LabelEncoder": _label_encoder,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "OneHotEncoder": _one_hot_encoder,
    "Scaler": _scaler,
    "ZipMap": _zip_map,
}
"""How each is written: given the node, its attributes, the writer, and the types of the graph's values."""
