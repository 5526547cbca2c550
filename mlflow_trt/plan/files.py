"""A plan: an engine at rest. Serialized bytes, the manifest that describes them, and what was checked of them.

Also the two things that can be known of a plan's bytes without TensorRT: its digest and its header.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Union, runtime_checkable

import numpy as np

from ..errors import ConversionError, ManifestError, PlanError, SettingError
from . import lookalikes
from . import manifest as _manifest
from .manifest import File, Golden, Manifest, PlanRecord, Program, Runtime, SourceRecord
from .targets import RTX_CAPABILITIES, sm

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MODEL_PLAN = "model.plan"
RUNTIME_CACHE = "runtime-cache.bin"
PROGRAM = "program/model.pt2"
ONNX_PROGRAM = "program/model.onnx"
"""Its weights lie beside it, in files whose names begin as its."""
GOLDEN_INPUTS = "golden/inputs.safetensors"
GOLDEN_OUTPUTS = "golden/outputs.safetensors"

HEADER_BYTES = 64

_MAGIC: dict[bytes, Runtime] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}


@dataclass(frozen=True)
class Header:
    """What the first bytes of a plan say.

    The fields were read off plans of TensorRT-RTX 1.4 and 1.6 and of full TensorRT 8.6; NVIDIA documents none of them.
    """

    runtime: Runtime
    release: str
    length: int
    """Bytes of the whole plan."""
    capabilities: tuple[str, ...] | None
    """What it was built for; None: not said (full TensorRT), or only for the GPU it was built on."""


def read_header(start: bytes, name: str = "The plan") -> Header:
    """Reads a plan's header.

    Args:
        start: The plan, or its first :data:`~mlflow_trt.plan.lookalikes.START_BYTES`, by which an error says what it is
            instead; 64 are enough to read a header.
        name: What the error calls it.

    Raises:
        PlanError: These bytes are not the start of a TensorRT engine.
    """
    runtime = _MAGIC.get(bytes(start[:4]))
    if runtime is None or len(start) < HEADER_BYTES:
        known = lookalikes.recognize(start) if runtime is None else None
        fault = f"{name} begins with {bytes(start[:4])!r}."
        if runtime is not None:
            fault = f"{name} ends after {len(start)} bytes."
        elif known is not None:
            fault = f"{name} is {known.what}."
        raise PlanError(
            fault,
            "a serialized engine of TensorRT 8.6 or newer (b'ftrt') or TensorRT-RTX (b'vtrt')",
            known.remedy if known else "give the engine file itself: what trtexec --saveEngine or Plan.save wrote",
        )
    release = ".".join(str(n) for n in start[24:28])
    length = int.from_bytes(start[16:24], "little")
    if runtime == "tensorrt":
        return Header(runtime, release, length, None)
    mask = int.from_bytes(start[32:40], "little")
    capabilities = tuple(capability for bit, capability in enumerate(RTX_CAPABILITIES) if mask >> bit & 1)
    return Header(runtime, release, length, capabilities or None)


def check_length(header: Header, size: int, name: str = "The plan") -> None:
    """Compares the length in a header with the real one.

    Raises:
        PlanError: The plan was cut short, or something was appended to it.
    """
    if header.length != size:
        raise PlanError(
            f"{name} has {size:,} bytes, and its header says {header.length:,}.",
            "a whole plan",
            "fetch or build it again: it was cut short or altered on its way",
        )


def check_plan(folder: Path, record: PlanRecord) -> Path:
    """Checks a plan's file before TensorRT sees a byte of it: digest, header, and that they say what the record says.

    Returns:
        The file's path.

    Raises:
        PlanError: The plan is missing, cut short, altered, or no engine.
        ManifestError: It is of another runtime or release than its record says.
    """
    path = verify(folder, record.file)
    check_header(path, record)
    return path


def check_header(path: Path, record: PlanRecord) -> Header:
    """Checks that a file is a whole plan, and the one that its record describes; its digest is not looked at.

    Args:
        path: The plan's file.
        record: What the manifest says of it.

    Raises:
        PlanError: It is no plan, or not a whole one.
        ManifestError: It is of another runtime or release than its record says.
    """
    name = record.file.path
    with path.open("rb") as file:
        header = read_header(file.read(lookalikes.START_BYTES), name)
    check_length(header, path.stat().st_size, name)
    if (header.runtime, header.release) != (record.runtime, record.release):
        raise ManifestError(
            f"{name} is a plan of {header.runtime} {header.release}.",
            f"{record.runtime} {record.release}, as the manifest says",
            "plan and manifest do not belong together: log the model again",
        )
    return header


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, in constant memory."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def verify(folder: Path, file: File) -> Path:
    """Checks a file of a model against the manifest's size and digest.

    Returns:
        The file's path.

    Raises:
        PlanError: It is missing, cut short, or altered.
    """
    path = folder / file.path
    remedy = "fetch the model again; if it stays so, the stored object is damaged: log the model again"
    if not path.is_file():
        raise PlanError(f"{file.path} is missing.", f"a file of {file.size:,} bytes", remedy)
    size = path.stat().st_size
    if size != file.size:
        raise _differs(path, file, f"has {size:,} bytes", f"{file.size:,} bytes, as the manifest says", remedy)
    actual = digest(path)
    if actual != file.sha256:
        raise _differs(path, file, f"has the SHA-256 {actual}", f"{file.sha256}, as the manifest says", remedy)
    return path


def verify_program(folder: Path, program: Program) -> Path:
    """Checks all files of a model's program, and returns the one to open.

    Raises:
        PlanError: One is missing, cut short, or altered.
    """
    for weights in program.weights:
        verify(folder, weights)
    return verify(folder, program.file)


def _differs(path: Path, file: File, fault: str, expected: str, remedy: str) -> PlanError:
    """A file that is not the manifest's: where it is of a kind that does not belong there, that says most."""
    with path.open("rb") as content:
        known = lookalikes.recognize(content.read(lookalikes.START_BYTES))
    if known is None or known.suffix == Path(file.path).suffix:
        return PlanError(f"{file.path} {fault}.", expected, remedy)
    return PlanError(f"{file.path} {fault}: it is {known.what}.", expected, f"{known.remedy}; else {remedy}")


