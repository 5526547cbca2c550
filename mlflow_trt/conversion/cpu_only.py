"""Building without a GPU (TensorRT-RTX only): in a child process, for named compute capabilities.

Torch-TensorRT asks for a GPU that the build does not need. The child answers those questions; this process's torch is
left alone. The program travels as a file in a temporary folder (TMPDIR says where), which is removed in any case.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConversionError, ConverterError, SettingError, TrtError
from ..plan.targets import numbers, parse_capability
from . import build_child, child_process
from .build_child import JOB, PLAN, PROGRAM
from .job import Built, Job, ProgressListener
from .network import Network

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_logger = logging.getLogger(__name__)


def capabilities(given: Any) -> tuple[str, ...]:
    """Checks and spells compute capabilities: ``["8.6", "sm89", (8, 9), 8.9]`` → ``("8.6", "8.9")``.

    Args:
        given: One or several, or None for all that TensorRT-RTX supports.

    Raises:
        SettingError: TensorRT-RTX is not installed, or does not know one.
    """
    supported = supported_capabilities()
    if given is None:
        return supported
    several = isinstance(given, (list, set, frozenset)) or (
        isinstance(given, tuple) and not (len(given) == 2 and all(type(n) is int for n in given))
    )
    named = {_spelled(value) for value in (given if several else [given])}
    unknown = sorted(named - set(supported))
    if unknown or not named:
        raise SettingError(
            f"TensorRT-RTX cannot build for the compute capability {', '.join(unknown)}."
            if unknown
            else "compute_capabilities is empty.",
            f"some of {', '.join(supported)}",
            "name the capability of the GPUs that will run it; for others, convert on such a GPU itself and leave "
            "compute_capabilities out",
        )
    return tuple(c for c in supported if c in named)


def fitting(targets: tuple[str, ...], dtypes: Collection[str], named: bool) -> tuple[str, ...]:
    """Leaves out the compute capabilities that lack a dtype of the network.

    Args:
        targets: What is to be built for.
        dtypes: What the network holds, by torch's names or ours.
        named: Whether the caller named the targets.

    Raises:
        SettingError: A target that the caller named lacks one, or none is left.
    """
    needed = max([(0, 0), *(need for dtype, need in _NEEDS.items() if dtype in dtypes)])
    left = tuple(t for t in targets if numbers(t) >= needed)
    lacking = [t for t in targets if t not in left]
    if lacking and (named or not left):
        holds = ", ".join(d for d in _NEEDS if d in dtypes)
        raise SettingError(
            f"The network holds {holds}, which the compute capability {', '.join(lacking)} does not have.",
            f"{needed[0]}.{needed[1]} and newer",
            "leave these targets out, or choose another precision",
        )
    if lacking:
        _logger.info("Built for %s: %s lacks a dtype of the network.", ", ".join(left), ", ".join(lacking))
    return left


# Turing has no bfloat16 and no INT4, Ampere no FP8: TensorRT-RTX says "the model contains HW-specific datatypes".
_NEEDS = {"bfloat16": (8, 0), "int4": (8, 0), **dict.fromkeys(("float8", "float8_e4m3fn", "float8_e5m2"), (8, 9))}


def supported_capabilities() -> tuple[str, ...]:
    """What the installed TensorRT-RTX builds for.

    Raises:
        SettingError: It is not installed.
    """
    if importlib.machinery.PathFinder.find_spec("tensorrt_rtx") is None:
        raise SettingError(
            "There is no GPU here (or compute capabilities were named), and TensorRT-RTX is not installed.",
            "TensorRT-RTX, which builds without a GPU; full TensorRT builds only on the GPU that it builds for",
            "pip install tensorrt-rtx (convert-rtx and convert-onnx-rtx bring it), or convert where there is a GPU",
        )
    import tensorrt_rtx

    members = filter(None, map(parse_capability, tensorrt_rtx.ComputeCapability.__members__))
    return tuple(sorted(members, key=numbers))


def _spelled(value: object) -> str:
    capability = parse_capability(value)
    if capability is None:
        raise SettingError(
            f"{value!r} is no compute capability.",
            "such as '8.9', 'sm89', (8, 9) or 8.9",
            "correct compute_capabilities",
        )
    return capability


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yields a temporary folder for what is handed to a builder; it is removed in any case."""
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-") as name:
        yield Path(name)


