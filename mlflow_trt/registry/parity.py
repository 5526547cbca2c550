"""The parity gate: the engine's answers are the model's own, by a tolerance that its logger can't loosen."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CompatibilityError
from ..evidence import names
from ..plan import host
from ..plan.compatibility import SelectedPlan
from ..plan.files import folder_name
from ..plan.manifest import Interface, Manifest, OutputParity, ParityRecord, PlanRecord, Tolerance
from ..plan.parity import NOT_FINITE, default_tolerance
from ..store import StoredModel
from .gate_context import GateContext, Subject
from .verdicts import Chart, Mark, Table, Verdict


@dataclass(frozen=True)
class Parity:
    """The engine's answers are the model's own, within the gate's tolerance.

    Measured on this machine's GPU where it has one that a plan loads on. For the other plans the figures count that a
    GPU host recorded, when it logged the model or by ``mlflow-trt benchmark``; they are judged anew, by the same
    tolerance. Without figures it is "not measured".

    The tolerance is ``tolerance``, or the default of the plan's precision. What the version was logged with can only
    make it stricter, field by field.
    """

    tolerance: Tolerance | None = None
    """What is near enough; None: the default of the plan's precision (:func:`mlflow_trt.parity.default_tolerance`).
    Looser than that is a decision of whoever promotes, and the report says so."""
    measure: bool = True
    """Whether to measure here; False: recorded figures only."""
    device: int = 0
    allow_not_measured: bool = False

    name = "parity"

    def __call__(self, context: GateContext) -> Verdict:
        """Measures, reads the records, judges."""
        model = context.candidate.stored
        selected = self._selected(model)
        by_plan: dict[str, ParityRecord] = {}
        limits: dict[str, Limit] = {}
        for record in model.manifest.plans:
            name, figures = folder_name(record), record.parity
            limits[name] = limit(record.precision.requested, self.tolerance, record.parity.tolerance)
            if selected is not None and record is selected.record and model.manifest.golden is not None:
                figures = self._measure(context.candidate, selected, limits[name].tolerance)
            elif figures.status == "not_measured":
                figures = _benchmarked(context.candidate, record) or figures
            by_plan[name] = figures
        return judge_parity(by_plan, limits=limits, exact=exact_outputs(model.manifest))

    def _selected(self, model: StoredModel) -> SelectedPlan | None:
        """The plan to measure; None: it is not to be measured, or none loads here."""
        here = host.probe(self.device)
        if here.gpu is None or not self.measure:
            return None
        try:
            return model.select(here)
        except CompatibilityError:
            return None

    def _measure(self, candidate: Subject, selected: SelectedPlan, tolerance: Tolerance) -> ParityRecord:
        from ..evidence import measure

        golden = candidate.stored.golden()
        assert golden is not None
        with candidate.load(device=self.device, selected=selected) as engine:
            return measure.measure_parity(engine, golden, tolerance)


@dataclass(frozen=True)
class Limit:
    """What a plan's figures are judged by, and where that comes from."""

    tolerance: Tolerance
    share: float
    """Smallest share of equal entries of an output of whole numbers or booleans."""
    source: str
    """``"the default of fp32"``."""
    logged: Tolerance | None
    """What the version was logged with."""

    def text(self) -> str:
        """Both tolerances in one sentence."""
        text = f"Judged by {_numbers(self.tolerance)} ({self.source})"
        if self.logged is None:
            return f"{text}; it was logged without a tolerance."
        if self.logged == self.tolerance:
            return f"{text}; logged with the same."
        return f"{text}; logged with {_numbers(self.logged)}."


def limit(precision: str | None, own: Tolerance | None, logged: Tolerance | None) -> Limit:
    """What a plan is judged by: the gate's own tolerance or the precision's default, and what was logged if stricter.

    Args:
        precision: What was requested of the plan, see :func:`mlflow_trt.parity.default_tolerance`.
        own: The gate's; None: the precision's default.
        logged: What the version was logged with. The precision's default says nothing: it is written when nobody asks
            for a tolerance.

    Raises:
        SettingError: The precision is not known.
    """
    default = default_tolerance(precision)
    named = f"the default of {precision}" if precision else "the default of the model's own precision"
    base, source = (default, named) if own is None else (own, "the gate's setting")
    parties = [base] if logged is None or logged == default else [base, logged]
    tolerance = _stricter(parties)
    notes = []
    if tolerance != base:
        notes.append("and what it was logged with, where that is stricter")
    if tolerance != _stricter([tolerance, default]):
        notes.append(f"LOOSER than {named}, {_numbers(default)}")
    share = max(t.top1 or 1.0 - t.rel_l2 for t in parties)
    return Limit(tolerance, share, ", ".join([source, *notes]), logged)


