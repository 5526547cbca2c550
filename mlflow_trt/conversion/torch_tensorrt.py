"""The call into Torch-TensorRT, its version differences, and what is learned of the network on the way.

Imports Torch-TensorRT, which needs a GPU (or the stand-ins of the building child) at import.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.export import ExportedProgram

from .builder import TORCH_TENSORRTS_LOGGER, Messages, configure, profiles
from .job import BindingSpec, Built, Job, ProgressListener
from .network import Network, look

if TYPE_CHECKING:
    from ..errors import ConversionError

_lock = threading.Lock()


def build(program: ExportedProgram, job: Job, listener: ProgressListener | None = None) -> Built:
    """Builds an engine in this process.

    Args:
        program: A prepared program: flat inputs, unique computed outputs.
        job: The rest.
        listener: Is told of the build's progress.

    Raises:
        UnsupportedOperatorError: The program has operators without a converter.
        ConversionError: TensorRT refused the network; the message has its own words.
        KeyboardInterrupt: Ctrl-C during the build.
    """
    with _quiet_import():
        import torch_tensorrt
        from torch_tensorrt.dynamo import convert_exported_program_to_serialized_trt_engine as converter

    watch = _BuildLog(job, listener)
    started = time.perf_counter()
    with _lock, _hooked(watch), _whole(), _captured(watch):
        try:
            serialized = converter(
                program, arg_inputs=tuple(_input(torch_tensorrt, spec) for spec in job.inputs), **job.settings
            )
        except BaseException as error:
            if watch.interrupted or isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            if not isinstance(error, Exception):
                raise
            raise watch.explain(error) from (watch.error or error)
    return Built(bytes(serialized), watch.network, time.perf_counter() - started)


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    # Its import warns of optional packages that are not installed (modelopt, TensorRT-LLM).
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _input(torch_tensorrt: Any, spec: BindingSpec) -> Any:
    """Torch-TensorRT's own Input: the envelope of all profiles, which the hook then replaces by each."""
    import torch

    dtype = getattr(torch, spec.dtype)
    low = tuple(min(sizes) for sizes in zip(*(p[0] for p in spec.profiles)))
    high = tuple(max(sizes) for sizes in zip(*(p[2] for p in spec.profiles)))
    if low == high:
        return torch_tensorrt.Input(shape=low, dtype=dtype)
    return torch_tensorrt.Input(min_shape=low, opt_shape=spec.profiles[0][1], max_shape=high, dtype=dtype)


class _BuildLog:
    """Collects what a build tells: the network, TensorRT's messages, the first error, an interrupt."""

    def __init__(self, job: Job, listener: ProgressListener | None) -> None:
        self.job = job
        self.listener = listener
        self.network = Network()
        self.messages: list[str] = []
        self.missing: tuple[str, ...] = ()
        self.nodes: Sequence[Any] = ()
        """Those of the graph that holds them."""
        self.static_only: tuple[str, ...] = ()
        """Those of them whose converter is only not declared for dynamic sizes."""
        self.error: BaseException | None = None
        self.node: str | None = None
        self.interrupted = False

    def explain(self, error: Exception) -> ConversionError:
        """Makes one error of what upstream hides: 2.11 fails with a NameError, 2.14 with "returned None"."""
        # Not at the top: errors bring all of MLflow, seconds that the building child does not need to build.
        from . import refusals

        if self.missing:
            return refusals.unsupported(self.missing, refusals.places(self.nodes), self.static_only)
        return refusals.not_built(self.error or error, self.node, self.messages)


class _Swallowed(logging.Handler):
    """Keeps the exception that 2.11 only logs, to fail with an UnboundLocalError after it."""

    def __init__(self, watch: _BuildLog) -> None:
        super().__init__(logging.ERROR)
        self.watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and self.watch.error is None:
            self.watch.error = record.exc_info[1]


@contextlib.contextmanager
def _captured(watch: _BuildLog) -> Iterator[None]:
    """Reads TensorRT's own messages, and keeps upstream's dump of the whole graph off the user's screen."""
    logger = logging.getLogger(TORCH_TENSORRTS_LOGGER)
    handler = Messages(watch.messages)
    compiler = logging.getLogger("torch_tensorrt.dynamo._compiler")
    propagates, compiler_propagates = logger.propagate, compiler.propagate
    logger.addHandler(handler)
    swallowed = _Swallowed(watch)
    compiler.addHandler(swallowed)
    logger.propagate = compiler.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        compiler.removeHandler(swallowed)
        logger.propagate, compiler.propagate = propagates, compiler_propagates


