"""The report as an HTML page: one file, plots as inline SVG, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from .verdicts import Chart, Table, Verdict

if TYPE_CHECKING:
    from .report import PromotionReport

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; font-weight: 600; }
table { border-collapse: collapse; font-size: .9rem; } th { text-align: left; font-weight: 600; color: #555; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td { overflow-wrap: break-word; }
.badge { display: inline-block; padding: 0 .5rem; border-radius: .6rem; font-size: .85rem; font-weight: 600; }
.good { background: #d9f2e0; color: #0b5c2a; } .bad { background: #fbdcd9; color: #8c1810; }
.unsure { background: #fdefc8; color: #6b4a00; } .dim { color: #666; } li { white-space: pre-line; }
svg { max-width: 100%; height: auto; }
"""

_GOOD = ("promoted", "accepted", "unchanged", "rolled back")


def render(report: PromotionReport) -> str:
    """Returns the whole page."""
    facts = [
        ("Alias", f"{report.name}@{report.alias}"),
        ("Version", report.version),
        ("Held before by", f"version {report.previous}" if report.previous else "nobody"),
        ("Who", report.who),
        ("When", report.when),
        ("Plan's SHA-256", report.digest or "not known"),
        ("Report", report.id),
    ]
    badge = _badge(report.outcome, "good" if report.outcome in _GOOD else "bad")
    body = [
        f"<h1>{escape(report.name)} version {escape(report.version)} for {escape(report.alias)} {badge}</h1>",
        f"<p>{escape(report.summary())}</p>",
        _items(report.reasons),
        "<table>" + "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts) + "</table>",
        "<h2>Gates</h2>" if report.verdicts else "",
        _overview(report.verdicts),
        *(_section(verdict) for verdict in report.verdicts),
    ]
    title = escape(f"{report.name} {report.version} for {report.alias}: {report.outcome}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>" + "\n".join(body) + "\n</body></html>\n"
    )


def _badge(text: str, kind: str) -> str:
    return f'<span class="badge {kind}">{escape(text)}</span>'


def _status(verdict: Verdict) -> str:
    kind = {"passed": "good", "failed": "bad", "not_measured": "unsure"}[verdict.status]
    allowed = ", allowed" if verdict.status == "not_measured" and not verdict.blocks else ""
    return _badge(verdict.status.replace("_", " ") + allowed, kind)


def _items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _overview(verdicts: Sequence[Verdict]) -> str:
    rows = [
        f"<tr><td>{escape(v.gate)}</td><td>{_status(v)}</td><td>{escape(v.reasons[0] if v.reasons else '')}</td></tr>"
        for v in verdicts
    ]
    return f"<table><tr><th>gate</th><th>verdict</th><th>first reason</th></tr>{''.join(rows)}</table>" if rows else ""


def _section(verdict: Verdict) -> str:
    parts = [f"<h2>{escape(verdict.gate)} {_status(verdict)}</h2>", _items(verdict.reasons)]
    parts += [plot(chart) for chart in verdict.charts]
    parts += [_table(table) for table in verdict.tables]
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<h3>{escape(table.title)}</h3><table><tr>{head}</tr>{rows}</table>"


def plot(chart: Chart) -> str:
    """Draws values with their intervals, one below the other, and the limit as a dashed line."""
    scale, ticks = _scale(chart)
    label_width, width, row = 260, 760, 24
    height = row * len(chart.marks) + 46

    def x(value: float) -> float:
        return label_width + scale(value) * (width - label_width - 70)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" font-size="12" '
        f'font-family="system-ui, sans-serif"><title>{escape(chart.title)}</title>'
    ]
    bottom = row * len(chart.marks) + 8
    for tick in ticks:
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{bottom}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle" fill="#666">{tick:g}</text>')
    for index, mark in enumerate(chart.marks):
        y = 4 + row * (index + 0.5)
        color = "#12813f" if mark.good else "#c22d20"
        parts.append(f'<text x="{label_width - 10}" y="{y + 4}" text-anchor="end">{escape(mark.label)}</text>')
        if all(map(math.isfinite, (mark.low, mark.high))) and mark.high > mark.low:
            parts.append(
                f'<line x1="{x(mark.low):.1f}" x2="{x(mark.high):.1f}" y1="{y}" y2="{y}" stroke="{color}" '
                'stroke-width="3" stroke-linecap="round"/>'
            )
        parts.append(f'<circle cx="{x(mark.value):.1f}" cy="{y}" r="4.5" fill="{color}"/>')
        shown = f"{mark.value:.4g}" if mark.value < 1e30 else "not finite"
        parts.append(f'<text x="{x(max(mark.high, mark.value)) + 9:.1f}" y="{y + 4}" fill="#444">{shown}</text>')
    if chart.limit is not None:
        at = x(chart.limit)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="{bottom}" stroke="#333" stroke-dasharray="4 3"/>'
            f'<text x="{at:.1f}" y="{bottom + 30}" text-anchor="middle">allowed: {chart.limit:g}</text>'
        )
    axis = escape(chart.axis + (", logarithmic" if chart.logarithmic else ""))
    parts.append(f'<text x="{label_width - 10}" y="{bottom + 14}" text-anchor="end" fill="#666">{axis}</text></svg>')
    return f"<h3>{escape(chart.title)}</h3>" + "".join(parts)


def _scale(chart: Chart) -> tuple[Callable[[float], float], list[float]]:
    """A function to 0…1, and where to draw ticks."""
    values = [v for m in chart.marks for v in (m.low, m.value, m.high) if math.isfinite(v) and v < 1e30]
    values += [chart.limit] if chart.limit is not None else []
    values = values or [0.0]
    if chart.logarithmic:
        positive = [v for v in values if v > 0] or [1.0]
        low = math.floor(math.log10(min(positive)) - 0.01)
        high = max(math.ceil(math.log10(max(positive)) + 0.01), low + 1)
        step = max(1, (high - low) // 6)
        return (
            lambda v: min(1.0, (math.log10(v) - low) / (high - low)) if v > 10.0**low else 0.0,
            [10.0**e for e in range(low, high + 1, step)],
        )
    low_, high_ = min(values), max(values)
    margin = (high_ - low_) * 0.08 or abs(high_) * 0.05 or 1.0
    low_, high_ = low_ - margin, high_ + margin
    step_ = 10.0 ** math.floor(math.log10((high_ - low_) / 3))
    step_ *= 5 if (high_ - low_) / step_ > 15 else 2 if (high_ - low_) / step_ > 6 else 1
    first = math.ceil(low_ / step_)
    ticks = [round(n * step_, 10) for n in range(first, math.floor(high_ / step_) + 1)]
    return lambda v: min(1.0, max(0.0, (v - low_) / (high_ - low_))), ticks
