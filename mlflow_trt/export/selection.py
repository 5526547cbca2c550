"""Which plans of a version Triton's TensorRT backend can load, and under which file names it finds them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import CompatibilityError, SettingError
from ..plan.compatibility import Reason
from ..plan.files import MODEL_PLAN, folder_name
from ..plan.manifest import Manifest, PlanRecord, Profile
from ..plan.targets import numbers, sm


@dataclass(frozen=True)
class Selection:
    """The plans that a Triton gets."""

    files: Mapping[str, PlanRecord]
    """File name in the version's folder → plan."""
    by_capability: Mapping[str, str]
    """Compute capability → file name, where several plans are told apart by it. Every other GPU gets ``model.plan``."""
    release: str
    """The TensorRT release that built them."""
    version_compatible: bool
    """Whether a later release loads them too."""
    profiles: Sequence[Profile]
    """Those of every one of the plans."""


def select(manifest: Manifest, release: str | None = None) -> Selection:
    """Chooses the plans for a Triton.

    The rules are those of Triton's TensorRT backend: it links the full TensorRT, of one exact release in each Triton
    release; it runs on Linux; it takes the file that ``cc_model_filenames`` names for the GPU's compute capability, or
    else ``model.plan``.

    Args:
        manifest: The version's manifest.
        release: The release of TensorRT that Triton links, ``"10.15.1"`` or ``"10.15.1.29"``. None: that of the plans.

    Raises:
        CompatibilityError: No plan loads there, or they can't be told apart; the message names every plan's reason.
        SettingError: The release is no release.
    """
    if release is not None and not re.fullmatch(r"\d+(\.\d+){2,3}", release):
        raise SettingError(
            f"{release!r} is not a release of TensorRT.",
            "three or four numbers, such as 10.15.1",
            "see the release notes of your Triton: each links one TensorRT",
        )
    reasons = [(record, _reason(record, release)) for record in manifest.plans]
    chosen = [record for record, reason in reasons if reason is None]
    if not chosen:
        trace = [f"  {folder_name(p)}: {r.found} Expected: {r.expected}. To do: {r.remedy}." for p, r in reasons if r]
        raise CompatibilityError(
            "Triton's TensorRT backend can load no plan of this version.\n" + "\n".join(trace),
            "a plan of the full TensorRT, of the very release that Triton links",
            "; or ".join(dict.fromkeys(reason.remedy for _, reason in reasons if reason)),
        )
    _check_alike(chosen)
    files, by_capability = _file_names(chosen)
    return Selection(
        files,
        by_capability,
        chosen[0].release,
        all(record.version_compatible for record in chosen),
        chosen[0].profiles or (),
    )


def _reason(record: PlanRecord, release: str | None) -> Reason | None:
    """Why Triton can't load a plan; None if it can, as far as the manifest tells."""
    if record.runtime != "tensorrt":
        return Reason(
            f"It is a plan of {record.runtime}.",
            "tensorrt, the only one that Triton's backend links",
            "convert the model with the full TensorRT, on a GPU like Triton's, or serve this one with mlflow-trt serve",
        )
    if record.built_on is not None and record.built_on.os not in (None, "linux"):
        return Reason(f"It was built on {record.built_on.os}.", "linux", "build the plan on Linux")
    if release is None:
        return None
    there, built = numbers(release), numbers(record.release)
    if there == built[: len(there)] or (record.version_compatible and there > built):
        return None
    return Reason(
        f"It was built by {record.release}, and Triton links {release}.",
        f"{record.release} or later" if record.version_compatible else f"exactly {record.release}",
        f"use a Triton with TensorRT {record.release}, or convert the model with {release}",
    )


def _check_alike(plans: Sequence[PlanRecord]) -> None:
    """Raises CompatibilityError where no one Triton, or no one configuration, fits all of these plans."""
    names = ", ".join(folder_name(record) for record in plans)
    if len({record.release for record in plans}) > 1:
        raise CompatibilityError(
            f"The version holds plans of several releases of TensorRT: {names}.",
            "one, since a Triton links one",
            "name the release of your Triton",
        )
    if any(record.profiles != plans[0].profiles for record in plans):
        raise CompatibilityError(
            f"These plans differ in their optimization profiles: {names}.",
            "equal ones, since Triton has one configuration for all of them",
            "log each as a version of its own, and export that",
        )


def _file_names(plans: Sequence[PlanRecord]) -> tuple[dict[str, PlanRecord], dict[str, str]]:
    if len(plans) == 1:
        return {MODEL_PLAN: plans[0]}, {}
    files: dict[str, PlanRecord] = {}
    by_capability: dict[str, str] = {}
    for record in plans:
        if not record.capabilities:
            raise CompatibilityError(
                f"The plan {folder_name(record)} does not say which GPU it is for, and is one of several.",
                "compute capabilities, by which Triton tells plans apart",
                "log it as a version of its own, and export that",
            )
        new = [c for c in record.capabilities if c not in by_capability]
        general = record.hardware_compatible and MODEL_PLAN not in files
        name = MODEL_PLAN if general else "-".join(sm(c) for c in record.capabilities) + ".plan"
        if new or general:
            files[name] = record
            by_capability.update(dict.fromkeys(new, name))
    return files, by_capability