@contextlib.contextmanager
def _hooked(watch: _BuildLog) -> Iterator[None]:
    """Puts a subclass of the interpreter in its place for the time of one build."""
    from torch_tensorrt.dynamo.conversion import _conversion

    original = _conversion.TRTInterpreter
    _conversion.TRTInterpreter = _interpreter(original, watch)
    try:
        yield
    finally:
        _conversion.TRTInterpreter = original


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Keeps attention and clips whole up to their converters.

    Torch-TensorRT 2.11 lets PyTorch split attention by device, and for a program that was exported on the CPU that is a
    kernel without a converter. A clip would become a minimum and a maximum, which is what it stands in for
    (:mod:`.maxima`).
    """
    import torch
    from torch_tensorrt.dynamo import _compiler

    upstream = _compiler.get_decompositions

    def table(experimental: bool = False, decompose_attention: bool = False, *args: Any, **kwargs: Any) -> Any:
        decompositions = dict(upstream(experimental, decompose_attention, *args, **kwargs))
        decompositions.pop(torch.ops.aten.hardtanh.default, None)
        if not decompose_attention:
            decompositions.pop(torch.ops.aten.scaled_dot_product_attention.default, None)
        return decompositions

    _compiler.get_decompositions = table
    try:
        yield
    finally:
        _compiler.get_decompositions = upstream


def _interpreter(base: Any, watch: _BuildLog) -> Any:
    import tensorrt as trt  # what torch_tensorrt made of it: tensorrt_rtx, in its RTX flavour

    job = watch.job

    class Interpreter(base):  # type: ignore[misc]
        """Upstream's interpreter, with a look at the network, and the profiles and targets that were asked for."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the missing operators, which become an error below
                    super().__init__(*args, **kwargs)
                watch.missing = _named(self.validate_conversion())
                if watch.missing:
                    watch.nodes = list(self.module.graph.nodes)
                    self.compilation_settings.assume_dynamic_shape_support = True
                    still = _named(self.validate_conversion())
                    watch.static_only = tuple(operator for operator in watch.missing if operator not in still)
                    raise RuntimeError("operators without a converter")
            except Exception as error:
                watch.error = watch.error or error
                raise

        def run(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().run(*args, **kwargs)
            except BaseException as error:
                watch.error = watch.error or error
                raise

        def run_node(self, n: Any) -> Any:
            watch.node = f"{n.name} ({n.target})"
            result = super().run_node(n)
            watch.node = None
            return result

        def placeholder(self, target: str, args: Any, kwargs: Any) -> Any:
            return super().placeholder(job.inputs[self.input_specs_iter].name, args, kwargs)

        def output(self, target: str, args: Any, kwargs: Any) -> Any:
            outputs = args[0] if isinstance(args[0], (tuple, list)) else (args[0],)
            values = [getattr(n, "meta", {}).get("val") for n in self._cur_node.args[0]]
            dtypes = self.output_dtypes or [None] * len(outputs)
            taken = {self.ctx.net.get_input(i).name for i in range(self.ctx.net.num_inputs)}
            own = []
            if job.uint8:
                dtypes = [_uint8() if name in job.uint8 else dtype for name, dtype in zip(job.outputs, dtypes)]
                self.output_dtypes: list[Any] = dtypes
            for output, value, dtype in zip(outputs, values, dtypes):
                if isinstance(output, trt.ITensor):
                    output = _own_output(trt, self.ctx.net, output, value, dtype, taken)
                    taken.add(output.name)
                own.append(output)
            result = super().output(target, (tuple(own),), kwargs)
            for position, name in enumerate(job.outputs):
                self.ctx.net.get_output(position).name = name
            self._output_names = list(job.outputs)
            return result

        def _populate_trt_builder_config(self, *args: Any, **kwargs: Any) -> Any:
            if getattr(self, "optimization_profiles", None):
                self.optimization_profiles: list[Any] = profiles(self.builder, job)
            config = super()._populate_trt_builder_config(*args, **kwargs)
            configure(trt, config, job, watch)
            watch.network = look(trt, self.ctx.net, config.get_flag(trt.BuilderFlag.TF32))
            return config

    return Interpreter


def _uint8() -> Any:
    """uint8 as one of Torch-TensorRT's own dtypes."""
    import torch_tensorrt

    return torch_tensorrt.dtype.u8


def _own_output(trt: Any, net: Any, tensor: Any, value: Any, dtype: Any, taken: set[str]) -> Any:
    """A tensor that can be marked as an output: of the program's rank and dtype, and nobody else's.

    Args:
        trt: The TensorRT module.
        net: The network.
        tensor: What the converters made of the output.
        value: The program's example value; a symbolic number counts as rank 0.
        dtype: Torch-TensorRT's dtype of it. 2.11 declares it instead of casting, which a strongly typed
            network refuses.
        taken: Names of the inputs and of outputs before this one. A converter may hand its operand through; marked as
            an output it would rename an input's binding, or vanish.
    """
    wanted = dtype.to(trt.DataType, use_default=True) if dtype is not None else tensor.dtype
    rank = getattr(value, "ndim", 0) if value is not None else None
    if rank == 0 and len(tensor.shape) == 1:  # a size, which TensorRT has as a vector of one
        layer = net.add_shuffle(tensor)
        layer.reshape_dims = ()
        tensor = layer.get_output(0)
    if tensor.dtype != wanted:
        return net.add_cast(tensor, wanted).get_output(0)
    return net.add_identity(tensor).get_output(0) if tensor.name in taken else tensor


def _named(operators: Iterable[str]) -> tuple[str, ...]:
    """Operators' own names, of upstream's ``call_function torch.ops.aten.gather.default``."""
    names = sorted({operator.split(" ", 1)[-1] for operator in operators})
    # Python's getitem has a converter of its own; it is listed where its operand's producer has none.
    return tuple(name for name in names if not name.startswith("_operator.")) or tuple(names)
