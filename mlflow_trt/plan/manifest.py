"""``manifest.json``: what a logged model is, readable without a GPU, without TensorRT and without its plans.

These pydantic models are the file: a field here is a field there. Rules for changing them: a new field gets a default,
so that older files still load, and older readers pass over it; a change that an older reader would misread raises
``FORMAT_VERSION``; and one file of every format ever written stays in ``tests/formats``.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import ManifestError

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"

Dimension = Union[int, str]
Runtime = Literal["tensorrt", "tensorrt_rtx"]


class _Record(BaseModel):
    # pydantic's default writes NaN and infinities as null, which does not read back as a number.
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="constants")


class File(_Record):
    """A file of the model version."""

    path: str
    """Relative to the manifest's folder, with forward slashes."""
    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value or "\0" in value:
            raise ValueError(f"the path {value!r} leaves the model's folder")
        return value


class Tensor(_Record):
    """An input or output as the caller sees it, and the engine's binding behind it."""

    name: str
    binding: str
    """The name of the engine's I/O tensor."""
    dtype: str
    """What ``predict`` takes or returns, a numpy name; bfloat16 is given as float32, which numpy has."""
    binding_dtype: str
    """What the engine itself holds."""
    shape: tuple[Dimension, ...]
    """A number for a fixed size, a symbol for a dynamic one; equal symbols are equal sizes. An output's symbol that no
    input has depends on the data."""


class TensorLeaf(_Record):
    """A tensor of the engine, by its public name."""

    kind: Literal["tensor"] = "tensor"
    name: str


class InputLeaf(_Record):
    """An output that is one of the inputs, handed through on the host."""

    kind: Literal["input"] = "input"
    name: str


class ConstantLeaf(_Record):
    """A value that is the same at every call: a number, a string or None."""

    kind: Literal["constant"] = "constant"
    value: Union[bool, int, float, str, None] = None


class Branch(_Record):
    """A container of the model's own structure."""

    kind: Literal["tuple", "list", "dict", "namedtuple"]
    type_name: str | None = None
    """The class's name, for a namedtuple."""
    keys: tuple[Union[str, int], ...] | None = None
    """The keys of a dict, the fields of a namedtuple."""
    items: tuple[Structure, ...]


Structure = Annotated[Union[TensorLeaf, InputLeaf, ConstantLeaf, Branch], Field(discriminator="kind")]
Branch.model_rebuild()


class ShapeRange(_Record):
    """The shapes one input may take within one optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = dict[str, ShapeRange]
"""An optimization profile: input name → range."""


class Host(_Record):
    """A machine, as far as it decides what an engine is or where it loads. None: not known, or not there."""

    gpu: str | None = None
    """The GPU's name, as CUDA gives it."""
    capability: str | None = None
    """Compute capability, ``"9.0"``."""
    driver: str | None = None
    """The driver's version, ``"580.95.05"``."""
    cuda: str | None = None
    """The newest CUDA version that the driver supports, ``"13.0"``."""
    os: str | None = None
    """``"linux"`` or ``"windows"``."""
    machine: str | None = None
    """``"x86_64"``, ``"aarch64"``."""
    runtimes: dict[str, str] = Field(default_factory=dict)
    """Installed TensorRT runtimes (``tensorrt_rtx``, ``tensorrt``, ``tensorrt_lean``): name → exact release."""
    torch: str | None = None
    torch_tensorrt: str | None = None


class Census(_Record):
    """What the network that was built really holds."""

    layers: dict[str, int]
    """Number of layers by the dtype of their first output."""
    weight_bytes: dict[str, int]
    """Bytes of constant weights by dtype."""
    tf32: bool
    """Whether float32 matrix products may run as TF32."""


class Precision(_Record):
    """Requested against real."""

    requested: str | None
    """``"fp32"``, ``"tf32"``, ``"fp16"``, ``"bf16"``; None: the model's own dtypes."""
    census: Census | None = None
    """None for an engine that someone else built: it does not say."""


class Tolerance(_Record):
    """How far the engine may be from the model."""

    rel_l2: float = Field(gt=0)
    """‖engine − torch‖ / ‖torch‖, per output."""
    cosine: float = Field(ge=-1, le=1)
    """Smallest cosine between the two, per output."""
    top1: float = Field(default=0.0, ge=0, le=1)
    """Smallest share of rows whose largest entry is at the same place, where it applies."""


class OutputParity(_Record):
    """One output at one profile point."""

    output: str
    max_abs: float
    rel_l2: float
    cosine: float
    top1: float | None = None
    passed: bool


class ParityPoint(_Record):
    """All outputs at one profile point."""

    profile: int
    point: str
    """``"min"``, ``"opt"``, ``"max"``, ``"between"``, or ``"user0"``, … for inputs that the user gave."""
    outputs: tuple[OutputParity, ...]
    identical_rows: bool | None = None
    """Whether identical rows of one batch gave identical results; None: there is no batch dimension to try it on."""


class ParityRecord(_Record):
    """Engine against the model."""

    status: Literal["passed", "failed", "not_measured"]
    reason: str | None = None
    """Why it was not measured."""
    tolerance: Tolerance | None = None
    points: tuple[ParityPoint, ...] = ()
    host: Host | None = None


