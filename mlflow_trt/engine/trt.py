"""TensorRT itself: the module, its log, a deserialized engine, and what that engine says of itself.

Used alike for ``tensorrt_rtx`` (1.4 to 1.6), ``tensorrt`` (10.15 to 11.4, by its documented interface, never run), and
``tensorrt_lean``, NVIDIA's lean runtime of it, whose real module every name that is used here is tested against (10.15
and 11.4). Every call here exists in all, and the few that only TensorRT-RTX has are asked for by name. The lean module
lacks two names, which are asked for too: ``TensorFormat`` and ``EngineInspector``; its calls that return one raise.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import DeviceError, ManifestError, PlanError
from ..plan.dtypes import CALLERS, tensorrt_name
from ..plan.host import module_of, pip_install
from ..plan.manifest import Branch, Interface, Profile, ShapeRange, Structure, Tensor, TensorLeaf
from . import cuda
from .pool import OutOfMemory

_logger = logging.getLogger(__name__)

SCARCE = 64 << 20
"""Bytes: where less is free, a failure is one of memory, whatever TensorRT says: its cuDNN graphs name no cause."""


def import_runtime(name: str, release: str | None) -> Any:
    """Imports a TensorRT module.

    Args:
        name: ``"tensorrt_rtx"``, ``"tensorrt"`` or ``"tensorrt_lean"``.
        release: The release that the plan needs; None: not checked here.

    Raises:
        PlanError: It can't be imported, or is of another release.
    """
    wanted = module_of(name) or name
    try:
        module = importlib.import_module(wanted)
    except Exception as error:  # a missing library is an OSError or FileNotFoundError there
        raise PlanError(
            f"{name} can't be imported: {error}.",
            f"{name} {release or ''}".strip() + ", which built the plan",
            pip_install(name, release),
        ) from error
    # torch_tensorrt puts tensorrt_rtx into sys.modules under the name tensorrt as well.
    if module.__name__ != wanted:
        raise PlanError(
            f"The module {wanted} is {module.__name__} in this process.",
            f"{wanted} itself",
            "load the model in a process that has not imported torch_tensorrt",
        )
    return module


_REFUSALS = {
    "getEngineHostCodeAllowed": (
        "a plan without code for the host: this one holds a lean runtime of its own, which is not run here",
        "build it without (trtexec: --excludeLeanRuntime; Torch-TensorRT's version_compatible plans are such), or with "
        "the TensorRT release that is here",
    ),
    "call to stub": (
        "a version-compatible plan, for the lean runtime holds no code for others",
        "build it with version_compatible=True (trtexec: --versionCompatible --excludeLeanRuntime), or load it with "
        "the full tensorrt of its release",
    ),
}
"""Words of TensorRT's → what they mean: expected, and what to do."""


class Log:
    """What TensorRT said lately. Its calls return None or False on failure, and the reason is only here."""

    def __init__(self, trt: Any) -> None:
        kept: deque[tuple[float, str]] = deque(maxlen=64)
        severity = trt.ILogger.Severity
        levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.WARNING,
            severity.INFO: logging.INFO,
            severity.VERBOSE: logging.DEBUG,
        }

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                level = levels.get(severity, logging.INFO)
                if level >= logging.WARNING:
                    kept.append((level, str(message)))
                # One step down: an error becomes an exception here, with these lines in it.
                _logger.log(min(level, logging.INFO) if level < logging.ERROR else logging.WARNING, "%s", message)

        self.logger = Logger()
        self._kept = kept

    def text(self) -> str:
        """Returns the last messages, errors alone if there are any, and forgets them: the next failure has its own."""
        kept = list(self._kept)
        self._kept.clear()
        errors = [message for level, message in kept if level >= logging.ERROR]
        return " | ".join((errors or [message for _, message in kept])[-5:]) or "TensorRT gave no reason"


def said_out_of_memory(text: str) -> bool:
    """Whether TensorRT's words mean that the GPU's memory did not suffice."""
    lowered = text.lower()
    return any(
        word in lowered for word in ("out of memory", "outofmemory", "cudaerrormemoryallocation", "cudaerror 2:")
    )


def _memory_is_scarce() -> bool:
    try:
        return cuda.memory()[0] < SCARCE
    except DeviceError:  # what failed before may have spoilt CUDA itself
        return False


