"""Plans that exist already: an engine file that another program built, or a folder that this package wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .. import store
from ..errors import SettingError
from ..plan.files import (
    MODEL_PLAN,
    GoldenTensors,
    Plan,
    check_length,
    check_plan,
    folder_name,
    read_header,
    verify,
    verify_program,
)
from ..plan.manifest import File, Interface, LatencyRecord, Manifest, ParityRecord, PlanRecord, Precision, Profile

_REASON = "the engine was built elsewhere and came without inputs to compare"


def read_plans(source: bytes | str | Path) -> list[Plan]:
    """Reads plans.

    Args:
        source: A serialized engine as bytes; the path of one; or a folder that :func:`mlflow_trt.save_model` wrote.

    Raises:
        ManifestError: The folder's manifest is missing or malformed, or describes another plan.
        PlanError: The bytes are no whole TensorRT engine, or differ from the folder's manifest.
        SettingError: There is no such file.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            return _read_folder(path)
        try:
            source = path.read_bytes()
        except OSError as error:
            raise SettingError(
                f"{path} can't be read: {error.strerror}.",
                "the path of a serialized engine, or a folder that mlflow_trt.save_model wrote",
                "check the path",
            ) from error
    return [from_engine(bytes(source))]


def from_engine(serialized: bytes) -> Plan:
    """Describes an engine that another program built, trtexec for example.

    The header tells runtime, release and capabilities. Inputs, outputs and profiles are in the engine alone: where this
    machine has a GPU that loads it, it is asked; otherwise they stay unknown until a GPU host loads the model.

    Args:
        serialized: The engine's bytes.

    Raises:
        PlanError: The bytes are no whole TensorRT engine.
    """
    header = read_header(serialized)
    check_length(header, len(serialized))
    record = PlanRecord(
        file=File(path=MODEL_PLAN, size=len(serialized), sha256=hashlib.sha256(serialized).hexdigest()),
        runtime=header.runtime,
        release=header.release,
        capabilities=header.capabilities,
        profiles=None,
        precision=Precision(requested=None),
        parity=ParityRecord(status="not_measured", reason=_REASON),
        latency=LatencyRecord(status="not_measured", reason="no GPU on the host that logged it"),
    )
    record = record.model_copy(
        update={"file": record.file.model_copy(update={"path": f"plans/{folder_name(record)}/{MODEL_PLAN}"})}
    )
    interface, profiles = _ask_engine(serialized, record)
    record = record.model_copy(update={"profiles": profiles})
    return Plan(serialized, Manifest(interface=interface, plans=(record,)))


def _ask_engine(serialized: bytes, record: PlanRecord) -> tuple[Interface | None, tuple[Profile, ...] | None]:
    from ..plan import compatibility, host

    here = host.probe()
    if here.gpu is None or not compatibility.check(record, here).accepted:
        return None, None
    from ..engine.engine import describe_engine

    return describe_engine(serialized, record)


def _read_folder(folder: Path) -> list[Plan]:
    model = store.open_model(folder)
    manifest, golden = model.manifest, model.golden()
    program = verify_program(folder, manifest.program) if manifest.program else None
    return [_read_plan(folder, manifest, record, golden, program) for record in manifest.plans]


def _read_plan(
    folder: Path, manifest: Manifest, record: PlanRecord, golden: GoldenTensors | None, program: Path | None
) -> Plan:
    path = check_plan(folder, record)
    cache = verify(folder, record.runtime_cache).read_bytes() if record.runtime_cache else None
    described = manifest.model_copy(update={"plans": (record,)})
    return Plan(path.read_bytes(), described, golden, program, cache)
