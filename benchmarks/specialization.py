"""A fault of TensorRT-RTX's specialized kernels, what avoiding it costs, and TF32.

    python -m benchmarks.specialization [--only TABLE] [--seconds N] [linear] [convolutions] [FOLDER ...]

Needs nothing but TensorRT-RTX, CUDA and numpy, except for folders that ``save_model`` wrote: their plan is called with
its golden inputs. Two small networks are built here: ``linear`` layers and ``convolutions``.

With ``EAGER`` or ``LAZY`` specialization a kernel that was compiled for one shape may answer another, with wrong
numbers: where one context changes its shape, and at random where each shape has a context of its own. Each network is
called with its shapes in turn, in these ways:

* ``one context``: it is given each shape in turn;
* ``shared cache``: a context for each shape, all with one runtime cache object;
* ``own contexts``: a context and a cache for each shape, the kernels handed on as bytes;
* ``after EAGER``: the same, but handed on is what contexts with ``EAGER`` compiled at the shapes before;
* ``opened anew``: the same without caches, engine and contexts opened and closed again and again for some seconds.

A call is wrong if its relative L2 error is above 3 %. Then the time of a call at each shape, a CUDA graph on the GPU
alone, by strategy, in turn in one run; and what a cleared TF32 flag changes of a float32 product's error.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

WRONG = 0.03
STRATEGIES = ("NONE", "EAGER", "LAZY")
WAYS = ("one context", "shared cache", "own contexts", "after EAGER")


@dataclass(frozen=True)
class Network:
    """A plan, and at each shape inputs and the right answers, by binding."""

    name: str
    plan: bytes
    points: Sequence[tuple[Arrays, Arrays]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; returns 1 if a network without specialization is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["linear", "convolutions"], metavar="NETWORK")
    parser.add_argument("--only", choices=("errors", "costs", "tf32"), help="one of the three tables; default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network opened anew, by strategy")
    options = parser.parse_args(arguments)
    trt = _tensorrt()
    print(f"tensorrt_rtx {trt.__version__}")
    networks = []
    for network in itertools.chain.from_iterable(named(trt, name) for name in options.networks):
        if reason := refusal(trt, network):
            print(f"  {network.name}: not measured: {reason}")
        else:
            networks.append(network)
    wrong = print_errors(trt, networks, options.seconds) if options.only in (None, "errors") else 0
    if options.only in (None, "costs"):
        print_costs(trt, networks)
    if options.only in (None, "tf32") and networks:
        print_tf32(trt)
    return int(wrong > 0)


def named(trt: Any, name: str) -> Sequence[Network]:
    """``linear``, ``convolutions``, or the folder of a model."""
    if name == "linear":
        return [mlp(trt, "tf32"), mlp(trt, "fp16")]
    return [convolutions(trt)] if name == "convolutions" else [stored(Path(name))]


def print_errors(trt: Any, networks: Sequence[Network], seconds: float) -> int:
    """Prints how many calls are wrong; returns those without specialization."""
    print("Wrong calls of all, and the worst relative error")
    failed = 0
    for network, strategy in itertools.product(networks, STRATEGIES):
        errors = {way: call_in_turn(trt, network, way, strategy) for way in WAYS}
        errors["opened anew"] = opened_anew(trt, network, strategy, seconds)
        for way, found in errors.items():
            wrong = sum(error > WRONG for error in found)
            failed += wrong if strategy == "NONE" else 0
            figures = f"{wrong:4} of {len(found):4}  {max(found):.1e}"
            print(f"  {network.name:16} {strategy:6} {way:13} {figures}", flush=True)
    return failed


def print_costs(trt: Any, networks: Sequence[Network]) -> None:
    """Prints the time of a call by strategy."""
    print("Median ms of a call, by strategy (seconds to a new context's first answer)")
    for network in networks:
        for shape, figures in costs(trt, network).items():
            text = "  ".join(f"{s} {ms:.3f} ms ({first:.2f} s)" for s, (ms, first) in figures.items())
            ratio = figures["NONE"][0] / figures["EAGER"][0]
            print(f"  {network.name:16} {shape:24} {text}  NONE / EAGER {ratio:.2f}", flush=True)


def print_tf32(trt: Any) -> None:
    """Prints what a cleared TF32 flag changes."""
    print("Relative L2 error of float32 products, by the TF32 flag")
    for precision, strategy in itertools.product(("fp32", "tf32"), ("EAGER", "NONE")):
        error = max(call_in_turn(trt, mlp(trt, precision), "own contexts", strategy))
        print(f"  {'off' if precision == 'fp32' else 'on':5} {strategy:6} {error:.1e}")


def mlp(trt: Any, precision: str) -> Network:
    """Two linear layers; batches of 1, 8 and 32."""
    widths = (64, 128, 16)
    dtype = np.float16 if precision == "fp16" else np.float32
    random = np.random.default_rng(0)
    weights = [
        ((random.standard_normal((a, b)) / np.sqrt(a)).astype(dtype), np.full((1, b), 0.1, dtype))
        for a, b in itertools.pairwise(widths)
    ]

    def layers(network: Any, x: Any) -> Any:
        hidden = network.add_cast(x, trt.float16).get_output(0) if precision == "fp16" else x
        for index, (weight, bias) in enumerate(weights):
            hidden = _product(trt, network, hidden, weight)
            hidden = network.add_elementwise(
                hidden, network.add_constant(bias.shape, bias).get_output(0), trt.ElementWiseOperation.SUM
            ).get_output(0)
            if index + 1 < len(weights):
                hidden = network.add_activation(hidden, trt.ActivationType.RELU).get_output(0)
        return network.add_cast(hidden, trt.float32).get_output(0) if precision == "fp16" else hidden

    def reference(x: np.ndarray) -> np.ndarray:
        for index, (weight, bias) in enumerate(weights):
            x = x @ weight.astype(np.float64) + bias
            x = np.maximum(x, 0) if index + 1 < len(weights) else x
        return x

    return _built(trt, f"linear {precision}", (widths[0],), (1, 8, 32), layers, reference, tf32=precision == "tf32")


def convolutions(trt: Any) -> Network:
    """Convolutions, depthwise ones among them, a mean over the image and a product; batches of 1, 2 and 8."""
    random = np.random.default_rng(1)
    plan = [(3, 16, 1, 2), (16, 16, 16, 1), (16, 32, 1, 1), (32, 32, 32, 2), (32, 64, 1, 1)]
    kernels = [
        (random.standard_normal((o, i // g, 3 if g > 1 or i == 3 else 1, 3 if g > 1 or i == 3 else 1))).astype(
            np.float32
        )
        for i, o, g, _ in plan
    ]
    kernels = [kernel / np.float32(np.sqrt(kernel[0].size / 2)) for kernel in kernels]
    head = (random.standard_normal((64, 10)) / 8).astype(np.float32)

    def layers(network: Any, x: Any) -> Any:
        for kernel, (_, out, groups, stride) in zip(kernels, plan):
            size = kernel.shape[-1]
            layer = network.add_convolution_nd(x, out, (size, size), kernel, trt.Weights(np.zeros(out, np.float32)))
            layer.stride_nd, layer.padding_nd, layer.num_groups = (stride, stride), (size // 2, size // 2), groups
            x = network.add_activation(layer.get_output(0), trt.ActivationType.RELU).get_output(0)
        mean = network.add_reduce(x, trt.ReduceOperation.AVG, (1 << 2) | (1 << 3), False).get_output(0)
        return _product(trt, network, mean, head)

    def reference(x: np.ndarray) -> np.ndarray:
        for kernel, (_, _, groups, stride) in zip(kernels, plan):
            x = np.maximum(_convolved(x, kernel.astype(np.float64), groups, stride), 0)
        return x.mean((2, 3)) @ head.astype(np.float64)

    return _built(trt, "convolutions", (3, 64, 64), (1, 2, 8), layers, reference, tf32=False)


def stored(folder: Path) -> Network:
    """The first plan of a model's folder, with the golden tensors of min, opt and max."""
    from mlflow_trt.plan import manifest
    from mlflow_trt.plan.files import read_golden

    described = manifest.read(folder)
    record = described.plans[0]
    assert described.golden is not None
    assert described.interface is not None
    bindings = {t.name: t.binding for t in (*described.interface.inputs, *described.interface.outputs)}
    points = [
        tuple({bindings[name]: array for name, array in tensors.items()} for tensors in (inputs, outputs))
        for _, point, inputs, outputs in sorted(read_golden(folder, described.golden).points(), key=_size)
        if point in ("min", "opt", "max")
    ]
    return Network(folder.name, (folder / record.file.path).read_bytes(), points)  # type: ignore[arg-type]