class Deserialized:
    """A TensorRT engine on the GPU, and what keeps it alive.

    Args:
        name: Which runtime: ``"tensorrt_rtx"``, ``"tensorrt"`` or ``"tensorrt_lean"``.
        release: The release that the plan needs.
        plan: The serialized engine; not needed any more afterwards.

    Raises:
        OutOfMemory: The GPU's memory does not suffice.
        PlanError: TensorRT refused the plan; the message holds its own words.
    """

    def __init__(self, name: str, release: str | None, plan: Any) -> None:
        self.trt = import_runtime(name, release)
        self.log = Log(self.trt)
        runtime = self.trt.Runtime(self.log.logger)
        # A plan may hold code for the host. It stays what it is by default, refused; said here because it matters.
        runtime.engine_host_code_allowed = False
        self._runtime = runtime
        self.engine = runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            said = self.log.text()
            if said_out_of_memory(said):
                raise OutOfMemory(
                    f"The GPU's memory does not suffice for the engine of {len(plan):,} bytes: {said}",
                    "free GPU memory for weights, scratch and buffers",
                    "free memory on the GPU (nvidia-smi shows who holds it) or choose another device",
                )
            expected, remedy = _REFUSALS.get(
                next((words for words in _REFUSALS if words in said), ""),
                (
                    f"a plan that {name} {self.trt.__version__} built for this GPU",
                    "build the plan again with the TensorRT release and for the GPU that are here",
                ),
            )
            raise PlanError(
                f"{name} {self.trt.__version__} refused the plan: {said}{self._validity(plan)}", expected, remedy
            )

    def release(self) -> None:
        """Lets go of the engine, then of the runtime that made it, then of the log that both write to."""
        self.engine = None
        self._runtime = None

    def error(self, doing: str) -> Exception:
        """Returns the exception for a TensorRT call that said no."""
        said = self.log.text()
        if said_out_of_memory(said) or _memory_is_scarce():
            return OutOfMemory(
                f"TensorRT ran out of GPU memory while {doing}: {said}",
                "more free GPU memory",
                "see nvidia-smi for what else is on the GPU",
            )
        return PlanError(
            f"TensorRT failed while {doing}: {said}",
            "an engine that runs",
            "look up the message; if it stays, rebuild the plan, or load with backend='reference' to compare",
        )

    def layers(self) -> list[dict[str, Any]]:
        """Returns the engine's layers; their names alone unless it was built with detailed profiling verbosity.

        Empty with the lean runtime: its Python module has no inspector.
        """
        if not hasattr(self.trt, "EngineInspector"):
            return []
        inspector = self.engine.create_engine_inspector()
        return layer_rows(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def _validity(self, plan: Any) -> str:
        """What TensorRT-RTX itself says of a plan that it refused; an explanation, never a verdict."""
        ask = getattr(self._runtime, "get_engine_validity", None)
        if ask is None:
            return ""
        try:
            validity, mask = ask(plan)
            reasons = [
                name
                for name, member in self.trt.EngineInvalidityDiagnostics.__members__.items()
                if int(mask) & int(member.value)
            ]
        except Exception as error:
            _logger.debug("get_engine_validity failed: %s", error)
            return ""
        return f" (its own check: {getattr(validity, 'name', validity)} {', '.join(reasons)})"


def layer_rows(text: str) -> list[dict[str, Any]]:
    """Reads the engine inspector's JSON.

    Returns:
        A row per layer: ``name`` always; ``type``, ``inputs``, ``outputs``, ``tactic`` where the engine tells them.
        Empty if it tells nothing, or not in JSON.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    rows: list[dict[str, Any]] = []
    for layer in layers:
        if not isinstance(layer, dict):
            rows.append({"name": str(layer)})
            continue
        rows.append(
            {
                "name": layer.get("Name", ""),
                "type": layer.get("LayerType", ""),
                "inputs": _tensors(layer.get("Inputs")),
                "outputs": _tensors(layer.get("Outputs")),
                "tactic": layer.get("TacticName") or layer.get("TacticValue") or "",
            }
        )
    return rows


def describe(trt: Any, engine: Any) -> tuple[Interface, tuple[Profile, ...]]:
    """Asks an engine for its interface: for one that another program built.

    Every dynamic dimension gets a symbol of its own, as the engine does not say which sizes are equal. A call takes the
    inputs by position, in the engine's order, and answers the output, or a tuple of them.

    Raises:
        ManifestError: A binding has a dtype or memory layout that arrays can't have.
    """
    tensors: dict[bool, list[Tensor]] = {True: [], False: []}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        binding_dtype = dtype_of(engine, name)
        shape = [int(n) for n in engine.get_tensor_shape(name)]
        tensors[is_input].append(
            Tensor(
                name=name,
                binding=name,
                dtype=CALLERS.get(binding_dtype, binding_dtype),
                binding_dtype=binding_dtype,
                shape=tuple(size if size >= 0 else f"{name}.{place}" for place, size in enumerate(shape)),
            )
        )
    interface = Interface(
        inputs=tuple(tensors[True]),
        outputs=tuple(tensors[False]),
        arguments=Branch(
            kind="tuple",
            items=(
                Branch(kind="tuple", items=tuple(TensorLeaf(name=t.name) for t in tensors[True])),
                Branch(kind="dict", keys=(), items=()),
            ),
        ),
        result=_result(tensors[False]),
    )
    return interface, profiles(trt, engine, tensors[True])


def profiles(trt: Any, engine: Any, inputs: Iterable[Tensor]) -> tuple[Profile, ...]:
    """Asks an engine for its optimization profiles, by the inputs' public names."""
    profiles = []
    for index in range(engine.num_optimization_profiles):
        profile: Profile = {}
        for tensor in inputs:
            if engine.get_tensor_location(tensor.binding) == trt.TensorLocation.HOST:
                # A shape tensor: its profile holds values, not sizes, and TensorRT checks those itself.
                continue
            low, opt, high = (
                tuple(int(n) for n in dims) for dims in engine.get_tensor_profile_shape(tensor.binding, index)
            )
            profile[tensor.name] = ShapeRange(min=low, opt=opt, max=high)
        profiles.append(profile)
    return tuple(profiles)


def dtype_of(engine: Any, binding: str) -> str:
    """Returns a binding's dtype by our name."""
    return tensorrt_name(getattr(engine.get_tensor_dtype(binding), "name", ""))


def check_interface(trt: Any, engine: Any, interface: Interface) -> None:
    """Compares a manifest's interface with the engine, and refuses what buffers of plain arrays can't serve.

    Raises:
        ManifestError: Names or dtypes differ; or a binding is vectorized, or an output shares an input's memory.
    """
    there = {engine.get_tensor_name(index): index for index in range(engine.num_io_tensors)}
    named = [t.binding for t in (*interface.inputs, *interface.outputs)]
    if sorted(there) != sorted(named):
        raise ManifestError(
            f"The engine's inputs and outputs are {sorted(there)}.",
            f"{sorted(named)}, as the manifest says",
            "plan and manifest do not belong together: log the model again",
        )
    for is_input, tensors in ((True, interface.inputs), (False, interface.outputs)):
        for tensor in tensors:
            _check_binding(trt, engine, tensor, is_input)


def _check_binding(trt: Any, engine: Any, tensor: Tensor, is_input: bool) -> None:
    binding = tensor.binding
    dtype = dtype_of(engine, binding)
    mode = trt.TensorIOMode.INPUT if is_input else trt.TensorIOMode.OUTPUT
    if dtype != tensor.binding_dtype or engine.get_tensor_mode(binding) != mode:
        raise ManifestError(
            f"The engine's {binding!r} is an {engine.get_tensor_mode(binding).name.lower()} of dtype {dtype}.",
            f"an {mode.name.lower()} of {tensor.binding_dtype}, as the manifest says",
            "plan and manifest do not belong together: log the model again",
        )
    if not _is_linear(trt, engine, binding):
        raise ManifestError(
            f"The engine's {binding!r} has the memory layout {engine.get_tensor_format_desc(binding)!r}.",
            "row-major linear, which arrays have",
            "build the engine without --inputIOFormats and --outputIOFormats",
        )
    aliased = getattr(engine, "get_aliased_input_tensor", None)
    if not is_input and aliased is not None and aliased(binding):
        raise ManifestError(
            f"The engine's output {binding!r} shares the memory of its input {aliased(binding)!r}.",
            "outputs with memory of their own",
            "build the engine without in-place key-value caches",
        )


def _is_linear(trt: Any, engine: Any, binding: str) -> bool:
    if hasattr(trt, "TensorFormat"):
        return bool(engine.get_tensor_format(binding) == trt.TensorFormat.LINEAR)
    # By the documentation of get_tensor_format_desc, and in the lean library: "Row major linear FP32 format (kLINEAR)".
    return str(engine.get_tensor_format_desc(binding)).startswith("Row major linear")


def _result(outputs: Sequence[Tensor]) -> Structure:
    leaves = tuple(TensorLeaf(name=t.name) for t in outputs)
    return leaves[0] if len(leaves) == 1 else Branch(kind="tuple", items=leaves)


def _tensors(entries: Any) -> str:
    if not isinstance(entries, list):
        return ""
    return ", ".join(
        f"{e.get('Name', '')} {e.get('Dimensions', '')} {e.get('Format/Datatype') or e.get('Format', '')}".strip()
        if isinstance(e, dict)
        else str(e)
        for e in entries
    )
