"""ONNX Runtime on the CPU: what a graph in ONNX answers, without torch.

Half precision is computed in float32, from the graph's own rounded weights: ONNX Runtime has few kernels for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .from_onnx.retyped import retyped
from .from_onnx.writer import opset

_BFLOAT16_SINCE = 13
"""The first opset whose casts have bfloat16."""


class NotThereError(Exception):
    """ONNX Runtime lacks an operator, or has it for other dtypes only."""


def session(path: Path) -> Any:
    """Opens a graph, which is computed as it is.

    Args:
        path: Its file; its weights lie beside it.

    Raises:
        NotThereError: ONNX Runtime has not all of its operators.
        Exception: ONNX Runtime's own: the graph is not valid.
    """
    return _opened(str(path), path.parent)


def widened_session(path: Path) -> Any:
    """Opens a graph, which is computed in float32 where it has half precision; its outputs are float32 then.

    Args:
        path: Its file; its weights lie beside it.

    Raises:
        NotThereError: ONNX Runtime has not all of its operators.
        Exception: ONNX Runtime's own: the graph is not valid.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    if opset(model) < _BFLOAT16_SINCE:
        # TensorRT's parser takes it there too. Else weights are cast within the graph: they may be larger than it may.
        model = retyped(model, {onnx.TensorProto.BFLOAT16: onnx.TensorProto.FLOAT}, path.parent)
    _widen(model.graph)
    return _opened(bytes(model.SerializeToString()), path.parent)


def words(error: Exception) -> str:
    """What ONNX Runtime says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _opened(graph: str | bytes, folder: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Each of the two would hold the weights once more.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    # The graph itself is asked, not an optimizer; without the basic ones an input of If can be missing.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if isinstance(graph, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if type(error).__name__ == "NotImplemented":
            raise NotThereError(words(error)) from error
        raise


def _widen(graph: Any) -> None:
    """Half precision comes into a graph by inputs, weights, constants and casts."""
    from onnx import NodeProto, TensorProto, helper, numpy_helper

    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    entries = [i.name for i in graph.input if i.type.tensor_type.elem_type in half]
    entries += [i.name for i in graph.initializer if i.data_type in half]
    renamed = {name: f"{name}.wide" for name in entries}
    nodes = [helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT) for name, wide in renamed.items()]
    _rename(graph, renamed)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in half:
                attribute.i = TensorProto.FLOAT
            elif attribute.HasField("t") and attribute.t.data_type in half:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
            elif attribute.HasField("g"):
                _widen(attribute.g)
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
    for value in graph.output:
        if value.type.tensor_type.elem_type in half:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _rename(graph: Any, renamed: dict[str, str]) -> None:
    """Reads what a graph takes from the one around it by its new name."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, renamed)
