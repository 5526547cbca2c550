"""What a promotion found, as JSON, as text and as an HTML report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from .alias_history import Move
from .verdicts import Verdict

Outcome = Literal["promoted", "accepted", "refused", "lost", "unchanged", "rolled back"]


@dataclass(frozen=True)
class PromotionReport:
    """One attempt to move an alias."""

    id: str
    name: str
    version: str
    """Who shall hold the alias."""
    alias: str
    previous: str | None
    """Who held it."""
    who: str
    when: str
    """UTC, ISO 8601."""
    outcome: Outcome
    """``"promoted"``, ``"rolled back"``: the alias moved. ``"accepted"``: all gates let it pass, and nothing was moved
    (a dry run, or evidence that was written just before the move). ``"refused"``: by a gate. ``"lost"``: somebody else
    moved the alias meanwhile. ``"unchanged"``: the version holds the alias already, by an earlier move."""
    digest: str | None = None
    """SHA-256 of the version's first plan."""
    verdicts: tuple[Verdict, ...] = ()
    reasons: tuple[str, ...] = ()
    """Why it was refused or lost; else what the reader should know."""
    move: Move | None = None
    """As the registry has it; None: nothing was moved."""
    evidence: str | None = None
    """The folder of the logged model that holds ``report.json`` and ``report.html``."""

    @property
    def ok(self) -> bool:
        """Whether the version holds the alias now or, in a dry run, could."""
        return self.outcome in ("promoted", "accepted", "unchanged", "rolled back")

    @property
    def promoted(self) -> bool:
        """Whether the alias was moved to the version."""
        return self.outcome == "promoted"

    def with_outcome(self, outcome: Outcome, *reasons: str, move: Move | None = None) -> PromotionReport:
        """The same with another end."""
        return replace(self, outcome=outcome, reasons=reasons or self.reasons, move=move)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "alias": self.alias,
            "previous": self.previous,
            "who": self.who,
            "when": self.when,
            "outcome": self.outcome,
            "digest": self.digest,
            "reasons": list(self.reasons),
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "move": vars(self.move) if self.move else None,
            "evidence": self.evidence,
        }

    def to_html(self) -> str:
        """The report as one page that loads nothing from elsewhere."""
        from .html_report import render

        return render(self)

    def summary(self) -> str:
        """The end in one sentence."""
        target = f"{self.name} version {self.version}"
        there = f"{self.name}@{self.alias}"
        before = f" (was version {self.previous})" if self.previous else ""
        return {
            "promoted": f"{target} is {self.alias} now{before}.",
            "rolled back": f"{there} is version {self.version} again{before}.",
            "accepted": f"{target} passes every gate for {self.alias}; the alias has not moved yet.",
            "refused": f"{target} is refused as {self.alias}: "
            + ", ".join(v.gate for v in self.verdicts if v.blocks)
            + ".",
            "lost": f"{target} did not become {self.alias}: somebody else moved the alias first.",
            "unchanged": f"{target} is {self.alias} already.",
        }[self.outcome]

    def text(self) -> str:
        """The report as plain text."""
        lines = [self.summary()]
        for verdict in self.verdicts:
            word = "allowed" if verdict.status == "not_measured" and not verdict.blocks else ""
            status = verdict.status.replace("_", " ") + (f" ({word})" if word else "")
            lines.append(f"  {verdict.gate}: {status}")
            lines += [f"    {line}" for reason in verdict.reasons for line in reason.splitlines()]
        lines += list(self.reasons)
        if self.evidence:
            lines.append(f"Evidence: {self.evidence}")
        return "\n".join(lines)
