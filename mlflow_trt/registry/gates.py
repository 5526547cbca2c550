"""The gates: what a version must show before it may take an alias.

Each is a small object that is called with a :class:`~mlflow_trt.registry.case.Case` and answers a
:class:`~mlflow_trt.registry.verdicts.Verdict`; any function that does the same is a gate too::

    def owned(case):
        return True if "owner" in case.candidate.tags else "The version has no tag owner."

    mlflow_trt.promote("classifier", 3, gates=[*gates.default(), owned])

What judges is apart from what measures: the judging functions take figures and are pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ..errors import ManifestError, PlanError
from ..manifest import Host, OutputParity, PlanRecord, Tolerance
from ..manifest import Parity as Figures
from ..parity import NOT_FINITE, default_tolerance
from ..plan import check_header, folder_name
from ..runtime import compatibility, host
from . import contract, fleet
from .accuracy import Accuracy
from .case import Case, Subject
from .latency import Latency
from .verdicts import Chart, Mark, Table, Verdict

__all__ = ["Accuracy", "Compatibility", "Contract", "Integrity", "Latency", "Parity", "default"]

DIGEST_TAG = "mlflow_trt.digest"


def default(
    *,
    targets: Iterable[Host | str] = (),
    fleet: str | Path | None = None,
    max_ratio: float = 1.05,
    seconds: float = 60.0,
    device: int = 0,
) -> list[Any]:
    """The gates that are asked when none are given: integrity, contract, parity, latency.

    Args:
        targets: Machines the version must load on, such as ``"tensorrt_rtx==1.6.1.120,sm_89"``: adds the gate of
            compatibility.
        fleet: A YAML file of such machines, see :func:`mlflow_trt.registry.fleet.read`.
        max_ratio: How much slower than the present holder it may be.
        seconds: The longest time to measure latency.
        device: Index of the GPU.
    """
    targets = list(targets)
    where = [Compatibility(targets, fleet)] if targets or fleet else []
    latency = Latency(max_ratio=max_ratio, seconds=seconds, device=device)
    return [Integrity(), *where, Contract(), Parity(device=device), latency]


@dataclass(frozen=True)
class Integrity:
    """Every file of the version is in the store as the manifest says, and the plan is the one that was registered.

    The store is read, not the local cache.
    """

    name = "integrity"

    def __call__(self, case: Case) -> Verdict:
        """Fetches all files, compares digests, reads the plans' headers."""
        model = case.candidate.stored
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
        reasons += _tag_problem(case.candidate)
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
    digest, tag = candidate.manifest.plans[0].file.sha256, candidate.tags.get(DIGEST_TAG)
    if tag == digest:
        return []
    says = f"says {tag}" if tag else "is missing"
    return [f"The manifest's plan has the SHA-256 {digest}, and the registry's tag {DIGEST_TAG} {says}."]


@dataclass(frozen=True)
class Compatibility:
    """The version loads on every machine that is named, by its manifest alone."""

    targets: Sequence[Union[Host, str]] = ()
    """Machines: ``"tensorrt_rtx==1.6.1.120,sm_89"`` or :class:`~mlflow_trt.Host`."""
    fleet: Union[str, Path, None] = None
    """A YAML file of machines."""

    name = "compatibility"

    def __call__(self, case: Case) -> Verdict:
        """Judges each machine."""
        hosts = fleet.named(self.targets)
        if self.fleet is not None:
            hosts.update(fleet.read(self.fleet))
        if not hosts:
            return Verdict(self.name, "not_measured", ("No machine was named.",))
        reports = {name: compatibility.check_all(case.candidate.manifest, where) for name, where in hosts.items()}
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

    def __call__(self, case: Case) -> Verdict:
        """Compares the two manifests."""
        if case.champion is None:
            return Verdict(self.name, "passed", (f"Nobody holds {case.alias}: there are no clients to keep.",))
        for subject in (case.champion, case.candidate):
            why = "it was logged by another flavor" if subject.model is None else contract.unknown(subject.manifest)
            if why:
                return Verdict(self.name, "not_measured", (f"The contract of {subject.uri} is not known: {why}.",))
        old, new = case.champion.manifest, case.candidate.manifest
        problems = contract.problems(old, new)
        if problems:
            return Verdict(self.name, "failed", tuple(problems))
        ground = f"Every call that version {case.champion.version} accepts is accepted."
        return Verdict(self.name, "passed", (ground, *contract.notes(old, new)))


