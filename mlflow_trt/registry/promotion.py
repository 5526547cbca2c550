"""Moves an alias of a registered model, with evidence, and back.

What is promised, and how two movers or a killed one are kept apart, stands in :mod:`mlflow_trt.registry.ledger`. Here
is the order of things: gates judge; what they found is written to the logged model (``promotions/<id>/report.json`` and
``report.html``), whether they let the version pass or not; then the alias moves, if all let it pass and nobody else has
moved it since the gates began. So evidence is there before the move it speaks for, never after.

Where things are kept:

* on the logged model: the reports. Copies of a version (``copy_model_version``) share its logged model;
* as tags of the version: the moves that made it holder, and the last refusal. A copy carries these tags with it, each
  with the registered name that it is about;
* as tags of the registered model: all moves of each alias, in order.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import model_uri, store
from ..errors import ManifestError, PromotionError, StoreError
from ..evidence import names
from . import alias_history
from . import gates as _gates
from .alias_history import Move
from .gate_context import Gate, GateContext, Subject, ask
from .ledger import Ledger, LostError, State, find_version, registry_errors
from .report import PromotionReport


def promote(
    name: str,
    version: int | str,
    alias: str = "champion",
    gates: Iterable[Gate] | None = None,
    dry_run: bool = False,
    *,
    allow_not_measured: Collection[str] = (),
) -> PromotionReport:
    """Gives a version an alias if it passes the gates, and keeps the evidence.

    A move that another process left unfinished is finished first.

    Args:
        name: The registered model.
        version: The version that shall hold the alias.
        alias: Which alias.
        gates: What to ask, in this order; None: integrity, contract, parity and latency
            (:func:`mlflow_trt.registry.gates.default`). A gate that is "not measured" refuses too.
        dry_run: Only ask the gates: nothing is written to MLflow, no alias moves.
        allow_not_measured: Gates that may be "not measured": ``("parity", "latency")`` on a host without a GPU.

    Returns:
        The report. Its ``outcome`` is ``"promoted"``; ``"refused"``, with the failing gates' reasons; ``"lost"`` if
        somebody else moved the alias meanwhile; or ``"unchanged"`` if the version holds the alias by an earlier
        promotion. In a dry run ``"accepted"`` stands for ``"promoted"``.

    Raises:
        ManifestError: The version was not logged by this package, or its manifest is malformed.
        PromotionError: There is no such version, or a gate is broken.
        SettingError: MLflow does not allow the alias.
        StoreError: MLflow's registry or the artifact store can't be read or written. The alias is untouched, unless the
            message says that a move is accepted and not finished.
    """
    ledger = Ledger(name, alias)
    version = str(version)
    seen = ledger.read() if dry_run else ledger.settle()
    candidate = _subject(ledger, version)
    if seen.holder == version and seen.history and seen.history[-1].to_version == version:
        return _report(candidate, seen, alias, "unchanged", move=seen.history[-1])
    champion = _champion(ledger, seen, version)
    context = GateContext(alias, candidate, champion, dry_run)
    chosen = _gates.default() if gates is None else list(gates)
    verdicts = tuple(ask(gate, context, allow_not_measured) for gate in chosen)
    refused = any(verdict.blocks for verdict in verdicts)
    report = _report(candidate, seen, alias, "refused" if refused else "accepted", verdicts=verdicts)
    if dry_run:
        return report
    report = _keep(ledger, candidate, report)
    if refused:
        _tag_refusal(ledger, report)
        return report
    details = {key: getattr(report, key) for key in ("id", "who", "when", "digest")}
    try:
        move = ledger.move("promote", seen, version, report=report.evidence, model_id=candidate.model_id, **details)
    except LostError as error:
        lost = report.with_outcome("lost", f"{error.found} {error.remedy}.")
        with suppress(StoreError):  # the page then says "accepted", which it was
            _keep(ledger, candidate, lost)
        return lost
    return report.with_outcome("promoted", move=move)


def rollback(name: str, alias: str = "champion") -> PromotionReport:
    """Gives the alias back to the version that held it before; again and again, through the whole history.

    No gates are asked: the version held the alias before. Nothing is fetched, and no GPU is needed. Versions that were
    deleted meanwhile are passed over.

    Args:
        name: The registered model.
        alias: Which alias.

    Returns:
        The report; its outcome is ``"rolled back"``, or ``"lost"`` if somebody else moved the alias meanwhile.

    Raises:
        PromotionError: Nobody held the alias before.
        SettingError: MLflow does not allow the alias.
        StoreError: The registry can't be read or written.
    """
    ledger = Ledger(name, alias)
    seen = ledger.settle()
    target, deleted = alias_history.previous(seen.history, seen.holder, ledger.versions())
    if target is None:
        raise PromotionError(
            f"Nobody held {name}@{alias} before {f'version {seen.holder}' if seen.holder else 'now'}.",
            f"an earlier holder that still exists ({len(seen.history)} moves are on record)",
            "promote a version instead, or set the alias by hand",
        )
    report = _report(_subject(ledger, target, manifest=False), seen, alias, "rolled back")
    note = f"Passed over, deleted since: version {', '.join(deleted)}." if deleted else None
    details = {key: getattr(report, key) for key in ("id", "who", "when", "digest")}
    try:
        move = ledger.move("rollback", seen, target, note=note, **details)
    except LostError as error:
        return report.with_outcome("lost", f"{error.found} {error.remedy}.")
    return report.with_outcome("rolled back", *([note] if note else []), move=move)


def history(name: str, alias: str = "champion") -> tuple[Move, ...]:
    """All moves of an alias, oldest first.

    Args:
        name: The registered model.
        alias: Which alias.

    Raises:
        SettingError: MLflow does not allow the alias.
        StoreError: The registry can't be read.
    """
    return Ledger(name, alias).read().history


def evidence(name: str, version: int | str) -> tuple[Move, ...]:
    """The moves that made a version, or what it is a copy of, holder of an alias; under any registered name.

    Args:
        name: The registered model.
        version: The version.

    Raises:
        PromotionError: There is no such version.
        StoreError: The registry can't be read.
    """
    from mlflow import MlflowClient

    entity = find_version(MlflowClient(), name, str(version))
    if entity is None:
        raise PromotionError(f"{name} has no version {version}.", "a version that exists", "check name and version")
    return alias_history.evidence_of(entity.tags)


def _champion(ledger: Ledger, seen: State, version: str) -> Subject | None:
    """Whom the version has to stand up to: the holder, or the last other one if somebody set it to the version."""
    holder = seen.holder
    if holder == version:
        holder, _ = alias_history.previous(seen.history, version, ledger.versions())
    return _subject(ledger, holder, required=False) if holder is not None else None


def _subject(ledger: Ledger, version: str, *, required: bool = True, manifest: bool = True) -> Subject:
    """Reads what is known of a version."""
    entity = ledger.version(version)
    if entity is None:
        raise _no_version(ledger, version)
    model_id = _model_id(ledger, entity)
    tags: dict[str, str] = {}
    if model_id is not None:
        with registry_errors(f"the logged model {model_id} behind {ledger.name} version {version} can't be read"):
            tags.update(ledger.client.get_logged_model(model_id).tags)
    tags.update(entity.tags)
    subject = Subject(ledger.name, version, tags, model_id, entity.run_id or None)
    if not manifest:
        return subject
    try:
        model = store.open_model(subject.uri)
    except ManifestError:
        if required:
            raise
        model = None  # a champion of another flavor: each gate says what it makes of that
    return Subject(ledger.name, version, tags, model_id, entity.run_id or None, model)


def _model_id(ledger: Ledger, entity: Any) -> str | None:
    """The logged model behind a version. MLflow leaves ``model_id`` empty; a copy's source names another version."""
    for _ in range(20):
        source = model_uri.parse(str(entity.source or ""))
        if source is not None and source.model_id is not None:
            return source.model_id
        if source is None or source.name is None or source.version is None:
            return getattr(entity, "model_id", None) or None
        origin = find_version(ledger.client, source.name, source.version)
        if origin is None:
            return getattr(entity, "model_id", None) or None
        entity = origin
    return None