BETWEEN = "between"
"""The golden point at a size between the others: what depends on a size shows there."""


@dataclass(frozen=True)
class GoldenTensors:
    """Inputs at every profile point and what PyTorch or ONNX Runtime answered, by ``{profile}.{point}/{name}``."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def points(self) -> Iterator[tuple[int, str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Yields (profile, point, inputs by name, outputs by name)."""
        for prefix in dict.fromkeys(key.split("/", 1)[0] for key in self.inputs):
            profile, point = prefix.split(".", 1)
            yield int(profile), point, _below(self.inputs, prefix), _below(self.outputs, prefix)

    def without(self, point: str) -> GoldenTensors:
        """Leaves out one point of every profile."""

        def left(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {key: value for key, value in tensors.items() if key.split("/", 1)[0].split(".", 1)[1] != point}

        return GoldenTensors(left(self.inputs), left(self.outputs))


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.split("/", 1)[1]: value for key, value in tensors.items() if key.split("/", 1)[0] == prefix}


@runtime_checkable
class OnnxGraph(Protocol):
    """A graph in ONNX that a plan was built from."""

    def write_into(self, folder: Path) -> Path:
        """Writes it, its weights beside it, and returns its file."""


@dataclass(frozen=True)
class Plan:
    """A serialized engine with its description."""

    serialized: bytes
    """What TensorRT returned, byte for byte."""
    manifest: Manifest
    """Describes this one plan."""
    golden: GoldenTensors | None = None
    program: Union[ExportedProgram, OnnxGraph, Path, None] = None
    """The exported program or graph that the engine was built from, or the file that holds it."""
    runtime_cache: bytes | None = None
    """TensorRT-RTX: kernels compiled for one GPU."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each step of its conversion took."""

    @property
    def record(self) -> PlanRecord:
        """What the manifest says of this plan."""
        return self.manifest.plans[0]

    def save(self, path: str | Path) -> Path:
        """Writes the bare engine, which any TensorRT program of the same runtime and release can load."""
        path = Path(path)
        path.write_bytes(self.serialized)
        return path


def folder_name(record: PlanRecord) -> str:
    """The name of a plan's folder: ``tensorrt_rtx-1.6.1.120-sm86-sm89``."""
    where = "-".join(sm(c) for c in record.capabilities or ()) or "any"
    return f"{record.runtime}-{record.release}-{where}"


def write(plans: Sequence[Plan], folder: Path, *, program: bool = True) -> Manifest:
    """Writes plans of one model into a folder, the manifest last; see :func:`write_files`."""
    manifest = write_files(plans, folder, program=program)
    _manifest.write(folder, manifest)
    return manifest