def refusal(trt: Any, network: Network) -> str | None:
    """TensorRT's words, if it does not load the plan on this GPU."""
    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(message)

    engine = trt.Runtime(Logger()).deserialize_cuda_engine(network.plan)
    return None if engine is not None else " ".join(said) or "no reason given"


def call_in_turn(trt: Any, network: Network, way: str, strategy: str) -> list[float]:
    """The relative errors of one call at each shape, twice around."""
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(network.plan)
    contexts: dict[int, Opened] = {}
    shared, saved, errors = None, b"", []
    for turn, (inputs, wanted) in enumerate([*network.points, *network.points]):
        index = 0 if way == "one context" else turn % len(network.points)
        if index not in contexts:
            contexts[index] = Opened(
                trt, engine, strategy, cache=shared if way == "shared cache" else None, saved=saved
            )
            shared = contexts[index].cache
        opened = contexts[index]
        errors.append(relative_error(opened.call(inputs, wanted), wanted))
        if way == "own contexts":
            saved = bytes(memoryview(opened.cache.serialize()))
        elif way == "after EAGER":
            eager = Opened(trt, engine, "EAGER", saved=saved)
            eager.call(inputs, wanted)
            saved = bytes(memoryview(eager.cache.serialize()))
    return errors


def opened_anew(trt: Any, network: Network, strategy: str, seconds: float) -> list[float]:
    """The relative errors of one call at each shape, each with a context of its own, again and again."""
    end = time.monotonic() + seconds
    errors: list[float] = []
    while not errors or time.monotonic() < end:
        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(network.plan)
        opened = []
        for inputs, wanted in network.points:
            opened.append(Opened(trt, engine, strategy, caching=False))
            errors.append(relative_error(opened[-1].call(inputs, wanted), wanted))
    return errors


