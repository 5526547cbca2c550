"""Goals, figures, verdicts, and the file and table they are written to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .timing import Rounds, flat, quantile

SCHEMA_VERSION = 1
SCALES = {"s": 1.0, "ms": 1e3, "µs": 1e6}
"""What seconds are multiplied by; samples of any other unit are given in it."""


@dataclass(frozen=True)
class Goal:
    """A number that is to stay on one side of a limit."""

    name: str
    """What is measured, in words; unique within its benchmark."""
    limit: float
    unit: str
    at_least: bool = False
    """The number is to be at least the limit, not at most."""

    def text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"

    def verdict(self, value: float) -> Literal["met", "missed"]:
        return "met" if (value >= self.limit if self.at_least else value <= self.limit) else "missed"


@dataclass(frozen=True)
class Figure:
    """An absolute number beside the goals: the median of ``n`` samples and their spread, or one plain value."""

    name: str
    unit: str
    median: float
    p10: float | None = None
    p90: float | None = None
    p99: float | None = None
    n: int = 1


@dataclass
class Measurement:
    """What a benchmark found."""

    values: dict[str, float] = field(default_factory=dict)
    """Goal's name → number."""
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """How it was measured, and what else the reader must know."""
    missing: dict[str, str] = field(default_factory=dict)
    """Goal's or figure's name → why it was not measured."""

    def add(self, name: str, rounds: Rounds, unit: str = "ms") -> None:
        """Adds the timings of one way, in seconds, or samples of another unit."""
        samples = [sample * SCALES.get(unit, 1.0) for sample in flat(rounds)]
        p10, middle, p90, p99 = (quantile(samples, q) for q in (0.1, 0.5, 0.9, 0.99))
        self.figures.append(Figure(name, unit, middle, p10, p90, p99, len(samples)))


class NotMeasured(Exception):
    """A benchmark that makes no sense or can't run on this machine; the message says why."""


Status = Literal["measured", "not measured", "failed"]


def result(
    name: str,
    title: str,
    goals: Sequence[Goal],
    status: Status,
    *,
    measurement: Measurement | None = None,
    reason: str | None = None,
    traceback: str | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Returns a benchmark's entry of the results file, with a verdict for every goal."""
    found = measurement or Measurement()
    judged = []
    for goal in goals:
        value = found.values.get(goal.name)
        if value is None:
            verdict = f"not measured: {found.missing.get(goal.name) or reason or 'the benchmark gave no number'}"
        else:
            verdict = goal.verdict(value)
        judged.append({"name": goal.name, "goal": goal.text(), "value": value, "unit": goal.unit, "verdict": verdict})
    return {
        "name": name,
        "title": title,
        "status": status,
        "reason": reason,
        "goals": judged,
        "figures": [asdict(figure) for figure in found.figures],
        "missing": found.missing,
        "notes": found.notes,
        "seconds": round(seconds, 1),
        "traceback": traceback,
    }


def write(folder: Path, stem: str, report: Mapping[str, Any]) -> Path:
    """Writes the results as JSON and as a readable table beside it; returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{stem}.md").write_text(table(report), encoding="utf-8")
    return path


def table(report: Mapping[str, Any]) -> str:
    """Returns the results as Markdown: the machine, the verdicts, the absolute figures."""
    lines = [f"# Benchmarks, {report['date']}{' (quick)' if report['quick'] else ''}", ""]
    lines += [f"- {key}: {_machine_text(value)}" for key, value in report["machine"].items() if value is not None]
    lines += ["", "## Goals", ""]
    lines += _rows(
        ("benchmark", "what", "found", "goal", "verdict"),
        (
            (entry["name"], goal["name"], _number(goal["value"], goal["unit"]), goal["goal"], goal["verdict"])
            for entry in report["benchmarks"]
            for goal in entry["goals"]
        ),
    )
    for entry in report["benchmarks"]:
        lines += ["", f"## {entry['name']}", "", entry["title"] + ".", ""]
        if entry["status"] != "measured":
            lines += [f"{entry['status'].capitalize()}: {entry['reason']}", ""]
        if entry["figures"]:
            lines += _rows(
                ("figure", "median", "p10 to p90", "p99", "n"),
                (
                    (
                        figure["name"],
                        _number(figure["median"], figure["unit"]),
                        "" if figure["p10"] is None else f"{_digits(figure['p10'])} to {_digits(figure['p90'])}",
                        "" if figure["p99"] is None else _digits(figure["p99"]),
                        str(figure["n"]),
                    )
                    for figure in entry["figures"]
                ),
            )
        extra = [f"- {name}: not measured: {why}" for name, why in entry["missing"].items()]
        extra += [f"- {note}" for note in entry["notes"]]
        lines += ["", *extra] if extra else []
    return "\n".join(lines) + "\n"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(cells) + " |"
        for cells in (head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows))
    ]


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    """Four digits, or all before the point: a count is not rounded."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _machine_text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