def exact_outputs(manifest: Manifest) -> frozenset[str]:
    """Names of the outputs that hold whole numbers or booleans, where entries are equal or not."""
    interface: Interface | None = manifest.interface
    outputs = interface.outputs if interface is not None else ()
    return frozenset(t.name for t in outputs if np.dtype(t.dtype).kind in "biu")


def judge_parity(
    by_plan: Mapping[str, ParityRecord],
    tolerance: Tolerance | None = None,
    *,
    limits: Mapping[str, Limit] | None = None,
    exact: Collection[str] = (),
) -> Verdict:
    """Failed if a plan's figures are beyond its limit, not measured if one has none, passed otherwise.

    The verdicts that stand in the figures do not count: they were made with another tolerance.

    Args:
        by_plan: What is on record or was measured of each plan.
        tolerance: The gate's own; None: the default of the model's own precision. For plans without a limit.
        limits: What to judge by, by plan.
        exact: Names of outputs that hold whole numbers or booleans.
    """
    limits = {name: (limits or {}).get(name) or limit(None, tolerance, f.tolerance) for name, f in by_plan.items()}
    failed: list[str] = []
    missing: list[str] = []
    rows: list[tuple[str, ...]] = []
    marks: list[Mark] = []
    for name, figures in by_plan.items():
        allowed = limits[name]
        where = f" on {figures.host.gpu}" if figures.host and figures.host.gpu else ""
        if figures.status == "not_measured":
            missing.append(f"{name}: not measured ({figures.reason or 'no reason on record'}).")
            continue
        problems: list[str] = []
        for point in figures.points:
            place = f"profile {point.profile} {point.point}"
            if point.identical_rows is False:
                problems.append(f"{name}: identical rows of a batch differ at {place}{where}.")
            for o in point.outputs:
                passed = within(o, allowed, exact=o.output in exact)
                label = f"{place}, {o.output}"
                error = "not finite" if o.rel_l2 >= NOT_FINITE else f"{o.rel_l2:.3g}"
                top1 = "" if o.top1 is None else f"{o.top1:.2%}"
                rows.append((name, label, error, f"{o.cosine:.6f}", top1, "passed" if passed else "FAILED"))
                marks.append(Mark(label, o.rel_l2, o.rel_l2, o.rel_l2, passed))
                if not passed:
                    kind = "equal entries" if o.output in exact else "top-1"
                    more = f", {kind} {top1}" if top1 else ""
                    problems.append(f"{name}: {label}: relative L2 error {error}, cosine {o.cosine:.6f}{more}{where}.")
        if figures.status == "failed" and not problems and (not figures.points or not _looser(allowed, figures)):
            problems.append(f"{name}: the check failed on record{where}.")
        failed += problems
        missing += [] if problems else _not_shown(name, figures, allowed)
    said = _said(limits)
    tables = (*((_figures_table(rows),) if rows else ()), _limits_table(limits)) if by_plan else ()
    most = max((allowed.tolerance.rel_l2 for allowed in limits.values()), default=None)
    chart = Chart("Engine against the model", "relative L2 error", tuple(marks), most, True)
    charts = (chart,) if marks else ()
    figured = {name: _figured(figures, limits[name]) for name, figures in by_plan.items()}
    if failed:
        return Verdict("parity", "failed", (*failed, *missing, *said), tables, charts, figures=figured)
    if missing:
        measured = said if rows else ()
        return Verdict("parity", "not_measured", (*missing, *measured), tables, charts, figures=figured)
    worst = max((m.value for m in marks), default=0.0)
    places = sorted({f.host.gpu for f in by_plan.values() if f.host and f.host.gpu})
    ground = f"Within tolerance at {len(rows)} points; worst relative L2 error {worst:.3g}"
    ground += f", on {', '.join(places)}." if places else "."
    return Verdict("parity", "passed", (ground, *said), tables, charts, figures=figured)


def within(figures: OutputParity, allowed: Limit, *, exact: bool) -> bool:
    """Whether one output's figures are within the limit.

    Args:
        figures: What was measured.
        allowed: The limit.
        exact: Whether the output holds whole numbers or booleans: the share of equal entries alone judges those, for a
            relative error of indices means nothing.
    """
    tolerance = allowed.tolerance
    if exact:
        return figures.max_abs == 0.0 if figures.top1 is None else figures.top1 >= allowed.share
    if figures.top1 is not None and figures.top1 < tolerance.top1:
        return False
    return figures.rel_l2 <= tolerance.rel_l2 and figures.cosine >= tolerance.cosine


