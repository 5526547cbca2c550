"""Who builds the engine: Torch-TensorRT and, where it can't convert the whole model, TensorRT's parser of ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConversionError, ConverterError, SettingError, UnsupportedOperatorError
from ..plan.files import GoldenTensors
from . import cpu_only, progress, refusals
from . import settings as _settings
from .build_child import MODEL
from .job import Built, Job, ProgressListener
from .precision import Prepared


@dataclass(frozen=True)
class Source:
    """What both converters are given."""

    prepared: Prepared
    golden: GoldenTensors
    """What the model answers."""
    names: tuple[str, ...]
    """What its outputs are called there."""


@dataclass(frozen=True)
class Conversion:
    """An engine, and who built it."""

    built: Built
    job: Job
    """As it was done: its converter, and the settings that it has."""
    reason: str | None = None
    """Why it was not the first choice, in a sentence."""


def check(converter: str, settings: Mapping[str, Any]) -> None:
    """Checks whether a converter that was named can be tried at all.

    Raises:
        SettingError: A setting is Torch-TensorRT's alone, or packages are missing.
    """
    if converter == "onnx":
        _check_onnx(settings)


def build(
    model: Source, job: Job, converter: str, timeout: float | None, listener: ProgressListener | None
) -> Conversion:
    """Builds an engine, in a child process where the job names compute capabilities.

    Args:
        model: What is converted.
        job: What is to be built; with Torch-TensorRT's settings.
        converter: ``"torch_tensorrt"``, ``"onnx"``, or ``"auto"``: the first and, where that can't, the second.
        timeout: Seconds that a building child may take; None: any time.
        listener: Is told of the build's progress.

    Raises:
        UnsupportedOperatorError: The model has operators that the converter, or neither of them, takes.
        ConversionError: It could not be built.
        SettingError: A setting is not the converter's, or its packages are not installed.
    """
    if converter == "onnx":
        return _by_onnx(model, job, timeout, listener)
    try:
        return _by_torch_tensorrt(model, job, timeout, listener)
    except (UnsupportedOperatorError, ConverterError) as error:
        if converter != "auto":
            raise
        first = error
    try:
        _check_onnx(job.settings)
    except SettingError as obstacle:
        raise refusals.not_tried(first, obstacle) from first
    reason = _reason(first)
    progress.note(listener, f"{reason}: ONNX is tried.")
    try:
        return replace(_by_onnx(model, job, timeout, listener), reason=reason)
    except ConversionError as second:
        raise refusals.neither(first, second) from second


def _reason(error: ConversionError) -> str:
    """Why Torch-TensorRT could not, in one line, without places in files of this machine."""
    if isinstance(error, UnsupportedOperatorError):
        return f"Torch-TensorRT has no converter for {', '.join(error.operators)}"
    return f"Torch-TensorRT failed: {error.found.splitlines()[0][:300]}"


def _by_torch_tensorrt(model: Source, job: Job, timeout: float | None, listener: ProgressListener | None) -> Conversion:
    program = model.prepared.program
    if job.capabilities is None:
        from .torch_tensorrt import build

        return Conversion(build(program, job, listener), job)
    with cpu_only.scratch() as folder:
        with cpu_only.writing(folder):
            imports = cpu_only.write_program(program, folder)
        return Conversion(cpu_only.build(folder, job, timeout, listener, imports), job)


def _by_onnx(model: Source, job: Job, timeout: float | None, listener: ProgressListener | None) -> Conversion:
    from . import onnx, onnx_agreement, onnx_parser

    program = model.prepared.program
    job = replace(job, converter="onnx", settings=_settings.of_the_builder(job.settings))
    with cpu_only.scratch() as folder:
        with cpu_only.writing(folder):
            onnx.write(program, job, folder)
        if job.capabilities is None:
            built = onnx_parser.build(folder / MODEL, job, listener)
        else:
            built = cpu_only.build(folder, job, timeout, listener)
        # After the build, which is quick, and which names what it does not take.
        onnx_agreement.check(folder / MODEL, program, job, model.golden, model.names)
    return Conversion(built, job)


def _check_onnx(settings: Mapping[str, Any]) -> None:
    from . import onnx

    _settings.of_the_builder(settings)
    onnx.check_installed()
