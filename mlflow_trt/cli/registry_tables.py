"""What a promotion, a history, a fleet and an upgrade look like on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..plan.compatibility import Report
from ..plan.files import folder_name
from ..registry.alias_history import Move
from ..registry.fleet import Change, why_not
from ..registry.report import PromotionReport
from ..registry.verdicts import Verdict
from .tables import BAD, GOOD, STATUS, headed


def of_promotion(report: PromotionReport) -> Group:
    """The verdicts with their reasons, and the end."""
    parts: list[RenderableType] = []
    if report.verdicts:
        table = headed("gate", "verdict", "why")
        for verdict in report.verdicts:
            table.add_row(verdict.gate, _status(verdict), Text("\n".join(verdict.reasons)))
        parts.append(table)
    parts.append(Text(report.summary(), style=GOOD if report.ok else BAD))
    parts += [Text(reason) for reason in report.reasons]
    if report.evidence:
        parts.append(Text(f"Report: {report.evidence}"))
    return Group(*parts)


def of_history(name: str, alias: str, moves: Sequence[Move]) -> RenderableType:
    """One line for each move."""
    if not moves:
        return Text(f"No moves of {name}@{alias} are on record.")
    table = headed("move", "when", "what", "from", "to", "who", "report")
    for move in moves:
        report = move.report.rpartition("/")[2] if move.report else move.note or ""
        table.add_row(
            str(move.number), move.when, move.kind, move.from_version or "", move.to_version, move.who, report
        )
    return table


def of_fleet(reports: Mapping[str, Report]) -> Table:
    """One line for each machine."""
    table = headed("machine", "verdict", "plan, or why not")
    for name, report in reports.items():
        if report.accepted is not None:
            table.add_row(name, Text("loads", GOOD), Text(folder_name(report.accepted)))
        else:
            table.add_row(name, Text("does not load", BAD), Text(why_not(report)))
    return table


def of_changes(upgrade: str, changes: Sequence[Change]) -> RenderableType:
    """One line for each version and machine."""
    if not changes:
        return Text(f"No registered model has a plan that {upgrade} concerns.")
    table = headed("model", "version", "aliases", "machine", f"with {upgrade}", "plan, or why not")
    styles = {"breaks": BAD, "unknown": BAD, "loads": GOOD, "mended": GOOD}
    for c in changes:
        verdict = Text(c.verdict, styles.get(c.verdict, ""))
        table.add_row(c.name, c.version, ", ".join(c.aliases), c.host, verdict, Text(c.reason))
    broken = {(c.name, c.version) for c in changes if c.broken}
    end = "Nothing would break."
    if broken:
        end = f"{len(broken)} version{'s' if len(broken) > 1 else ''} would break, or can't be read."
    return Group(table, Text(end, style=BAD if broken else GOOD))


def _status(verdict: Verdict) -> Text:
    allowed = " (allowed)" if verdict.status == "not_measured" and not verdict.blocks else ""
    return Text(verdict.status.replace("_", " ") + allowed, STATUS[verdict.status])
