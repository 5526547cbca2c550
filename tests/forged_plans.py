"""Bytes with the header of a plan and nothing of TensorRT behind it; and records of them."""

from manifests import MEASURED

from mlflow_trt.plan.files import Header
from mlflow_trt.plan.manifest import File, PlanRecord


def full(release: str = "8.6.1.6", body: int = 4000) -> bytes:
    """A plan of full TensorRT, its header laid out as 8.6.1.6 wrote one."""
    start = b"ftrt" + bytes(4) + (2).to_bytes(8, "little") + (64 + body).to_bytes(8, "little")
    return (start + bytes(int(n) for n in release.split(".")) + b"ptrt").ljust(64, b"\0") + b"\x5a" * body


def rtx(release: str = "1.6.1.120", mask: int = 4, body: int = 4000) -> bytes:
    """A plan of TensorRT-RTX; mask: a bit for each compute capability."""
    start = b"vtrt" + bytes(4) + (2).to_bytes(8, "little") + (64 + body).to_bytes(8, "little")
    start += bytes(int(n) for n in release.split(".")) + b"vtrt" + mask.to_bytes(8, "little")
    return start.ljust(64, b"\0") + b"\x5a" * body


def record(file: File, header: Header | None = None) -> PlanRecord:
    """A plan's record; without a header it is of full TensorRT 8.6.1.6."""
    runtime, release = (header.runtime, header.release) if header else ("tensorrt", "8.6.1.6")
    return MEASURED.model_copy(update={"file": file, "runtime": runtime, "release": release})