def costs(trt: Any, network: Network, rounds: int = 30, calls: int = 20) -> dict[str, dict[str, tuple[float, float]]]:
    """By shape and strategy: the median of a call in ms, and the seconds to a new context's first answer.

    "joined" is EAGER with the cache object of another context that is in use.
    """
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(network.plan)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for inputs, wanted in network.points:
        in_use = Opened(trt, engine, "EAGER")
        in_use.call(inputs, wanted)
        opened, first, times = {}, {}, {way: [] for way in ("NONE", "EAGER", "joined")}
        for strategy in times:
            begin = time.perf_counter()
            if strategy == "joined":
                opened[strategy] = Opened(trt, engine, "EAGER", cache=in_use.cache)
            else:
                opened[strategy] = Opened(trt, engine, strategy, caching=False)
            opened[strategy].call(inputs, wanted)
            first[strategy] = time.perf_counter() - begin
            opened[strategy].capture()
        for _, (strategy, context) in itertools.product(range(rounds), list(opened.items())):
            times[strategy] += [context.replay() for _ in range(calls)]
        shape = ", ".join("x".join(map(str, array.shape)) for array in inputs.values())
        found[shape] = {s: (statistics.median(samples) * 1e3, first[s]) for s, samples in times.items()}
    return found


class Opened:
    """An execution context with memory for its inputs and outputs."""

    def __init__(
        self, trt: Any, engine: Any, strategy: str, *, caching: bool = True, cache: Any = None, saved: bytes = b""
    ) -> None:
        self._config = engine.create_runtime_config()
        self._config.dynamic_shapes_kernel_specialization_strategy = getattr(
            trt.DynamicShapesKernelSpecializationStrategy, strategy
        )
        self.cache = cache
        if caching:
            self.cache = cache or self._config.create_runtime_cache()
            if saved:
                self.cache.deserialize(saved)
            self._config.set_runtime_cache(self.cache)
        self._context = engine.create_execution_context(self._config)
        self._engine = engine
        self._memory: dict[str, tuple[int, int]] = {}
        self._stream = _done(_cuda().cudaStreamCreateWithFlags(1))
        self._graph: Any = None

    def call(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        """Runs once; ``outputs`` give the shapes and dtypes of the answers. Every byte of these is poisoned before."""
        cuda = _cuda()
        kinds = cuda.cudaMemcpyKind
        for name, array in inputs.items():
            array = np.ascontiguousarray(array)
            _done(
                cuda.cudaMemcpy(self._place(name, array), array.ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice)
            )
            self._context.set_input_shape(name, array.shape)
        answers = {name: np.zeros_like(array) for name, array in outputs.items()}
        for name, array in answers.items():
            _done(cuda.cudaMemset(self._place(name, array), 0xFF, array.nbytes))
        self._run()
        _done(cuda.cudaStreamSynchronize(self._stream))
        for name, array in answers.items():
            _done(cuda.cudaMemcpy(array.ctypes.data, self._memory[name][0], array.nbytes, kinds.cudaMemcpyDeviceToHost))
        return answers

    def capture(self) -> None:
        """Makes a CUDA graph of what the last call ran."""
        cuda = _cuda()
        _done(cuda.cudaStreamBeginCapture(self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        self._run()
        self._graph = _done(cuda.cudaGraphInstantiate(_done(cuda.cudaStreamEndCapture(self._stream)), 0))

    def replay(self) -> float:
        """The seconds of one run of the graph."""
        cuda = _cuda()
        begin = time.perf_counter()
        cuda.cudaGraphLaunch(self._graph, self._stream)
        cuda.cudaStreamSynchronize(self._stream)
        return time.perf_counter() - begin

    def _run(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise RuntimeError("TensorRT-RTX did not run the engine")

    def _place(self, name: str, array: np.ndarray) -> int:
        pointer, size = self._memory.get(name, (0, 0))
        if size < array.nbytes:
            if pointer:
                _done(_cuda().cudaFree(pointer))
            pointer = int(_done(_cuda().cudaMalloc(array.nbytes)))
            self._memory[name] = pointer, array.nbytes
        self._context.set_tensor_address(name, pointer)
        return pointer

    def __del__(self) -> None:
        for pointer, _ in self._memory.values():
            _cuda().cudaFree(pointer)
        if self._graph is not None:
            _cuda().cudaGraphExecDestroy(self._graph)
        _cuda().cudaStreamDestroy(self._stream)


def relative_error(answers: Arrays, wanted: Arrays) -> float:
    """The worst relative L2 error of all outputs; 9 for what is not finite."""
    errors = [
        float(np.linalg.norm(answers[n].astype(np.float64) - w) / np.linalg.norm(w.astype(np.float64)))
        for n, w in wanted.items()
    ]
    return max(min(e, 9.0) if np.isfinite(e) else 9.0 for e in errors)


def _built(
    trt: Any,
    name: str,
    row: tuple[int, ...],
    batches: Sequence[int],
    layers: Callable[[Any, Any], Any],
    reference: Callable[[np.ndarray], np.ndarray],
    tf32: bool,
) -> Network:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    y = layers(network, network.add_input("x", trt.float32, (-1, *row)))
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *((batch, *row) for batch in batches))
    config.add_optimization_profile(profile)
    random = np.random.default_rng(2)
    points = []
    for batch in batches:
        x = random.standard_normal((batch, *row)).astype(np.float32)
        points.append(({"x": x}, {"y": reference(x.astype(np.float64)).astype(np.float32)}))
    return Network(name, bytes(memoryview(builder.build_serialized_network(network, config))), points)


def _product(trt: Any, network: Any, x: Any, weight: np.ndarray) -> Any:
    none = trt.MatrixOperation.NONE
    constant = network.add_constant(weight.shape, weight).get_output(0)
    return network.add_matrix_multiply(x, none, constant, none).get_output(0)


def _convolved(x: np.ndarray, kernel: np.ndarray, groups: int, stride: int) -> np.ndarray:
    size = kernel.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))[:, :, ::stride, ::stride]
    if groups > 1:
        return np.einsum("bchwyx,cyx->bchw", windows, kernel[:, 0])
    return np.einsum("bchwyx,ocyx->bohw", windows, kernel, optimize=True)


def _size(point: tuple[int, str, Arrays, Arrays]) -> int:
    return sum(array.size for array in point[2].values())


def _done(result: tuple[Any, ...]) -> Any:
    """What a call of CUDA's answered, its status aside."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"CUDA: {status}")
    return values[0] if values else None


def _cuda() -> Any:
    from cuda.bindings import runtime

    return runtime


def _tensorrt() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


if __name__ == "__main__":
    sys.exit(main())
