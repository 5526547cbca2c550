"""What the manifest says of an engine that was just built, whoever built it from what."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import plan as _plan
from ..errors import ConversionError, PrecisionError, SettingError, TrtError
from ..plan.dtypes import DTYPE_OF
from ..plan.files import Plan
from ..plan.manifest import File, LatencyRecord, ParityRecord, PlanRecord, Precision, Tolerance
from ..plan.parity import default_tolerance
from . import settings as _settings
from .job import Built, Job
from .network import Network


def typed(function: Callable[..., Plan]) -> Callable[..., Plan]:
    """Makes a ConversionError of what another library raises on the way, with the step that it came from."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Plan:
        try:
            return function(*args, **kwargs)
        except (TrtError, OSError, MemoryError):
            raise
        except Exception as error:
            raise ConversionError(
                f"The conversion failed at a step that should not fail: {type(error).__name__}: "
                f"{str(error).strip()[:600] or 'no reason given'}",
                "a model that torch.export and a converter take",
                "look at the error that this one was raised from: it says where in the model or in which library",
            ) from error

    return guarded


def describe(built: Built, job: Job, capabilities: tuple[str, ...] | None) -> PlanRecord:
    """Describes an engine; who called adds what it knows of profiles, precision and host."""
    header = _plan.read_header(built.serialized)
    settings = job.settings
    full = header.runtime == "tensorrt"
    record = PlanRecord(
        file=File(path="plan", size=len(built.serialized), sha256=hashlib.sha256(built.serialized).hexdigest()),
        runtime=header.runtime,
        release=header.release,
        capabilities=capabilities,
        # TensorRT-RTX takes these two and does nothing with them.
        hardware_compatible=full and bool(settings.get("hardware_compatible", False)),
        version_compatible=full and bool(settings.get("version_compatible", False)),
        refittable=settings.get("immutable_weights") is False,
        profiles=None,
        precision=Precision(requested=None),
        settings={name: _settings.json_safe(value) for name, value in settings.items()},
        build_seconds=round(built.seconds, 3),
        parity=ParityRecord(status="not_measured"),
        latency=LatencyRecord(status="not_measured", reason="measured when the plan is logged on a GPU"),
    )
    path = f"plans/{_plan.folder_name(record)}/{_plan.MODEL_PLAN}"
    return record.model_copy(update={"file": record.file.model_copy(update={"path": path})})


def tolerance_of(given: Tolerance | Mapping[str, float] | float | None, precision: str | None) -> Tolerance:
    """The tolerance that was given, over the default of the precision.

    Raises:
        SettingError: It is none.
    """
    default = default_tolerance(precision)
    if given is None:
        return default
    if isinstance(given, Tolerance):
        return given
    changes = dict(given) if isinstance(given, Mapping) else {"rel_l2": given}
    try:
        if unknown := set(changes) - set(Tolerance.model_fields):
            raise ValueError(f"it has no {' and no '.join(sorted(unknown))}")
        return Tolerance.model_validate({**default.model_dump(), **changes})
    except (ValueError, TypeError) as error:
        raise SettingError(
            f"The tolerance {given!r} is not valid: {str(error).splitlines()[-1].strip()}",
            "a relative L2 error above 0, or a dict with rel_l2, cosine, top1",
            "write tolerance=0.01",
        ) from error


def check_precision(precision: str, network: Network, kept: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Compares the network that was built with the precision that was asked for.

    Args:
        precision: What was asked for.
        network: What was built.
        kept: Operations that are in float32 because the model itself casts there; each may be two layers.
        settings: Those of the build.

    Raises:
        PrecisionError: A layer that carries arithmetic has another dtype.
    """
    if network.tf32 != (precision != "fp32") and precision in ("fp32", "tf32"):
        raise PrecisionError(
            f"The network was built with TF32 {'on' if network.tf32 else 'off'}.",
            f"precision={precision!r}",
            "report this with the model: the setting had no effect",
        )
    wanted = DTYPE_OF[precision]
    other = [(name, kind, dtype) for name, kind, dtype in network.arithmetic if dtype != wanted]
    # With use_fp32_acc float32 products are asked for.
    allowed = len(network.arithmetic) if settings.get("use_fp32_acc") else 2 * len(kept)
    if len(other) > allowed or (other and len(other) == len(network.arithmetic) and not settings.get("use_fp32_acc")):
        listed = "\n".join(f"  {kind.lower()} {name}: {dtype}" for name, kind, dtype in other[:20])
        raise PrecisionError(
            f"{len(other)} of {len(network.arithmetic)} layers that carry the arithmetic are not {wanted}:\n{listed}",
            f"precision={precision!r} throughout",
            "take explicit casts out of the model's own code, or ask for precision=None to keep its dtypes",
        )
