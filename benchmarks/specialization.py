"""Two faults of TensorRT-RTX, shown with nothing but TensorRT-RTX and CUDA: ``python -m benchmarks.specialization``.

A multilayer perceptron of two linear layers is called with batches of 1, 8, 32, 1 and 8. Kernels that were
specialized for a batch of 1 (``EAGER``) are afterwards taken for larger batches too, where one context changes its
shape or two contexts share a runtime cache: the first row is right, the others are not. What the runtime of this
package does, a context and a cache object for every shape, with the kernels handed on as bytes, is the row ``handed
on``; and where a cache object of the shape is alive, the row ``alive``: there each call has an engine of its own.

Then the time to an engine's first answer by what its cache object was given, and what a cleared TF32 flag changes of a
float32 product's error.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import numpy as np

ORDER = (1, 8, 32, 1, 8)
WIDTHS = (64, 128, 16)
WAYS = ("one context", "shared cache", "no cache", "cache of its own", "handed on", "alive")


def main() -> int:
    """Prints both tables; returns 1 if the way that the runtime takes gives a wrong row."""
    trt = _tensorrt()
    print(f"tensorrt_rtx {trt.__version__}; wrong rows of each call, batches {', '.join(map(str, ORDER))}")
    failed = False
    for precision in ("tf32", "fp16"):
        plan, reference = build(trt, precision)
        for strategy, way in [*(("EAGER", way) for way in WAYS), ("LAZY", WAYS[0]), ("NONE", WAYS[0])]:
            wrong, _, _ = run(trt, plan, reference, way, strategy)
            print(f"  {precision:5} {strategy:6} {way:17} {' '.join(f'{n:3}' for n in wrong)}")
            failed |= way in ("handed on", "alive") and any(wrong)
    print("Milliseconds from no context to its first answer, batches of 1, 8, 32, then 1 and 8 again")
    for way in ("cache of its own", "handed on", "alive"):
        _, _, seconds = run(trt, *build(trt, "fp16"), way, "EAGER")
        print(f"  {way:17} {' '.join(f'{s * 1e3:6.0f}' for s in seconds)}")
    print("Relative L2 error of float32 products, batch 32, by the TF32 flag and specialization")
    for precision in ("fp32", "tf32"):
        plan, reference = build(trt, precision)
        for strategy in ("EAGER", "NONE"):
            _, errors, _ = run(trt, plan, reference, "handed on", strategy)
            print(f"  {'off' if precision == 'fp32' else 'on':5} {strategy:6} {errors[2]:.1e}")
    return int(failed)


def build(trt: Any, precision: str) -> tuple[bytes, Any]:
    """Builds the network; returns its plan, and what computes the same in float64."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float32, (-1, WIDTHS[0]))
    config = builder.create_builder_config()
    if precision != "tf32":
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, WIDTHS[0]), (8, WIDTHS[0]), (32, WIDTHS[0]))
    config.add_optimization_profile(profile)
    dtype = np.float16 if precision == "fp16" else np.float32
    hidden = network.add_cast(x, trt.float16).get_output(0) if precision == "fp16" else x
    random = np.random.default_rng(0)
    weights: list[tuple[np.ndarray, np.ndarray]] = []
    for size, following in itertools.pairwise(WIDTHS):
        weight = (random.standard_normal((size, following)) / np.sqrt(size)).astype(dtype)
        bias = np.full((1, following), 0.1, dtype)
        weights.append((weight, bias))
        none = trt.MatrixOperation.NONE
        constant, added = (network.add_constant(array.shape, array).get_output(0) for array in weights[-1])
        hidden = network.add_matrix_multiply(hidden, none, constant, none).get_output(0)
        hidden = network.add_elementwise(hidden, added, trt.ElementWiseOperation.SUM).get_output(0)
        if following != WIDTHS[-1]:
            hidden = network.add_activation(hidden, trt.ActivationType.RELU).get_output(0)
    if precision == "fp16":
        hidden = network.add_cast(hidden, trt.float32).get_output(0)
    hidden.name = "y"
    network.mark_output(hidden)

    def reference(x: np.ndarray) -> np.ndarray:
        y = x.astype(np.float64)
        for index, (weight, bias) in enumerate(weights):
            y = y @ weight.astype(np.float64) + bias
            y = np.maximum(y, 0) if index + 1 < len(weights) else y
        return y

    return bytes(memoryview(builder.build_serialized_network(network, config))), reference


def run(trt: Any, plan: bytes, reference: Any, way: str, strategy: str) -> tuple[list[int], list[float], list[float]]:
    """Calls the engine at every size of ``ORDER``.

    Returns:
        Wrong rows, the relative L2 error, and the seconds, of each call.
    """
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan)
    shared = None
    saved = b""
    contexts: dict[int, Any] = {}
    alive: dict[int, Any] = {}
    wrong, errors, seconds = [], [], []
    for call, batch in enumerate(ORDER):
        key = {"one context": 0, "alive": call}.get(way, batch)
        if way == "alive":
            engine = runtime.deserialize_cuda_engine(plan)
        begin = time.perf_counter()
        if key not in contexts:
            config = engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = getattr(
                trt.DynamicShapesKernelSpecializationStrategy, strategy
            )
            cache = None
            if way != "no cache":
                there = {"shared cache": shared, "alive": alive.get(batch)}.get(way)
                cache = config.create_runtime_cache() if there is None else there
                if saved and way == "handed on":
                    cache.deserialize(saved)
                config.set_runtime_cache(cache)
                shared = alive[batch] = cache
            contexts[key] = engine.create_execution_context(config), config, cache, engine
        context, _, cache, _ = contexts[key]
        x = np.random.default_rng(call).standard_normal((batch, WIDTHS[0])).astype(np.float32)
        y, wanted = _call(context, x), reference(x)
        seconds.append(time.perf_counter() - begin)
        if cache is not None:
            saved = bytes(memoryview(cache.serialize()))
        rows = np.linalg.norm(y - wanted, axis=1) > 2e-2 * np.linalg.norm(wanted, axis=1)
        wrong.append(int(rows.sum()))
        errors.append(float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted)))
    return wrong, errors, seconds


def _call(context: Any, x: np.ndarray) -> np.ndarray:
    from cuda.bindings import runtime as cudart

    y = np.zeros((len(x), WIDTHS[-1]), np.float32)
    _, stream = cudart.cudaStreamCreate()
    _, given = cudart.cudaMalloc(x.nbytes)
    _, answer = cudart.cudaMalloc(y.nbytes)
    try:
        kinds = cudart.cudaMemcpyKind
        cudart.cudaMemcpy(given, x.ctypes.data, x.nbytes, kinds.cudaMemcpyHostToDevice)
        context.set_input_shape("x", x.shape)
        context.set_tensor_address("x", given)
        context.set_tensor_address("y", answer)
        if not context.execute_async_v3(int(stream)):
            raise RuntimeError("TensorRT-RTX did not run the engine")
        cudart.cudaStreamSynchronize(stream)
        cudart.cudaMemcpy(y.ctypes.data, answer, y.nbytes, kinds.cudaMemcpyDeviceToHost)
    finally:
        cudart.cudaFree(given)
        cudart.cudaFree(answer)
        cudart.cudaStreamDestroy(stream)
    return y


def _tensorrt() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


if __name__ == "__main__":
    sys.exit(main())
