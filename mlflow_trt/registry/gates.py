"""The gates: what a version must show before it may take an alias.

Each is a small object that is called with a :class:`~mlflow_trt.registry.gate_context.GateContext` and answers a
:class:`~mlflow_trt.registry.verdicts.Verdict`; any function that does the same is a gate too::

    def owned(context):
        return True if "owner" in context.candidate.tags else "The version has no tag owner."

    mlflow_trt.promote("classifier", 3, gates=[*gates.default(), owned])

What judges is apart from what measures: the judging functions take figures and are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ..errors import ManifestError, PlanError
from ..evidence import names
from ..plan import compatibility
from ..plan.files import check_header, folder_name
from ..plan.manifest import Host, PlanRecord, Tolerance
from . import contract, fleet
from .accuracy import Accuracy
from .gate_context import GateContext, Subject
from .latency import Latency
from .parity import Parity, judge_parity
from .verdicts import Table, Verdict

__all__ = ["Accuracy", "Compatibility", "Contract", "Integrity", "Latency", "Parity", "default", "judge_parity"]


def default(
    *,
    targets: Iterable[Host | str] = (),
    fleet: str | Path | None = None,
    max_ratio: float = 1.05,
    seconds: float = 60.0,
    device: int = 0,
    tolerance: Tolerance | None = None,
) -> list[Any]:
    """The gates that are asked when none are given: integrity, contract, parity, latency.

    Args:
        targets: Machines the version must load on, such as ``"tensorrt_rtx==1.6.1.120,sm_89"``: adds the gate of
            compatibility.
        fleet: A YAML file of such machines, see :func:`mlflow_trt.registry.fleet.read`.
        max_ratio: How much slower than the present holder it may be.
        seconds: The longest time to measure latency.
        device: Index of the GPU.
        tolerance: How far answers may be from the model's own; None: the default of the plan's precision.
    """
    targets = list(targets)
    where = [Compatibility(targets, fleet)] if targets or fleet else []
    latency = Latency(max_ratio=max_ratio, seconds=seconds, device=device)
    return [Integrity(), *where, Contract(), Parity(tolerance, device=device), latency]


@dataclass(frozen=True)
class Integrity:
    """Every file of the version is in the store as the manifest says, and the plan is the one that was registered.

    The store is read, not the local cache.
    """

    name = "integrity"

    def __call__(self, context: GateContext) -> Verdict:
        """Fetches all files, compares digests, reads the plans' headers."""
        model = context.candidate.stored
        reasons: list[str] = []
        rows: list[tuple[str, ...]] = []
        for file in model.manifest.files():
            try:
                model.fetch([file], anew=True)
                verdict = "as the manifest says"
            except PlanError as error:
                verdict = "DAMAGED"
                reasons.append(error.message)
            rows.append((file.path, f"{file.size:,}", file.sha256[:16], verdict))
        if not reasons:
            reasons += [text for record in model.manifest.plans if (text := _header_problem(model.folder, record))]
        reasons += _tag_problem(context.candidate)
        table = Table("Files", ("file", "bytes", "SHA-256", "stored"), tuple(rows))
        if reasons:
            return Verdict(self.name, "failed", tuple(reasons), (table,))
        size = sum(file.size for file in model.manifest.files())
        ground = f"{len(rows)} files, {size:,} bytes, have the digests of the manifest; the plan has that of the tag."
        return Verdict(self.name, "passed", (ground,), (table,))


def _header_problem(folder: Path, record: PlanRecord) -> str | None:
    try:
        check_header(folder / record.file.path, record)
    except (PlanError, ManifestError) as error:
        return error.message
    return None


def _tag_problem(candidate: Subject) -> list[str]:
    digest, tag = candidate.manifest.plans[0].file.sha256, candidate.tags.get(names.DIGEST)
    if tag == digest:
        return []
    says = f"says {tag}" if tag else "is missing"
    return [f"The manifest's plan has the SHA-256 {digest}, and the registry's tag {names.DIGEST} {says}."]


@dataclass(frozen=True)
class Compatibility:
    """The version loads on every machine that is named, by its manifest alone."""

    targets: Sequence[Union[Host, str]] = ()
    """Machines: ``"tensorrt_rtx==1.6.1.120,sm_89"`` or :class:`~mlflow_trt.Host`."""
    fleet: Union[str, Path, None] = None
    """A YAML file of machines."""

    name = "compatibility"

    def __call__(self, context: GateContext) -> Verdict:
        """Judges each machine."""
        hosts = fleet.named(self.targets)
        if self.fleet is not None:
            hosts.update(fleet.read(self.fleet))
        if not hosts:
            return Verdict(self.name, "not_measured", ("No machine was named.",))
        reports = {name: compatibility.check_all(context.candidate.manifest, where) for name, where in hosts.items()}
        return judge_compatibility(reports)


def judge_compatibility(reports: dict[str, compatibility.Report]) -> Verdict:
    """Passed if some plan loads on each of the machines.

    Args:
        reports: By the machine's name.
    """
    rows: list[tuple[str, ...]] = []
    reasons: list[str] = []
    for name, report in reports.items():
        if report.accepted is not None:
            rows.append((name, "loads", folder_name(report.accepted)))
            continue
        why = fleet.why_not(report)
        rows.append((name, "DOES NOT LOAD", why))
        reasons.append(f"{name}: {why}")
    table = Table("Machines", ("machine", "verdict", "plan, or why not"), tuple(rows))
    figures = {name: report.to_dict() for name, report in reports.items()}
    if reasons:
        return Verdict("compatibility", "failed", tuple(reasons), (table,), figures=figures)
    count = f"all {len(rows)} machines" if len(rows) > 1 else rows[0][0]
    return Verdict("compatibility", "passed", (f"Loads on {count}.",), (table,), figures=figures)


@dataclass(frozen=True)
class Contract:
    """What clients of the present champion send is still accepted, and answered in the same form."""

    allow_not_measured: bool = False

    name = "contract"

    def __call__(self, context: GateContext) -> Verdict:
        """Compares the two manifests."""
        if context.champion is None:
            return Verdict(self.name, "passed", (f"Nobody holds {context.alias}: there are no clients to keep.",))
        for subject in (context.champion, context.candidate):
            why = "it was logged by another flavor" if subject.model is None else contract.unknown(subject.manifest)
            if why:
                return Verdict(self.name, "not_measured", (f"The contract of {subject.uri} is not known: {why}.",))
        old, new = context.champion.manifest, context.candidate.manifest
        problems, tables = contract.problems(old, new), (contract.relied_on(old, new),)
        if problems:
            return Verdict(self.name, "failed", tuple(problems), tables)
        ground = f"Every call that version {context.champion.version} accepts is accepted."
        return Verdict(self.name, "passed", (ground, *contract.notes(old, new)), tables)