@dataclass(frozen=True)
class Parity:
    """The engine's answers are PyTorch's, within tolerance.

    Measured on this machine's GPU where it has one that a plan loads on. For the other plans the figures count that a
    GPU host recorded, when it logged the model or by ``mlflow-trt benchmark``. Without figures it is "not measured".
    """

    tolerance: Tolerance | None = None
    """What is near enough; None: what the version was logged with."""
    measure: bool = True
    """Whether to measure here; False: recorded figures only."""
    device: int = 0
    allow_not_measured: bool = False

    name = "parity"

    def __call__(self, case: Case) -> Verdict:
        """Measures, reads the records, judges."""
        model = case.candidate.stored
        here = host.probe(self.device)
        chosen = compatibility.check_all(model.manifest, here).accepted if here.gpu and self.measure else None
        found: dict[str, Figures] = {}
        for record in model.manifest.plans:
            figures = record.parity
            if record is chosen and model.manifest.golden is not None:
                figures = self._measure(case.candidate, record)
            elif figures.status == "not_measured":
                figures = _benchmarked(case.candidate, record) or figures
            found[folder_name(record)] = figures
        return judge_parity(found, self.tolerance)

    def _measure(self, candidate: Subject, record: PlanRecord) -> Figures:
        from .. import measure
        from ..plan import read_golden

        golden = candidate.manifest.golden
        assert golden is not None
        tensors = read_golden(candidate.stored.fetch([golden.inputs, golden.outputs]), golden)
        tolerance = self.tolerance or record.parity.tolerance or default_tolerance(record.precision.requested)
        with candidate.load(device=self.device) as engine:
            return measure.measure_parity(engine, tensors, tolerance)


def judge_parity(found: dict[str, Figures], tolerance: Tolerance | None = None) -> Verdict:
    """Failed if a plan's figures are beyond tolerance, not measured if one has none, passed otherwise.

    Args:
        found: Figures by plan.
        tolerance: To judge by; None: the verdict on record.
    """
    reasons: list[str] = []
    missing: list[str] = []
    rows: list[tuple[str, ...]] = []
    marks: list[Mark] = []
    limits = {t.rel_l2 for f in found.values() if (t := tolerance or f.tolerance) is not None}
    for name, figures in found.items():
        where = f" on {figures.host.gpu}" if figures.host and figures.host.gpu else ""
        if figures.status == "not_measured":
            missing.append(f"{name}: not measured ({figures.reason or 'no reason on record'}).")
            continue
        failed = figures.status == "failed" and tolerance is None
        for point in figures.points:
            if point.identical_rows is False:
                failed = True
                reasons.append(f"{name}: identical rows of a batch differ at profile {point.profile} {point.point}.")
            for o in point.outputs:
                passed = o.passed if tolerance is None else _within(o, tolerance)
                failed = failed or not passed
                label = f"profile {point.profile} {point.point}, {o.output}"
                verdict = "passed" if passed else "FAILED"
                error = "not finite" if o.rel_l2 >= NOT_FINITE else f"{o.rel_l2:.3g}"
                rows.append((name, label, error, f"{o.cosine:.6f}", verdict))
                marks.append(Mark(label, o.rel_l2, o.rel_l2, o.rel_l2, passed))
                if not passed:
                    reasons.append(f"{name}: {label}: relative L2 error {error}, cosine {o.cosine:.6f}{where}.")
        if failed and not any(r.startswith(f"{name}:") for r in reasons):
            reasons.append(f"{name}: the check failed on record{where}.")
    table = Table("Engine against PyTorch", ("plan", "point", "relative L2", "cosine", "verdict"), tuple(rows))
    chart = Chart("Engine against PyTorch", "relative L2 error", tuple(marks), max(limits, default=None), True)
    tables, charts = ((table,), (chart,)) if rows else ((), ())
    recorded = {name: figures.model_dump(mode="json") for name, figures in found.items()}
    if reasons:
        return Verdict("parity", "failed", (*reasons, *missing), tables, charts, figures=recorded)
    if missing:
        return Verdict("parity", "not_measured", tuple(missing), tables, charts, figures=recorded)
    worst = max((m.value for m in marks), default=0.0)
    places = sorted({f.host.gpu for f in found.values() if f.host and f.host.gpu})
    ground = f"Within tolerance at {len(rows)} points; worst relative L2 error {worst:.3g}"
    ground += f", on {', '.join(places)}." if places else "."
    return Verdict("parity", "passed", (ground,), tables, charts, figures=recorded)


def _within(figures: OutputParity, tolerance: Tolerance) -> bool:
    if figures.top1 is not None and figures.top1 < tolerance.top1:
        return False
    return figures.rel_l2 <= tolerance.rel_l2 and figures.cosine >= tolerance.cosine


def _benchmarked(candidate: Subject, record: PlanRecord) -> Figures | None:
    """What ``mlflow-trt benchmark`` recorded later, on a GPU host, of this very plan."""
    if candidate.run_id is None or candidate.model_id is None:
        return None
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        text = mlflow.artifacts.load_text(f"runs:/{candidate.run_id}/mlflow_trt/{candidate.model_id}/benchmark.json")
        content: Any = json.loads(text)
    except (MlflowException, OSError, ValueError):
        return None
    if content.get("plan", record.file.sha256 if len(candidate.manifest.plans) == 1 else None) != record.file.sha256:
        return None
    return Figures.model_validate(content["parity"])