def _not_shown(name: str, figures: ParityRecord, allowed: Limit) -> list[str]:
    """What figures that are all within the limit leave open."""
    if not any(point.outputs for point in figures.points):
        return [f"{name}: not measured (the record says {figures.status!r} and has no figures)."]
    by = figures.tolerance
    if any(p.identical_rows for p in figures.points) and (by is None or by.rel_l2 > allowed.tolerance.rel_l2):
        # Their difference is not on record, only that it was within a tenth of the tolerance of that day.
        how = "an unknown tolerance" if by is None else f"relative L2 {by.rel_l2:g}"
        return [
            f"{name}: not measured (identical rows of a batch were compared by {how}, and this gate's is "
            f"{allowed.tolerance.rel_l2:g}): promote on a GPU host that loads the plan, which measures it."
        ]
    return []


def _looser(allowed: Limit, figures: ParityRecord) -> bool:
    """Whether the limit allows what the record's own tolerance did not."""
    by = figures.tolerance
    return by is not None and allowed.tolerance != _stricter([allowed.tolerance, by])


def _stricter(tolerances: Collection[Tolerance]) -> Tolerance:
    """Field by field."""
    return Tolerance(
        rel_l2=min(t.rel_l2 for t in tolerances),
        cosine=max(t.cosine for t in tolerances),
        top1=max(t.top1 for t in tolerances),
    )


def _numbers(tolerance: Tolerance) -> str:
    top1 = f", top-1 {tolerance.top1:g}" if tolerance.top1 else ""
    return f"relative L2 {tolerance.rel_l2:g}, cosine {tolerance.cosine:g}{top1}"


def _said(limits: Mapping[str, Limit]) -> tuple[str, ...]:
    """The limits in sentences: one where all plans have the same."""
    texts = {name: allowed.text() for name, allowed in limits.items()}
    if len(set(texts.values())) == 1:
        return (next(iter(texts.values())),)
    return tuple(f"{name}: {text[0].lower()}{text[1:]}" for name, text in texts.items())


def _figures_table(rows: list[tuple[str, ...]]) -> Table:
    columns = ("plan", "point", "relative L2", "cosine", "top-1 or equal", "verdict")
    return Table("Engine against the model", columns, tuple(rows))


def _limits_table(limits: Mapping[str, Limit]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, allowed in limits.items():
        rows.append((name, "judged by", *_cells(allowed.tolerance), allowed.source))
        rows.append((name, "logged with", *_cells(allowed.logged), ""))
    columns = ("plan", "tolerance", "relative L2", "cosine", "top-1", "which is")
    return Table("Tolerances", columns, tuple(rows))


def _cells(tolerance: Tolerance | None) -> tuple[str, str, str]:
    if tolerance is None:
        return "none", "none", "none"
    return f"{tolerance.rel_l2:g}", f"{tolerance.cosine:g}", f"{tolerance.top1:g}"


def _figured(figures: ParityRecord, allowed: Limit) -> dict[str, Any]:
    return {
        **figures.model_dump(mode="json"),
        "judged_by": {**allowed.tolerance.model_dump(), "equal_entries": allowed.share, "source": allowed.source},
        "logged_with": allowed.logged.model_dump() if allowed.logged else None,
    }


def _benchmarked(candidate: Subject, record: PlanRecord) -> ParityRecord | None:
    """What ``mlflow-trt benchmark`` recorded later, on a GPU host, of this very plan."""
    if candidate.run_id is None or candidate.model_id is None:
        return None
    import mlflow
    from mlflow.exceptions import MlflowException

    folder = names.folder_of(candidate.model_id)
    path = f"{folder}/{names.BENCHMARK}"
    try:
        # Looked for first: what is not there, servers of MLflow 3.10 call an error, which is asked for for minutes.
        there = mlflow.MlflowClient().list_artifacts(candidate.run_id, folder)
        if path not in {file.path for file in there}:
            return None
        content: Any = json.loads(mlflow.artifacts.load_text(f"runs:/{candidate.run_id}/{path}"))
    except (MlflowException, OSError, ValueError):
        return None
    if content.get("plan", record.file.sha256 if len(candidate.manifest.plans) == 1 else None) != record.file.sha256:
        return None
    return ParityRecord.model_validate(content["parity"])
