"""Draws throughput against latency from a results file: ``python -m benchmarks.plot benchmarks/results/….json``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def main(path: Path) -> int:
    """Writes the plot beside the results; returns 1 if they hold no curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    report = json.loads(path.read_text(encoding="utf-8"))
    points = curve(report)
    if not points:
        print(f"{path} holds no benchmark serving_concurrent", file=sys.stderr)
        return 1
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    rates = [rate for _, rate, _, _ in points]
    for name, column, color in (("p50", 2, "#1f77b4"), ("p99", 3, "#d62728")):
        axes.plot(rates, [point[column] for point in points], "o-", label=name, color=color)
    for clients, rate, p50, _ in points:
        axes.annotate(f"{clients}", (rate, p50), textcoords="offset points", xytext=(4, -12), fontsize=8)
    axes.set_xlabel("images per second")
    axes.set_ylabel("latency over HTTP, ms")
    axes.set_ylim(bottom=0)
    axes.set_title("ResNet-50 FP16, batch-1 float32 requests joined; by number of clients", fontsize=10)
    where = f"{report['machine'].get('gpu')}, {report['date']}"
    axes.text(0.01, 0.98, where, transform=axes.transAxes, va="top", fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left")
    figure.tight_layout()
    out = path.with_name(f"{path.stem}-serving.png")
    figure.savefig(out)
    print(out)
    return 0


def curve(report: dict) -> list[tuple[int, float, float, float]]:
    """(clients, images per second, p50 in ms, p99 in ms) of the joined requests, by clients."""
    found = []
    for entry in report["benchmarks"]:
        figures = {figure["name"]: figure for figure in entry["figures"]}
        for name, figure in figures.items():
            if match := re.fullmatch(r"(\d+) clients?, batching: latency", name):
                rate = figures[name.replace("latency", "rate")]["median"]
                found.append((int(match[1]), rate, figure["median"], figure["p99"]))
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
