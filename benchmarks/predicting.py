"""One call: what ``predict`` adds to the engine's own work, and how other ways to run the same model compare."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .context import Context, arrays, close, has_gpu, module
from .record import Figure, Measurement
from .timing import difference, interleave, ratio

RATIO = "pyfunc predict ÷ bare loop"
RATIO_GRAPH = "pyfunc predict ÷ bare loop with a CUDA graph"
ABOVE = "pyfunc predict − bare loop"
WRAPPER = "pyfunc predict − engine.predict, reference backend"

SETTLE_S = 3.0  # TensorRT-RTX answers at once with fallback kernels and compiles better ones in the background


class Nothing:
    """A model that answers at once: what is left is MLflow's own share of a call."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def predict(self, data: Any, params: Any = None) -> object:
        return self._answer


def warm(*calls: Callable[[], object], settle: float = SETTLE_S) -> None:
    """Calls each until its kernels are compiled."""
    for call in calls:
        for _ in range(10):
            call()
    time.sleep(settle)
    for call in calls:
        for _ in range(10):
            call()


def against_bare_loop(context: Context, name: str, batch: int) -> Measurement:
    """Pyfunc and native predict against the bare loop over the same plan."""
    context.need_gpu()
    import mlflow.pyfunc

    from .bare import BareLoop

    folder = context.model(name)
    inputs = arrays(name, batch)
    served = mlflow.pyfunc.load_model(str(folder))
    engine = served.get_raw_model()
    bare, graph = BareLoop(folder, inputs), BareLoop(folder, inputs, cuda_graph=True)
    answer = bare.predict(inputs)
    nothing = mlflow.pyfunc.PyFuncModel(model_meta=served.metadata, model_impl=Nothing(answer))
    ways: dict[str, Callable[[], object]] = {
        "bare loop": lambda: bare.predict(inputs),
        "bare loop with a CUDA graph": lambda: graph.predict(inputs),
        "bare loop, data left in pinned buffers": bare.enqueue,
        "engine.predict": lambda: engine.predict(inputs),
        "pyfunc predict": lambda: served.predict(inputs),
        "pyfunc whose predict returns at once": lambda: nothing.predict(inputs),
    }
    warm(*ways.values())
    for other in (graph.predict(inputs), engine.predict(inputs), served.predict(inputs)):
        if not close(np.asarray(other["logits"]), answer["logits"]):
            raise RuntimeError("the ways give different answers")
    found = interleave(ways, rounds=context.several(30, 4), calls=context.several(30, 5), deadline=context.deadline())
    above = difference(found["pyfunc predict"], found["bare loop"]) * 1e6
    times = ratio(found["pyfunc predict"], found["bare loop"])
    measurement = Measurement(
        values={RATIO: times, ABOVE: above},
        figures=[
            Figure(RATIO, "×", times),
            Figure(RATIO_GRAPH, "×", ratio(found["pyfunc predict"], found["bare loop with a CUDA graph"])),
            Figure(ABOVE, "µs", above),
        ],
        notes=[
            "The bare loop copies an array to pinned memory, on to the GPU, enqueues, and copies back to a new array; "
            "it is set up once for this one shape.",
            "Ratios and differences are medians over rounds in which all ways took their turn.",
        ],
    )
    for way, rounds in found.items():
        measurement.add(way, rounds, "ms" if name == "resnet50" else "µs")
    engine.close()
    bare.close()
    graph.close()
    return measurement


def resnet50_batch1(context: Context) -> Measurement:
    """ResNet-50 FP16, batch 1."""
    return against_bare_loop(context, "resnet50", 1)


def resnet50_batch8(context: Context) -> Measurement:
    """ResNet-50 FP16, batch 8."""
    return against_bare_loop(context, "resnet50", 8)


def tiny_mlp(context: Context) -> Measurement:
    """A network that takes microseconds: what remains is overhead."""
    return against_bare_loop(context, "mlp", 1)


def wrapper(context: Context) -> Measurement:
    """What ``mlflow.pyfunc`` and this flavor's wrapper add to a call, on any machine: the reference backend answers."""
    import mlflow.pyfunc

    folder = context.model("mlp")
    inputs = arrays("mlp", 1)
    served = mlflow.pyfunc.load_model(str(folder), model_config={"backend": "reference"})
    engine = served.get_raw_model()
    nothing = mlflow.pyfunc.PyFuncModel(model_meta=served.metadata, model_impl=Nothing(engine.predict(inputs)))
    ways: dict[str, Callable[[], object]] = {
        "engine.predict": lambda: engine.predict(inputs),
        "pyfunc predict": lambda: served.predict(inputs),
        "pyfunc whose predict returns at once": lambda: nothing.predict(inputs),
    }
    warm(*ways.values(), settle=0)
    found = interleave(ways, rounds=context.several(30, 4), calls=context.several(200, 50), deadline=context.deadline())
    measurement = Measurement(
        values={WRAPPER: difference(found["pyfunc predict"], found["engine.predict"]) * 1e6},
        notes=["PyTorch on the CPU answers here, so only the differences say something about this package."],
    )
    for way, rounds in found.items():
        measurement.add(way, rounds, "µs")
    return measurement


