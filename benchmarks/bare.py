"""The least Python that runs an engine: what everything above it is measured against. No torch, no pool, no checks.

For one fixed input shape: the plan deserialized by TensorRT, one context, one stream, pinned and device buffers, all
set up once. A call is copies, enqueue, copies, synchronize.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_trt.plan import manifest as _manifest
from mlflow_trt.plan.host import probe


class BareLoop:
    """One engine, one shape.

    Args:
        folder: A model's folder, written by ``mlflow_trt.save_model``; its first plan is taken.
        inputs: Arrays by input name; they fix the shapes.
        cuda_graph: Whether TensorRT-RTX captures the call as a CUDA graph.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, np.ndarray], *, cuda_graph: bool = False) -> None:
        from cuda.bindings import runtime as cuda

        self._cuda = cuda
        manifest = _manifest.read(folder)
        record, interface = manifest.plans[0], manifest.interface
        assert interface is not None
        if record.release != probe().runtimes.get(record.runtime):
            raise RuntimeError(f"the plan is of {record.runtime} {record.release}, which is not installed")
        trt = importlib.import_module(record.runtime)
        self._check(cuda.cudaSetDevice(0))
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine((folder / record.file.path).read_bytes())
        if self._engine is None:
            raise RuntimeError("TensorRT refused the plan")
        self._context = self._new_context(trt, folder, record, cuda_graph)
        self.stream = self._check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._buffers: list[tuple[int, int]] = []

        # (pinned array, pinned address, device address, bytes) of each tensor
        self._inputs: list[tuple[str, np.ndarray, int, int, int]] = []
        for tensor in interface.inputs:
            array = np.ascontiguousarray(inputs[tensor.name])
            if str(array.dtype) != tensor.binding_dtype:
                raise RuntimeError(f"{tensor.name} is {array.dtype}, the engine takes {tensor.binding_dtype}")
            if not self._context.set_input_shape(tensor.binding, array.shape):
                raise RuntimeError(f"TensorRT refused the shape {array.shape} of {tensor.name}")
            self._inputs.append((tensor.name, *self._allocate(tensor.binding, array.shape, array.dtype)))
        self._outputs: list[tuple[str, np.ndarray, int, int, int]] = []
        for tensor in interface.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.binding))
            self._outputs.append((tensor.name, *self._allocate(tensor.binding, shape, np.dtype(tensor.binding_dtype))))
        self.fill(inputs)

    def _new_context(self, trt: Any, folder: Path, record: _manifest.PlanRecord, cuda_graph: bool) -> Any:
        if record.runtime != "tensorrt_rtx":
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        if record.runtime_cache is not None:  # kernels that were compiled already
            self._cache.deserialize((folder / record.runtime_cache.path).read_bytes())
        config.set_runtime_cache(self._cache)
        if cuda_graph:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._engine.create_execution_context(config)

    def _allocate(self, binding: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, int, int, int]:
        size = int(np.prod(shape)) * dtype.itemsize
        pinned = int(self._check(self._cuda.cudaMallocHost(size)))
        device = int(self._check(self._cuda.cudaMalloc(size)))
        self._buffers.append((pinned, device))
        if not self._context.set_tensor_address(binding, device):
            raise RuntimeError(f"TensorRT refused the address of {binding}")
        array = np.frombuffer((ctypes.c_char * size).from_address(pinned), dtype).reshape(shape)
        return array, pinned, device, size

    def fill(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Copies arrays into the pinned buffers."""
        for name, pinned, *_ in self._inputs:
            np.copyto(pinned, inputs[name])

    def enqueue(self) -> None:
        """Pinned buffers to the GPU, the engine, and back, synchronized."""
        cuda, stream = self._cuda, self.stream
        for _, _, host, device, size in self._inputs:
            cuda.cudaMemcpyAsync(device, host, size, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)
        if not self._context.execute_async_v3(int(stream)):
            raise RuntimeError("TensorRT refused to enqueue")
        for _, _, host, device, size in self._outputs:
            cuda.cudaMemcpyAsync(host, device, size, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)
        (error,) = cuda.cudaStreamSynchronize(stream)
        if error:
            raise RuntimeError(str(error))

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a hand-written server does: array → pinned → GPU → pinned → an array of the caller's own."""
        self.fill(inputs)
        self.enqueue()
        return {name: pinned.copy() for name, pinned, *_ in self._outputs}

    def close(self) -> None:
        """Frees the buffers."""
        self._cuda.cudaStreamSynchronize(self.stream)
        self._inputs, self._outputs = [], []
        for pinned, device in self._buffers:
            self._cuda.cudaFreeHost(pinned)
            self._cuda.cudaFree(device)
        self._buffers = []
        self._cuda.cudaStreamDestroy(self.stream)

    def _check(self, answer: tuple[Any, ...]) -> Any:
        error, *values = answer
        if error:
            raise RuntimeError(str(error))
        return values[0] if values else None
