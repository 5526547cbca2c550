"""An ONNX file becomes an engine by TensorRT's own parser, without torch.

Runs in the building child or, on a GPU, in the caller's process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .builder import TORCH_TENSORRTS_LOGGER, Messages, configure, profiles
from .job import Built, Job, ProgressListener
from .network import Network, look

_lock = threading.Lock()
_logger: Any = None


def build(path: Path, job: Job, listener: ProgressListener | None = None) -> Built:
    """Builds an engine from an ONNX file.

    Args:
        path: The file; external data lies beside it. Its inputs and outputs are named as the job's.
        job: The rest.
        listener: Is told of the build's progress.

    Raises:
        UnsupportedOperatorError: The graph has nodes that TensorRT's parser does not take.
        ConverterError: The parser or TensorRT refused the graph; the message has their own words.
        ConversionError: TensorRT could not build it for want of memory, or of a newer driver.
        KeyboardInterrupt: Ctrl-C during the build.
    """
    started = time.perf_counter()
    watch = _Watch(listener)
    with _lock:
        trt = importlib.import_module(runtime(job))
        with _captured(trt, watch):
            try:
                serialized = _serialized(trt, path, job, watch)
            except BaseException as error:
                if watch.interrupted or isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                raise
    return Built(serialized, watch.network, time.perf_counter() - started)


class _Watch:
    """Collects what a build tells."""

    def __init__(self, listener: ProgressListener | None) -> None:
        self.listener = listener
        self.interrupted = False
        self.network = Network()
        self.messages: list[str] = []


def _serialized(trt: Any, path: Path, job: Job, watch: _Watch) -> bytes:
    builder = trt.Builder(_logger)
    # Networks of TensorRT-RTX and of TensorRT 11 are strongly typed without being told.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, _logger)  # owns the weights: it has to stay until the engine is built
    parsed = parser.parse_from_file(str(path))
    if not parsed or parser.num_errors:
        from . import refusals

        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise refusals.not_parsed(
            [(error.node_operator(), error.node_name(), error.code().name, error.desc()) for error in errors]
        )
    _outputs(trt, network, job)
    config = builder.create_builder_config()
    _set(trt, config, job.settings)
    configure(trt, config, job, watch)
    for profile in profiles(builder, job):
        config.add_optimization_profile(profile)
    watch.network = look(trt, network, config.get_flag(trt.BuilderFlag.TF32))
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        if watch.interrupted:
            raise KeyboardInterrupt
        from . import refusals

        raise refusals.not_built(RuntimeError("it gave no engine"), None, watch.messages)
    return bytes(serialized)


def _outputs(trt: Any, network: Any, job: Job) -> None:
    """Marks the outputs in the job's order, those that are uint8 as such: the graph has them in float32."""
    tensors = {(tensor := network.get_output(i)).name: tensor for i in range(network.num_outputs)}
    for tensor in tensors.values():
        network.unmark_output(tensor)
    for name in job.outputs:
        tensor = tensors[name]
        if name in job.uint8:
            tensor.name = f"{name}.float"
            tensor = network.add_cast(tensor, trt.uint8).get_output(0)
            tensor.name = name
        network.mark_output(tensor)


def _set(trt: Any, config: Any, settings: Mapping[str, Any]) -> None:
    """Torch-TensorRT's settings of TensorRT's builder (:data:`.settings.OF_THE_BUILDER`), as it sets them."""
    flags = trt.BuilderFlag
    if settings.get("workspace_size"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings["workspace_size"])
    for setting, attribute in _ATTRIBUTES.items():
        if settings.get(setting) is not None:
            setattr(config, attribute, settings[setting])
    if settings.get("tiling_optimization_level"):
        level = getattr(trt.TilingOptimizationLevel, settings["tiling_optimization_level"].upper())
        config.tiling_optimization_level = level
    if settings.get("version_compatible"):
        config.set_flag(flags.VERSION_COMPATIBLE)
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    if settings.get("hardware_compatible"):
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.get("sparse_weights"):
        config.set_flag(flags.SPARSE_WEIGHTS)
    if settings.get("disable_tf32"):
        config.clear_flag(flags.TF32)
    if settings.get("enable_weight_streaming"):
        config.set_flag(flags.WEIGHT_STREAMING)
    if settings.get("immutable_weights") is False:
        config.set_flag(flags.REFIT_IDENTICAL if settings.get("refit_identical_engine_weights") else flags.REFIT)
        if settings.get("strip_engine_weights"):
            config.set_flag(flags.STRIP_PLAN)


_ATTRIBUTES = {
    "max_aux_streams": "max_aux_streams",
    "optimization_level": "builder_optimization_level",
    "num_avg_timing_iters": "avg_timing_iterations",
    "l2_limit_for_tiling": "l2_limit_for_tiling",
}


def runtime(job: Job) -> str:
    """The TensorRT that builds a job: the one that Torch-TensorRT builds with here, or the only one that is there.

    Raises:
        SettingError: None is.
    """
    names = ["tensorrt_rtx", "tensorrt"]
    if job.capabilities is None and _is_installed("torch-tensorrt") and not _is_installed("torch-tensorrt-rtx"):
        names.reverse()
    # Not importlib.util.find_spec: torch_tensorrt puts tensorrt_rtx into sys.modules under the name tensorrt.
    there = [name for name in names if importlib.machinery.PathFinder.find_spec(name) is not None]
    if not there:
        from ..errors import SettingError

        raise SettingError(
            "Neither TensorRT-RTX nor TensorRT is installed.",
            "one of them: its parser of ONNX builds the engine",
            "pip install tensorrt-rtx (the extras convert-rtx and convert-onnx-rtx bring it)",
        )
    return there[0]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _captured(trt: Any, watch: _Watch) -> Iterator[None]:
    """Keeps TensorRT's own error messages, and the user's screen free of them.

    TensorRT has one logger in a process, the first: where Torch-TensorRT came before, its own.
    """
    global _logger
    if _logger is None:

        class BuildLogger(trt.ILogger):  # type: ignore[misc]
            """Hands errors to the build that runs."""

            watch: _Watch | None = None

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if self.watch is not None and severity <= trt.ILogger.ERROR:
                    self.watch.messages.append(message.strip()[:500])

        _logger = BuildLogger()
    other = logging.getLogger(TORCH_TENSORRTS_LOGGER)
    handler, propagates = Messages(watch.messages), other.propagate
    other.addHandler(handler)
    other.propagate = False
    _logger.watch = watch
    try:
        yield
    finally:
        _logger.watch = None
        other.removeHandler(handler)
        other.propagate = propagates