def build(
    folder: Path, job: Job, timeout: float | None, listener: ProgressListener | None = None, imports: Sequence[str] = ()
) -> Built:
    """Builds an engine in a child process.

    Args:
        folder: Holds what the job's converter reads.
        job: The rest; its settings must be plain values.
        timeout: Seconds the child may take; None: any time.
        listener: Is told of the build's progress.
        imports: Modules that the child imports before it reads the program.

    Raises:
        ConversionError: The child failed, was killed or took too long, or the disk is full. What the child itself
            raises comes as it is.
        SettingError: A setting is an object that can't be handed to the child.
    """
    for name, value in job.settings.items():
        try:
            json.dumps(value)
        except TypeError:
            raise SettingError(
                f"The setting {name} is a {type(value).__name__}.",
                "a number, string, bool or list: the engine is built in a process of its own",
                f"leave {name} out, or convert on a GPU without compute_capabilities",
            ) from None
    content = {"job": job.to_json(), "imports": list(imports), "path": sys.path if imports else []}
    with writing(folder):
        (folder / JOB).write_text(json.dumps(content))
    result = _run(folder, timeout, listener)
    network = Network(**result["network"])
    network.outputs = [(n, d, list(s)) for n, d, s in network.outputs]
    return Built((folder / PLAN).read_bytes(), network, result["seconds"])


def write_program(program: ExportedProgram, folder: Path) -> list[str]:
    """Writes a prepared program for the building child.

    Returns:
        The modules that register its operators, which must be there when the program is read.

    Raises:
        UnsupportedOperatorError: No module that the child could import registers one of them.
    """
    import torch

    from .registrations import modules_of

    imports = modules_of(program)
    torch.export.save(program, folder / PROGRAM)
    return imports


_WRITERS = ("PytorchStreamWriter", "inline_container")
"""Words of torch's own writer, by which a full disk is told from a program that can't be written."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Makes one kind of error of what fails while a model is written into a temporary folder.

    Raises:
        ConversionError: The disk is full.
        ConverterError: The model itself can't be written.
    """
    try:
        yield
    except (TrtError, MemoryError):
        raise
    except Exception as error:
        # torch's own writer turns a full disk into a RuntimeError.
        if isinstance(error, OSError) or (type(error) is RuntimeError and any(w in str(error) for w in _WRITERS)):
            raise _unwritable(folder, str(error)) from error
        raise ConverterError(
            f"PyTorch can't write the program for the building process: {type(error).__name__}: "
            f"{str(error).strip()[:400]}",
            "a program that torch.export.save takes",
            "replace what it names, or convert on a GPU without compute_capabilities",
        ) from error


def _unwritable(folder: Path, reason: str) -> ConversionError:
    return ConversionError(
        f"The program could not be written to {folder.parent}: {(reason.splitlines() or ['no reason given'])[0]}.",
        "room for the model's weights, and for the engine",
        "free some space, or set TMPDIR to a larger disk",
    )


def _run(folder: Path, timeout: float | None, listener: ProgressListener | None) -> dict[str, Any]:
    """Runs the child to its end and returns its result."""

    def heard(message: dict[str, Any]) -> None:
        if listener is not None:
            listener(*message["progress"])

    try:
        result: dict[str, Any] = child_process.run(
            build_child.__name__, folder, timeout=timeout, environment=_environment(folder), heard=heard
        )
        return result
    except child_process.TookTooLongError as late:
        raise ConversionError(
            f"The building process had not finished after {timeout:g} seconds and was stopped.{late}",
            "an engine within that time",
            "raise timeout= (seconds), or look above for what it waited for",
        ) from None
    except child_process.DiedError as end:
        if end.os_error:
            raise _unwritable(folder, end.os_error) from None
        hint, remedy = _ENDS.get(end.signal, _CRASH) if end.signal else ("", "see its last words above")
        raise ConversionError(f"The building process {end}{hint}.{end.tail}", "an engine", remedy) from None


_ENDS = {
    "SIGKILL": (": it probably ran out of memory", "give it more memory, or a smaller model or range of shapes"),
}
_CRASH = (
    ": a fault in TensorRT or one of its libraries",
    "see its last words above; try another release of TensorRT-RTX and Torch-TensorRT",
)


def _environment(folder: Path) -> dict[str, str]:
    """The child's environment: no GPU, so that the build is the same everywhere, and this package to be found.

    Torch-TensorRT makes folders for caches at import: in the child's own folder they go when it goes.
    """
    return {
        **child_process.package_on_path(os.environ),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),
    }