class LatencyPoint(_Record):
    """Wall time of one native call, arrays on the host in and out."""

    profile: int
    point: str
    batch: int | None
    p50_ms: float
    p99_ms: float
    runs: int


class LatencyRecord(_Record):
    """How fast the engine answers."""

    status: Literal["measured", "not_measured"]
    reason: str | None = None
    points: tuple[LatencyPoint, ...] = ()
    host: Host | None = None


class PlanRecord(_Record):
    """One serialized engine: what it is, where it loads, what was measured of it."""

    file: File
    runtime: Runtime
    release: str
    """The exact TensorRT release, ``"1.6.1.120"``."""
    capabilities: tuple[str, ...] | None
    """Compute capabilities it was built for; None: not known."""
    hardware_compatible: bool = False
    """Full TensorRT: also loads on Ampere and newer."""
    version_compatible: bool = False
    """Full TensorRT: also loads on later releases."""
    refittable: bool = False
    profiles: tuple[Profile, ...] | None
    """None: not known, see ``Manifest.interface``."""
    precision: Precision
    settings: dict[str, Any] = Field(default_factory=dict)
    """Every Torch-TensorRT setting that differs from its default, and what was set for safety."""
    built_on: Host | None = None
    """None: someone else built it."""
    build_seconds: float | None = None
    converter: str | None = None
    """What made the network: ``"torch_tensorrt"`` or ``"onnx"``; None: not known, as with engines of other programs."""
    converter_reason: str | None = None
    """Why it was not the first choice."""
    parity: ParityRecord
    latency: LatencyRecord
    runtime_cache: File | None = None


class Program(_Record):
    """What the engine was built from: to rebuild, to compare, or to run without a GPU."""

    file: File
    """An exported program of PyTorch's, or a graph in ONNX."""
    torch: Union[str, None] = None
    """The release of PyTorch that wrote the program; None: it is a graph in ONNX."""
    weights: tuple[File, ...] = ()
    """Of a graph in ONNX, what lies beside it."""

    @property
    def is_onnx(self) -> bool:
        return self.torch is None

    def files(self) -> list[File]:
        """The program's file, and those beside it."""
        return [self.file, *self.weights]


class Golden(_Record):
    """Inputs of the parity check and the model's own answers; tensors are named ``{profile}.{point}/{name}``."""

    inputs: File
    outputs: File


class Interface(_Record):
    """How a model is called and what it answers; one for all plans of a version."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arguments: Branch
    """How a native call's ``(args, kwargs)`` nest: a tuple of a tuple and a dict."""
    result: Structure
    """How the outputs are put together again."""


class SourceRecord(_Record):
    """The model in MLflow that a version was converted from."""

    uri: str
    """Always means the same: ``models:/resnet/3``, not an alias."""
    flavor: str
    """MLflow's, which was converted: ``"onnx"`` or ``"pytorch"``."""
    files: tuple[File, ...]
    """What was converted, relative to that model's folder; this version does not hold it."""
    model_id: str | None = None
    """The logged model's, ``"m-…"``; None: it was saved, not logged."""


class Manifest(_Record):
    """A model version."""

    format_version: Literal[1] = 1
    interface: Interface | None
    """None: the plan came as bytes from elsewhere and no GPU was there to ask it; the loader asks the engine."""
    plans: tuple[PlanRecord, ...] = Field(min_length=1)
    program: Program | None = None
    golden: Golden | None = None
    source: SourceRecord | None = None
    """None: it was not converted from a model that MLflow holds."""

    def files(self) -> list[File]:
        """Every file that the manifest names."""
        files = [p.file for p in self.plans] + [p.runtime_cache for p in self.plans if p.runtime_cache]
        if self.program:
            files += self.program.files()
        if self.golden:
            files += [self.golden.inputs, self.golden.outputs]
        return files

    def to_json(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"


def parse(text: str | bytes, where: str = FILE_NAME) -> Manifest:
    """Reads a manifest.

    Args:
        text: The file's content.
        where: The file's name, for messages.

    Raises:
        ManifestError: It is no JSON object, of a newer format, or a field is missing, unknown or of the wrong type.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ManifestError(
            f"{where} is not JSON: {error}.", "the file that mlflow-trt wrote", "fetch or log the model again"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        raise ManifestError(
            f"{where} has no format_version.", "the file that mlflow-trt wrote", "fetch or log the model again"
        )
    if content["format_version"] > FORMAT_VERSION:
        raise ManifestError(
            f"{where} has format_version {content['format_version']}.",
            f"{FORMAT_VERSION} at the most, which is what this mlflow-trt reads",
            "upgrade mlflow-trt on this machine",
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise ManifestError(
            f"{where} is malformed: {problems}.", "the file that mlflow-trt wrote", "fetch or log the model again"
        ) from error


def read(folder: str | Path) -> Manifest:
    """Reads the manifest of a model's folder.

    Raises:
        ManifestError: It is missing or malformed.
    """
    path = Path(folder) / FILE_NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{path} can't be read: {error.strerror}.",
            "a folder that mlflow_trt.save_model or log_model wrote",
            "check the model URI",
        ) from error
    return parse(text, str(path))


def write(folder: str | Path, manifest: Manifest) -> None:
    """Writes the manifest of a model's folder.

    Raises:
        OSError: The folder can't be written.
    """
    (Path(folder) / FILE_NAME).write_text(manifest.to_json())
