"""The building child: a process of its own, in which torch may be told that there is a GPU.

``python -m mlflow_trt.conversion.build_child FOLDER`` reads job.json there, and program.pt2 or model.onnx, and writes
built.plan. From ONNX it builds without torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .child_process import Say, serve

if TYPE_CHECKING:
    from .job import Built, Job, ProgressListener

PLAN = "built.plan"
PROGRAM = "program.pt2"
MODEL = "model.onnx"
"""A graph in ONNX; its weights lie beside it, in a file whose name begins so."""
JOB = "job.json"


def _build(folder: Path, say: Say) -> dict[str, Any]:
    content = json.loads((folder / JOB).read_text())
    from .job import Job

    job = Job.from_json(content["job"])
    build = _from_onnx if job.converter == "onnx" else _from_program
    built = build(folder, job, content, lambda event, phase, steps: say({"progress": [event, phase, steps]}))
    (folder / PLAN).write_bytes(built.serialized)
    return {"network": vars(built.network), "seconds": built.seconds}


def _from_onnx(folder: Path, job: Job, content: dict[str, Any], listener: ProgressListener) -> Built:
    from .onnx_parser import build

    return build(folder / MODEL, job, listener)


def _from_program(folder: Path, job: Job, content: dict[str, Any], listener: ProgressListener) -> Built:
    _pretend_gpu()
    if not any(module.startswith("modelopt.") for module in content["imports"]):
        # Torch-TensorRT imports modelopt, and with it transformers, wherever it is installed: seconds for nothing.
        sys.modules.setdefault("modelopt", None)  # type: ignore[arg-type]
    sys.path += [entry for entry in content["path"] if entry not in sys.path]
    for module in content["imports"]:
        _import(module)
    import torch

    from .torch_tensorrt import build

    _without_runtime()
    program = torch.export.load(folder / PROGRAM)
    (folder / PROGRAM).unlink()  # its room may be needed for the plan
    return build(program, job, listener)


def _import(module: str) -> None:
    """Imports a module that registers operators of the program."""
    try:
        __import__(module)
    except Exception as error:
        from ..errors import ConversionError

        raise ConversionError(
            f"The building process can't import {module}, which registers operators of the model: "
            f"{type(error).__name__}: {error}.",
            "a module that can be imported without a GPU, and outside the program that converts",
            "register the operators in a module that imports little else",
        ) from error


def _pretend_gpu() -> None:
    """Answers what Torch-TensorRT asks of the GPU while it is imported and converts; none of it reaches the engine."""
    import torch

    target = (8, 9)  # has FP8, and every dtype before it
    torch.cuda.get_device_capability = lambda device=None: target
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda device=None: (64 << 30, 64 << 30)


def _without_runtime() -> None:
    """Imports Torch-TensorRT and takes TensorRT's Runtime out of it."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_tensorrt  # noqa: F401
        from torch_tensorrt.dynamo.conversion import _TRTInterpreter

    _TRTInterpreter.trt = _WithoutRuntime(_TRTInterpreter.trt)


class _WithoutRuntime:
    """The TensorRT module, but for its Runtime, which needs a GPU: upstream deserializes what it just built."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    class Runtime:
        """Hands the plan back as it is."""

        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, serialized: Any) -> Any:
            return _SerializedEngine(serialized) if serialized is not None else None


class _SerializedEngine:
    def __init__(self, serialized: Any) -> None:
        self._serialized = serialized

    def serialize(self) -> Any:
        return self._serialized

    def get_aliased_input_tensor(self, name: str) -> None:
        return None


if __name__ == "__main__":
    serve(_build)
