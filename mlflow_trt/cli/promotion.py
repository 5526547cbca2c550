"""The commands that move aliases: ``mlflow-trt promote``, ``rollback`` and ``history``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from . import terminal

if TYPE_CHECKING:
    from ..registry import PromotionReport


@click.command(short_help="Give a version an alias if it passes the gates.")
@click.argument("name")
@click.argument("version")
@click.option("--alias", default="champion", show_default=True)
@click.option("--target", "targets", multiple=True, help="A machine it must load on, as for check --host; repeatable.")
@click.option("--fleet", type=click.Path(path_type=Path), help="A YAML file of machines that it must load on.")
@click.option("--latency-ratio", default=1.05, show_default=True, help="How much slower than the holder it may be.")
@click.option("--latency-seconds", default=60.0, show_default=True, help="The longest time to measure latency.")
@click.option("--device", default=0, show_default=True, help="Index of the GPU.")
@click.option(
    "--allow-not-measured",
    "allowed",
    multiple=True,
    metavar="GATE",
    help="A gate that need not be measured, such as parity on a machine without a GPU; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Only ask the gates: write nothing, move nothing.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report here too, as a page.")
@terminal.json_option
def promote(
    name: str,
    version: str,
    alias: str,
    targets: tuple[str, ...],
    fleet: Path | None,
    latency_ratio: float,
    latency_seconds: float,
    device: int,
    allowed: tuple[str, ...],
    dry_run: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Give a version of a registered model an alias, if it passes the gates; the report is kept with the model.

    The exit status is 1 if a gate refuses it, or if somebody else moves the alias meanwhile.
    """
    import mlflow_trt

    from ..registry import gates

    with terminal.results() as stdout:
        chosen = gates.default(
            targets=targets, fleet=fleet, max_ratio=latency_ratio, seconds=latency_seconds, device=device
        )
        unknown = set(allowed) - {gate.name for gate in chosen}
        if unknown:
            raise click.UsageError(f"There is no gate {', '.join(sorted(unknown))}.")
        report = mlflow_trt.promote(name, version, alias, chosen, dry_run, allow_not_measured=allowed)
        if html is not None:
            html.write_text(report.to_html(), encoding="utf-8")
        _show(stdout, report, as_json)
    if not report.ok:
        sys.exit(1)


@click.command(short_help="Give an alias back to the version that held it before.")
@click.argument("name")
@click.option("--alias", default="champion", show_default=True)
@terminal.json_option
def rollback(name: str, alias: str, as_json: bool) -> None:
    """Give an alias of a registered model back to the version that held it before; again, to the one before that."""
    import mlflow_trt

    with terminal.results() as stdout:
        report = mlflow_trt.rollback(name, alias)
        _show(stdout, report, as_json)
    if not report.ok:
        sys.exit(1)


@click.command(short_help="Show the moves of an alias.")
@click.argument("name")
@click.option("--alias", default="champion", show_default=True)
@terminal.json_option
def history(name: str, alias: str, as_json: bool) -> None:
    """Show all moves of an alias of a registered model: who, when, from, to, and where the evidence is."""
    from ..registry import history as history_of

    with terminal.results() as stdout:
        moves = history_of(name, alias)
        if as_json:
            terminal.show_json(stdout, [vars(move) for move in moves])
        else:
            from . import registry_tables

            terminal.show(stdout, registry_tables.of_history(name, alias, moves))


def _show(stdout: TextIO, report: PromotionReport, as_json: bool) -> None:
    if as_json:
        terminal.show_json(stdout, report.to_dict())
    else:
        from . import registry_tables

        terminal.show(stdout, registry_tables.of_promotion(report))
