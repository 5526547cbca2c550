"""A version's graph in ONNX, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, ManifestError, SettingError
from ..plan.manifest import Interface

_KINDS = {"tensor(double)": np.float64, "tensor(float16)": np.float16}


class OnnxProgram:
    """The graph, called by flat arrays in the interface's order.

    Args:
        path: Its file; its weights lie beside it.
        interface: What the version says of it.

    Raises:
        SettingError: onnxruntime is not installed.
        ManifestError: It does not read the graph, or the graph does not fit the interface.
    """

    def __init__(self, path: Path, interface: Interface) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise SettingError(
                "onnxruntime is not installed, and the reference backend runs this version's graph with it.",
                "onnxruntime",
                "pip install onnxruntime",
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # The graph as it was logged, not an optimizer's; without the basic ones an input of If can be missing.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ManifestError(
                f"ONNX Runtime {onnxruntime.__version__} can't load the graph: {' '.join(str(error).split())[:400]}",
                "a graph that ONNX Runtime computes on the CPU",
                'install a newer onnxruntime, or use backend="tensorrt"',
            ) from error
        self._kinds = {i.name: _KINDS.get(i.type) for i in self._session.get_inputs()}
        self._interface = interface
        names = {o.name for o in self._session.get_outputs()}
        if not names.issuperset(t.binding for t in interface.outputs) or not self._kinds.keys() <= {
            t.name for t in interface.inputs
        }:
            raise ManifestError(
                "The graph has other inputs or outputs than the manifest.", "the graph that was logged", "log it again"
            )

    def run(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Answers arrays in the interface's order; by output name.

        Raises:
            InputError: The graph does not take them.
        """
        given = {tensor.name: array for tensor, array in zip(self._interface.inputs, arrays)}
        fed = {name: self._fed(given[name], kind) for name, kind in self._kinds.items()}
        outputs = self._interface.outputs
        try:
            answered = self._session.run([tensor.binding for tensor in outputs], fed)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
            raise InputError(
                f"ONNX Runtime refuses the inputs ({shapes}): {' '.join(str(error).split())[:400]}",
                "sizes and values that the graph takes",
                "correct them",
            ) from error
        return {t.name: np.asarray(value, dtype=t.dtype) for t, value in zip(outputs, answered)}

    def _fed(self, array: np.ndarray, kind: Any) -> np.ndarray:
        return np.asarray(array, dtype=kind or array.dtype.newbyteorder("="), order="C")