def alternatives(context: Context) -> Measurement:
    """The same ResNet-50 through PyTorch, torch.compile and MLflow's stock flavors; arrays in, arrays out."""
    context.need_gpu()
    import mlflow.pyfunc

    measurement = Measurement(
        notes=["Every way takes a float32 array on the host and answers with one, copies included."]
    )
    folder = context.model("resnet50")
    served = mlflow.pyfunc.load_model(str(folder))
    batches = (1, 8)
    inputs = {batch: arrays("resnet50", batch) for batch in batches}
    expected = {batch: np.asarray(served.predict(inputs[batch])["logits"]) for batch in batches}
    ways: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {"mlflow_trt pyfunc, FP16": served.predict}
    for name, prepare in _other_ways(context).items():
        if time.monotonic() > context.deadline(0.7):
            measurement.missing[name] = "the time budget was used up"
            continue
        try:
            way = prepare()
            for batch in batches:
                if not close(_logits(way(inputs[batch])), expected[batch]):
                    raise RuntimeError(f"its answers differ at batch {batch}")
            ways[name] = way
        except Exception as error:  # one that is not installed or does not run here is told, not fatal
            measurement.missing[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
            )
    for batch in batches:
        calls = {name: _bound(way, inputs[batch]) for name, way in ways.items()}
        warm(*calls.values())
        found = interleave(
            calls,
            rounds=context.several(15, 3),
            calls=context.several(20, 5),
            deadline=context.deadline(0.85 if batch == 1 else 1.0),
        )
        for name, rounds in found.items():
            measurement.add(f"batch {batch}: {name}", rounds)
    return measurement


def _bound(way: Callable[[dict[str, np.ndarray]], Any], inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: way(inputs)


def _logits(answer: Any) -> np.ndarray:
    if isinstance(answer, Mapping):
        answer = next(iter(answer.values()))
    return np.asarray(answer, np.float32)


def _other_ways(context: Context) -> dict[str, Callable[[], Callable[[dict[str, np.ndarray]], Any]]]:
    import torch

    device = "cuda" if has_gpu() else "cpu"

    def eager(dtype: torch.dtype, compiled: dict[str, Any] | None = None) -> Callable[[dict[str, np.ndarray]], Any]:
        model = module("resnet50").to(device, dtype)
        if compiled is not None:
            model = torch.compile(model, dynamic=False, **compiled)

        def call(inputs: dict[str, np.ndarray]) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.from_numpy(inputs["images"]).to(device, dtype)).float().cpu().numpy()

        return call

    def pytorch_flavor() -> Callable[[dict[str, np.ndarray]], Any]:
        import mlflow.pytorch

        folder = _fresh(context, "pytorch-flavor")
        # Newer MLflow's default, pt2, would need an example and take only its batch size.
        pickle = {"serialization_format": "pickle"}
        known = inspect.signature(mlflow.pytorch.save_model).parameters
        options = pickle if pickle.keys() <= known.keys() else {}
        mlflow.pytorch.save_model(module("resnet50"), str(folder), pip_requirements=["torch"], **options)
        model = mlflow.pyfunc.load_model(str(folder), model_config={"device": device})
        return lambda inputs: model.predict(inputs["images"])

    def onnx_flavor() -> Callable[[dict[str, np.ndarray]], Any]:
        import mlflow.onnx
        import onnx
        import onnxruntime

        folder = _fresh(context, "onnx-flavor")
        path = folder.with_suffix(".onnx")
        example = torch.zeros(2, 3, 224, 224)
        batch = torch.export.Dim("batch", min=1, max=32)
        torch.onnx.export(
            module("resnet50"), (example,), str(path), input_names=["images"], output_names=["logits"],
            dynamo=True, dynamic_shapes=({0: batch},), external_data=False,
        )  # fmt: skip
        wanted = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            raise RuntimeError(f"onnxruntime here has no {wanted}")
        mlflow.onnx.save_model(
            onnx.load(str(path)), str(folder), onnx_execution_providers=[wanted], pip_requirements=["onnxruntime"]
        )
        model = mlflow.pyfunc.load_model(str(folder))
        return model.predict

    return {
        "torch eager, FP32": lambda: eager(torch.float32),
        "torch eager, FP16": lambda: eager(torch.float16),
        "mlflow.pytorch pyfunc, FP32": pytorch_flavor,
        "mlflow.onnx pyfunc, FP32": onnx_flavor,
        "torch.compile, FP16": lambda: eager(torch.float16, {}),
        "torch.compile reduce-overhead, FP16": lambda: eager(torch.float16, {"mode": "reduce-overhead"}),
    }


def _fresh(context: Context, name: str) -> Path:
    import shutil

    folder = context.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