def _no_version(ledger: Ledger, version: str) -> PromotionError:
    there = ", ".join(sorted(ledger.versions(), key=int)) or "none"
    return PromotionError(
        f"{ledger.name} has no version {version}.", f"one of its versions: {there}", "check name and version"
    )


def _report(subject: Subject, seen: State, alias: str, outcome: Any, **fields: Any) -> PromotionReport:
    digest = subject.model.manifest.plans[0].file.sha256 if subject.model else subject.tags.get(names.DIGEST)
    return PromotionReport(
        id=secrets.token_hex(6),
        name=subject.name,
        version=subject.version,
        alias=alias,
        previous=seen.holder,
        who=_who(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        outcome=outcome,
        digest=digest,
        **fields,
    )


def _who() -> str:
    """Who moves the alias: the name at the tracking server, or at this machine."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return name
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}@{socket.gethostname()}" if hasattr(os, "getuid") else socket.gethostname()


def _keep(ledger: Ledger, subject: Subject, report: PromotionReport) -> PromotionReport:
    """Writes the report to the logged model."""
    if subject.model_id is None:
        reason = "The version belongs to no logged model: the report is kept in the registry's tags only."
        return report.with_outcome(report.outcome, *report.reasons, reason)
    folder = names.promotion_folder(report.id)
    kept = PromotionReport(**{**vars(report), "evidence": f"{subject.uri}/{folder}"})
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-") as scratch:
        where = Path(scratch) / folder
        where.mkdir(parents=True)
        (where / names.REPORT_JSON).write_text(json.dumps(kept.to_dict(), indent=2) + "\n")
        (where / names.REPORT_HTML).write_text(kept.to_html(), encoding="utf-8")
        with registry_errors(f"The report can't be written to the logged model {subject.model_id}; no alias was moved"):
            ledger.client.log_model_artifacts(subject.model_id, scratch)
    return kept


def _tag_refusal(ledger: Ledger, report: PromotionReport) -> None:
    text = json.dumps(
        {
            "id": report.id,
            "name": report.name,
            "who": report.who,
            "when": report.when,
            "gates": [verdict.gate for verdict in report.verdicts if verdict.blocks],
            "reason": next(r for v in report.verdicts if v.blocks for r in (*v.reasons, "no reason given"))[:1000],
            "report": report.evidence,
        }
    )
    with registry_errors(f"The refusal of {report.name} version {report.version} can't be written; no alias was moved"):
        ledger.client.set_model_version_tag(report.name, report.version, f"{names.REFUSED}{report.alias}", text)
