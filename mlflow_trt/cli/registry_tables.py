"""What a promotion, a history, a fleet and an upgrade look like on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..plan.compatibility import Report
from ..plan.files import folder_name
from ..registry.alias_history import Move
from ..registry.fleet import Change, why_not
from ..registry.report import PromotionReport
from ..registry.verdicts import Verdict

_GOOD, _BAD, _UNSURE = "green", "bold red", "yellow"


def of_promotion(report: PromotionReport) -> Group:
    """The verdicts with their reasons, and the end."""
    parts: list[RenderableType] = []
    if report.verdicts:
        table = _table("gate", "verdict", "why")
        for verdict in report.verdicts:
            table.add_row(verdict.gate, _status(verdict), Text("\n".join(verdict.reasons)))
        parts.append(table)
    parts.append(Text(report.summary(), style=_GOOD if report.ok else _BAD))
    parts += [Text(reason) for reason in report.reasons]
    if report.evidence:
        parts.append(Text(f"Report: {report.evidence}"))
    return Group(*parts)


def of_moves(name: str, alias: str, moves: Sequence[Move]) -> RenderableType:
    """One line for each move."""
    if not moves:
        return Text(f"No moves of {name}@{alias} are on record.")
    table = _table("move", "when", "what", "from", "to", "who", "report")
    for move in moves:
        report = move.report.rpartition("/")[2] if move.report else move.note or ""
        table.add_row(
            str(move.number), move.when, move.kind, move.from_version or "", move.to_version, move.who, report
        )
    return table


def of_fleet(reports: Mapping[str, Report]) -> Table:
    """One line for each machine."""
    table = _table("machine", "verdict", "plan, or why not")
    for name, report in reports.items():
        if report.accepted is not None:
            table.add_row(name, Text("loads", _GOOD), Text(folder_name(report.accepted)))
        else:
            table.add_row(name, Text("does not load", _BAD), Text(why_not(report)))
    return table


def of_changes(upgrade: str, changes: Sequence[Change]) -> RenderableType:
    """One line for each version and machine."""
    if not changes:
        return Text(f"No registered model has a plan that {upgrade} concerns.")
    table = _table("model", "version", "aliases", "machine", f"with {upgrade}", "plan, or why not")
    styles = {"breaks": _BAD, "unknown": _BAD, "loads": _GOOD, "mended": _GOOD}
    for c in changes:
        verdict = Text(c.verdict, styles.get(c.verdict, ""))
        table.add_row(c.name, c.version, ", ".join(c.aliases), c.host, verdict, Text(c.reason))
    broken = {(c.name, c.version) for c in changes if c.broken}
    end = "Nothing would break."
    if broken:
        end = f"{len(broken)} version{'s' if len(broken) > 1 else ''} would break, or can't be read."
    return Group(table, Text(end, style=_BAD if broken else _GOOD))


def _status(verdict: Verdict) -> Text:
    style = {"passed": _GOOD, "failed": _BAD, "not_measured": _UNSURE}[verdict.status]
    allowed = " (allowed)" if verdict.status == "not_measured" and not verdict.blocks else ""
    return Text(verdict.status.replace("_", " ") + allowed, style)


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="dim", show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
