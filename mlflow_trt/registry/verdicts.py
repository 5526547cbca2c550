"""What a gate says: a verdict with reasons, and the figures behind it as tables and charts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "not_measured"]


@dataclass(frozen=True)
class Table:
    """Figures that belong together."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mark:
    """One line of a chart: a value, and the interval that it lies in."""

    label: str
    low: float
    value: float
    high: float
    good: bool


@dataclass(frozen=True)
class Chart:
    """Values with their intervals against a limit."""

    title: str
    axis: str
    """What the values are, with their unit."""
    marks: tuple[Mark, ...]
    limit: float | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class Verdict:
    """A gate's answer."""

    gate: str
    status: Status
    reasons: tuple[str, ...] = ()
    """Why, one sentence each; for a gate that passed, on what grounds."""
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    allowed: bool = False
    """Whether the caller lets this gate be "not measured"."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured, as JSON takes it."""

    @property
    def blocks(self) -> bool:
        """Whether the version can't be promoted for this."""
        return self.status == "failed" or (self.status == "not_measured" and not self.allowed)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON takes it."""
        return {**asdict(self), "blocks": self.blocks}