def write_files(plans: Sequence[Plan], folder: Path, *, program: bool = True) -> Manifest:
    """Writes what the manifest of plans of one model lists, and not the manifest itself, to which figures may be added.

    Args:
        plans: At least one; the loader tries them in this order. Program and golden tensors are the first plan's.
        folder: An existing folder.
        program: Whether to write the exported program.

    Returns:
        The manifest of all of them.

    Raises:
        SettingError: The plans differ in interface, were converted from different models, or two are for the same
            runtime, release and capabilities.
    """
    first = plans[0]
    source = _source(plans)
    records: list[PlanRecord] = []
    for plan in plans:
        if plan.manifest.interface != first.manifest.interface:
            raise SettingError(
                "The plans differ in their inputs or outputs.",
                "plans of one model: equal names, dtypes, shapes and structure",
                "log models that differ under different names",
            )
        where = f"plans/{folder_name(plan.record)}"
        if any(r.file.path.startswith(where + "/") for r in records):
            raise SettingError(
                f"Two plans are for the same target, {folder_name(plan.record)}.",
                "one plan for each runtime, release and set of capabilities",
                "leave one out",
            )
        file = write_file(folder, f"{where}/{MODEL_PLAN}", plan.serialized)
        cache = plan.runtime_cache and write_file(folder, f"{where}/{RUNTIME_CACHE}", plan.runtime_cache)
        records.append(plan.record.model_copy(update={"file": file, "runtime_cache": cache or None}))
    return Manifest(
        interface=first.manifest.interface,
        plans=tuple(records),
        program=_write_program(folder, first.program) if program and first.program is not None else None,
        golden=_write_golden(folder, first.golden) if first.golden else None,
        source=source,
    )


def _source(plans: Sequence[Plan]) -> SourceRecord | None:
    """The first plan's source; those of the others have to be the same files, whatever URI led to them."""
    found = [plan.manifest.source for plan in plans if plan.manifest.source is not None]
    digests = {tuple(file.sha256 for file in source.files) for source in found}
    if len(digests) > 1:
        raise SettingError(
            f"The plans were converted from different models: {', '.join(source.uri for source in found)}.",
            "plans of one model",
            "convert all of them from the same version",
        )
    return found[0] if found else None


def read_golden(folder: Path, golden: Golden) -> GoldenTensors:
    """Reads the golden tensors, digests checked.

    Raises:
        PlanError: A file is missing, cut short, or altered.
    """
    from safetensors.numpy import load_file

    return GoldenTensors(load_file(verify(folder, golden.inputs)), load_file(verify(folder, golden.outputs)))


def write_file(folder: Path, path: str, content: bytes) -> File:
    """Writes a file of a model and describes it for the manifest."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return File(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def describe(folder: Path, path: str) -> File:
    """Describes a file of a folder for the manifest."""
    return File(path=path, size=(folder / path).stat().st_size, sha256=digest(folder / path))


def _write_program(folder: Path, program: ExportedProgram | OnnxGraph | Path) -> Program:
    (folder / PROGRAM).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(program, OnnxGraph) or (isinstance(program, Path) and program.suffix == Path(ONNX_PROGRAM).suffix):
        return _write_graph(folder, program)
    import torch

    target = folder / PROGRAM
    if isinstance(program, Path):
        shutil.copyfile(program, target)
    else:
        try:
            torch.export.save(program, target)
        except OSError:
            raise
        except Exception as error:
            raise ConversionError(
                f"PyTorch can't save the exported program: {str(error).strip().splitlines()[0][:300]}",
                "a program that torch.export.save takes",
                'return types that torch.export can write (a dict, a tuple), or log the model with program="omit"',
            ) from error
    return Program(file=describe(folder, PROGRAM), torch=torch.__version__)


def _write_graph(folder: Path, program: OnnxGraph | Path) -> Program:
    target = folder / ONNX_PROGRAM
    if isinstance(program, Path):
        for file in program.parent.glob(f"{program.name}*"):
            shutil.copyfile(file, target.parent / file.name)
    else:
        program.write_into(target.parent)
    beside = sorted(file.name for file in target.parent.glob(f"{target.name}?*"))
    weights = tuple(describe(folder, f"{Path(ONNX_PROGRAM).parent}/{name}") for name in beside)
    return Program(file=describe(folder, ONNX_PROGRAM), weights=weights)


def _write_golden(folder: Path, golden: GoldenTensors) -> Golden:
    from safetensors.numpy import save_file

    (folder / GOLDEN_INPUTS).parent.mkdir(parents=True, exist_ok=True)
    for path, tensors in ((GOLDEN_INPUTS, golden.inputs), (GOLDEN_OUTPUTS, golden.outputs)):
        # np.asarray with an order, not np.ascontiguousarray, which makes a scalar an array of one element.
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, folder / path)
    return Golden(inputs=describe(folder, GOLDEN_INPUTS), outputs=describe(folder, GOLDEN_OUTPUTS))
