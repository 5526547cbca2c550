"""Graphs written for the tests, what ONNX Runtime answers to them, and the networks that TensorRT's parser makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper, parser

from mlflow_trt.conversion.from_onnx.model import OnnxModel, write
from mlflow_trt.conversion.from_onnx.retyped import retyped

HALVES = {TensorProto.FLOAT16: TensorProto.FLOAT, TensorProto.BFLOAT16: TensorProto.FLOAT}


def model(graph: str, opset: int = 18, **weights: np.ndarray) -> OnnxModel:
    """A model of a graph in ONNX's text form, and weights by name."""
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {graph}')
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return OnnxModel(proto)


def answers(made: OnnxModel, folder: Path, widened: bool = False, **inputs: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime answers; widened: in float32, from the graph's own rounded weights."""
    proto = retyped(made.proto, HALVES, made.folder) if widened else made.proto
    path = write(OnnxModel(proto, made.folder), folder)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def network(made: OnnxModel, folder: Path) -> list[tuple[str, str, str]]:
    """The layers that TensorRT's parser makes of a graph: name, kind and dtype of the first output."""
    import tensorrt_rtx as trt

    logger = _logger(trt)
    network = trt.Builder(logger).create_network(0)
    parsed = trt.OnnxParser(network, logger)
    assert parsed.parse_from_file(str(write(made, folder))), parsed.get_error(0).desc()
    layers = []
    for layer in map(network.get_layer, range(network.num_layers)):
        kind = layer.type.name
        if kind in ("ACTIVATION", "ELEMENTWISE", "UNARY"):
            layer.__class__ = {
                "ACTIVATION": trt.IActivationLayer,
                "ELEMENTWISE": trt.IElementWiseLayer,
                "UNARY": trt.IUnaryLayer,
            }[kind]
            kind = (layer.type if kind == "ACTIVATION" else layer.op).name
        layers.append((layer.name, kind, layer.get_output(0).dtype.name))
    return layers


def checked(made: OnnxModel) -> onnx.ModelProto:
    """The graph, valid by onnx's checker and by the dtypes of its strict inference."""
    onnx.checker.check_model(made.proto, full_check=True)
    return made.proto


def operators(made: OnnxModel) -> list[str]:
    return [node.op_type for node in made.proto.graph.node]


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def relative(got: Any, wanted: Any) -> float:
    """The relative L2 error."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


_kept: list[Any] = []


def _logger(trt: Any) -> Any:
    """One for the process: TensorRT keeps the first."""
    if not _kept:

        class Silent(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                pass

        _kept.append(Silent())
    return _kept[0]
