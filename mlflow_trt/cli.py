"""``mlflow-trt``: the public functions as commands.

Results go to standard output, everything else to standard error: with ``--json``, standard output is JSON and nothing
more. What a command needs is imported when it runs: MLflow alone takes a second.
Exit status: 0, 1 (an error of this package or MLflow, or "no" to what was asked), 2 (wrong usage).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from . import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType

ENGINE_SUFFIXES = (".engine", ".plan")


class _Commands(click.Group):
    """Commands whose expected errors are a message, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from mlflow.exceptions import MlflowException

            if not isinstance(error, MlflowException):
                raise
            click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(error.message, err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mlflow-trt")
def main() -> None:
    """TensorRT engines as MLflow models.

    MODEL is a local folder or any URI that MLflow takes: models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH,
    s3://… Where MLflow keeps its models is MLflow's to say: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, …
    """


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _conversion(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of what converts a model."""
    options = [
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="SPEC",
            help="An input, as NAME=DTYPE[DIMENSIONS]: 'x=float32[1:8:32,3,224,224]'. A dimension is a size or "
            "min:opt:max; ';' stands between optimization profiles. Repeat for several inputs.",
        ),
        click.option("--precision", help="fp32, tf32, fp16 or bf16.  [default: the model's own]"),
        click.option(
            "--capability",
            "capabilities",
            multiple=True,
            metavar="X.Y",
            help="A compute capability to build for; repeatable.  "
            "[default: this machine's GPU; without one, all that TensorRT-RTX names]",
        ),
        click.option("--output-name", "output_names", multiple=True, metavar="NAME", help="Names for the outputs."),
        click.option(
            "--setting",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="A setting of Torch-TensorRT, such as optimization_level=5; repeatable.",
        ),
        click.option("--omit-program", is_flag=True, help="Leave the exported program out of the model."),
    ]

    @functools.wraps(command)
    def collected(
        inputs: tuple[str, ...],
        precision: str | None,
        capabilities: tuple[str, ...],
        output_names: tuple[str, ...],
        settings: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        from . import specs

        given = {
            "inputs": [specs.parse_input(text) for text in inputs],
            "precision": precision,
            "compute_capabilities": list(capabilities),
            "output_names": list(output_names),
            **specs.parse_settings(settings),
        }
        return command(conversion={name: value for name, value in given.items() if value or value is False}, **rest)

    return functools.reduce(lambda made, option: option(made), reversed(options), collected)


@main.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A new folder (the model in MLflow's format), or a file *.engine or *.plan (the bare engine).",
)
@_conversion
@_json
def convert(source: str, output: Path, omit_program: bool, as_json: bool, conversion: dict[str, Any]) -> None:
    """Convert a PyTorch model to a TensorRT engine.

    SOURCE is a file that torch.export.save wrote (.pt2), or module:attribute, a model or a function that returns one.
    """
    import mlflow_trt

    from . import specs

    with _results() as stdout:
        if not output.absolute().parent.is_dir():
            raise click.UsageError(f"There is no folder {output.absolute().parent}.")
        if output.suffix in ENGINE_SUFFIXES:
            plan = mlflow_trt.convert(specs.load_source(source), **conversion)
            plan.save(output)
            record = plan.record.model_copy(update={"file": plan.record.file.model_copy(update={"path": output.name})})
            manifest = plan.manifest.model_copy(update={"plans": (record,)})
        else:
            mlflow_trt.save_model(specs.load_source(source), output, program=_program(omit_program), **conversion)
            manifest = mlflow_trt.inspect(output)
        if as_json:
            _print_json(stdout, {"output": str(output), "manifest": json.loads(manifest.to_json())})
        else:
            from . import tables

            _print(stdout, tables.of_manifest(manifest), f"Written to {output}")


@main.command()
@click.argument("source")
@click.option("--name", help="The logged model's name.  [default: model]")
@click.option("--register", metavar="NAME", help="Register a version under this name.")
@click.option("--alias", "aliases", multiple=True, help="An alias for the registered version; repeatable.")
@_conversion
@_json
def log(
    source: str,
    name: str | None,
    register: str | None,
    aliases: tuple[str, ...],
    omit_program: bool,
    as_json: bool,
    conversion: dict[str, Any],
) -> None:
    """Log a model to MLflow, converting it where needed.

    SOURCE is a .pt2 file or module:attribute, as for convert; or an engine that is already built: a folder that convert
    wrote, or the file of another program (trtexec --saveEngine).
    """
    if aliases and not register:
        raise click.UsageError("--alias needs --register.")
    import mlflow_trt

    from . import specs

    with _results() as stdout:
        model = Path(source) if specs.is_engine_or_folder(source) else specs.load_source(source)
        info = mlflow_trt.log_model(
            model, name, registered_model_name=register, program=_program(omit_program), **conversion
        )
        registered = None
        if register:
            from mlflow import MlflowClient

            version = str(info.registered_model_version)
            for alias in aliases:
                MlflowClient().set_registered_model_alias(register, alias, version)
            registered = {"name": register, "version": version, "aliases": list(aliases)}
        manifest = mlflow_trt.inspect(info.model_uri)
        if as_json:
            logged = {"model_uri": info.model_uri, "model_id": info.model_id, "run_id": info.run_id}
            _print_json(stdout, {**logged, "registered": registered, "manifest": json.loads(manifest.to_json())})
        else:
            from . import tables

            lines = [f"Logged as {info.model_uri}"]
            if registered:
                lines.append(f"Registered as models:/{register}/{registered['version']}")
                lines += [f"Alias models:/{register}@{alias}" for alias in aliases]
            _print(stdout, tables.of_manifest(manifest), *lines)


@main.command(short_help="Show what a model is.")
@click.argument("model")
@_json
def inspect(model: str, as_json: bool) -> None:
    """Show what a model is: inputs, outputs, plans, measurements, files. Reads only its manifest."""
    import mlflow_trt

    with _results() as stdout:
        manifest = mlflow_trt.inspect(model)
        if as_json:
            _print_json(stdout, json.loads(manifest.to_json()))
        else:
            from . import tables

            _print(stdout, tables.of_manifest(manifest))


@main.command(short_help="Tell which plans load on a machine, and why others don't.")
@click.argument("model", required=False)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Another machine, such as tensorrt_rtx==1.6.1.120,sm_89; repeatable.  [default: this machine]",
)
@click.option("--fleet", type=click.Path(path_type=Path), help="A YAML file of machines: NAME: TEXT, as for --host.")
@click.option(
    "--upgrade",
    metavar="RUNTIME==RELEASE",
    help="Tell what this upgrade would break, over all registered models; with --fleet, on these machines.",
)
@_json
def check(model: str | None, hosts: tuple[str, ...], fleet: Path | None, upgrade: str | None, as_json: bool) -> None:
    """Tell which plans of a model load on a machine, and why the others don't. Reads only its manifest.

    With --upgrade, no MODEL: of each registered model the versions count that an alias names, or else the newest.

    The exit status is 1 if no plan loads on one of the machines, or if the upgrade would break something.
    """
    if (model is None) == (upgrade is None):
        raise click.UsageError("Give a MODEL, or --upgrade for all registered models.")
    if hosts and (fleet or upgrade):
        raise click.UsageError("--host can't be combined with --fleet or --upgrade.")
    import mlflow_trt

    if upgrade is not None:
        _check_upgrade(upgrade, fleet, as_json)
        return
    assert model is not None
    if fleet is not None:
        _check_fleet(model, fleet, as_json)
        return
    with _results() as stdout:
        reports = [mlflow_trt.check(model, host) for host in hosts or (None,)]
        if as_json:
            _print_json(stdout, {"model": model, "hosts": [report.to_dict() for report in reports]})
        else:
            from . import tables

            _print(stdout, *(tables.of_report(report) for report in reports))
    if any(report.accepted is None for report in reports):
        sys.exit(1)


def _check_fleet(model: str, fleet: Path, as_json: bool) -> None:
    import mlflow_trt

    with _results() as stdout:
        reports = mlflow_trt.check_fleet(model, fleet)
        if as_json:
            _print_json(stdout, {"model": model, "hosts": {name: r.to_dict() for name, r in reports.items()}})
        else:
            from .registry import tables

            _print(stdout, tables.of_fleet(reports))
    if any(report.accepted is None for report in reports.values()):
        sys.exit(1)


def _check_upgrade(upgrade: str, fleet: Path | None, as_json: bool) -> None:
    import mlflow_trt

    with _results() as stdout:
        changes = mlflow_trt.check_upgrade(upgrade, fleet=fleet)
        if as_json:
            _print_json(stdout, {"upgrade": upgrade, "changes": [vars(change) for change in changes]})
        else:
            from .registry import tables

            _print(stdout, tables.of_changes(upgrade, changes))
    if any(change.broken for change in changes):
        sys.exit(1)


@main.command(short_help="Give a version an alias if it passes the gates.")
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
@_json
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

    from .registry import gates

    with _results() as stdout:
        chosen = gates.default(
            targets=targets, fleet=fleet, max_ratio=latency_ratio, seconds=latency_seconds, device=device
        )
        unknown = set(allowed) - {gate.name for gate in chosen}
        if unknown:
            raise click.UsageError(f"There is no gate {', '.join(sorted(unknown))}.")
        report = mlflow_trt.promote(name, version, alias, chosen, dry_run, allow_not_measured=allowed)
        if html is not None:
            html.write_text(report.to_html(), encoding="utf-8")
        if as_json:
            _print_json(stdout, report.to_dict())
        else:
            from .registry import tables

            _print(stdout, tables.of_promotion(report))
    if not report.ok:
        sys.exit(1)


@main.command(short_help="Give an alias back to the version that held it before.")
@click.argument("name")
@click.option("--alias", default="champion", show_default=True)
@_json
def rollback(name: str, alias: str, as_json: bool) -> None:
    """Give an alias of a registered model back to the version that held it before; again, to the one before that."""
    import mlflow_trt

    with _results() as stdout:
        report = mlflow_trt.rollback(name, alias)
        if as_json:
            _print_json(stdout, report.to_dict())
        else:
            from .registry import tables

            _print(stdout, tables.of_promotion(report))
    if not report.ok:
        sys.exit(1)


@main.command(short_help="Show the moves of an alias.")
@click.argument("name")
@click.option("--alias", default="champion", show_default=True)
@_json
def history(name: str, alias: str, as_json: bool) -> None:
    """Show all moves of an alias of a registered model: who, when, from, to, and where the evidence is."""
    from .registry import history as moves_of

    with _results() as stdout:
        moves = moves_of(name, alias)
        if as_json:
            _print_json(stdout, [vars(move) for move in moves])
        else:
            from .registry import tables

            _print(stdout, tables.of_moves(name, alias, moves))


@main.command(short_help="Measure a model's parity and latency here.")
@click.argument("model")
@click.option("--device", default=0, show_default=True, help="Index of the GPU.")
@click.option("--backend", type=click.Choice(["tensorrt", "reference"]), default="tensorrt", show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Timed calls at each point.")
@_json
def benchmark(model: str, device: int, backend: Any, runs: int, as_json: bool) -> None:
    """Measure a logged model's parity with PyTorch and its latency here, and log them to its run.

    The exit status is 1 if the parity check fails.
    """
    import mlflow_trt

    with _results() as stdout:
        report = mlflow_trt.benchmark(model, device=device, backend=backend, runs=runs)
        if as_json:
            figures = {
                "parity": report.parity.model_dump(mode="json"),
                "latency": report.latency.model_dump(mode="json"),
            }
            _print_json(stdout, {"model": model, "backend": report.backend, "run_id": report.logged_to, **figures})
        else:
            from . import tables

            where = f"Logged to the run {report.logged_to}" if report.logged_to else "Logged nowhere"
            _print(stdout, tables.of_benchmark(report.parity, report.latency), f"Backend: {report.backend}. {where}.")
    if report.parity.status == "failed":
        sys.exit(1)


def _program(omit: bool) -> Any:
    return "omit" if omit else "include"


@contextlib.contextmanager
def _results() -> Iterator[TextIO]:
    """Yields standard output for results alone; what anything else prints meanwhile goes to standard error.

    MLflow prints links to its pages; TensorRT's libraries write to the file descriptor itself.
    """
    stdout = sys.stdout
    stdout.flush()
    try:
        descriptor = stdout.fileno()
    except (OSError, io.UnsupportedOperation):
        with contextlib.redirect_stdout(sys.stderr):
            yield stdout
        return
    kept = os.dup(descriptor)
    results = os.fdopen(os.dup(descriptor), "w", encoding=stdout.encoding, errors=stdout.errors)
    os.dup2(sys.stderr.fileno(), descriptor)
    try:
        with results, contextlib.redirect_stdout(sys.stderr):
            yield results
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def _print_json(stdout: TextIO, content: object) -> None:
    click.echo(json.dumps(content, indent=2), file=stdout)


def _print(stdout: TextIO, *parts: RenderableType) -> None:
    from rich.console import Console

    # Names and shapes are shown as they are: rich would take [1:8] for markup and colour every number.
    console = Console(file=stdout, markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part)
