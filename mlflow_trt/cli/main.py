"""``mlflow-trt``: the public functions as commands.

Results go to standard output, everything else to standard error: with ``--json``, standard output is JSON and nothing
more. What a command needs is imported when it runs: MLflow alone takes a second.
Exit status: 0, 1 (an error of this package or MLflow, or "no" to what was asked), 2 (wrong usage).
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .._version import __version__
from ..model_uri import ModelUri
from . import terminal
from .export import export_kserve, export_triton
from .promotion import history, promote, rollback
from .serve import serve

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


main.add_command(promote)
main.add_command(rollback)
main.add_command(history)
main.add_command(serve)
main.add_command(export_triton)
main.add_command(export_kserve)


def _conversion(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of what converts a model."""
    options = [
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="SPEC",
            help="An input, as NAME=DTYPE[DIMENSIONS]: 'x=float32[1:8:32,3,224,224]'. A dimension is a size or "
            "min:opt:max, or name=min:opt:max: dimensions of one name always have the same size; ';' stands between "
            "optimization profiles. Repeat for several inputs.",
        ),
        click.option(
            "--dim",
            "dims",
            multiple=True,
            metavar="NAME=SIZE",
            help="For a graph in ONNX: a dynamic dimension's size, or min:opt:max: batch=1:8:32; repeatable.",
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
            "--converter",
            type=click.Choice(["auto", "torch_tensorrt", "onnx"]),
            default="auto",
            show_default=True,
            help="What makes the network. auto: Torch-TensorRT and, where that can't convert the whole model, ONNX.",
        ),
        click.option(
            "--setting",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="A setting of Torch-TensorRT, such as optimization_level=5; repeatable.",
        ),
        click.option("--omit-program", is_flag=True, help="Leave the program (or the graph) out of the model."),
        click.option(
            "--measure-timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=300.0,  # flavor.MEASURE_TIMEOUT, which would import MLflow
            show_default=True,
            metavar="SECONDS",
            help="How long measuring on this machine's GPU may take.",
        ),
        click.option(
            "--from",
            "uri",
            metavar="URI",
            help="Instead of SOURCE: a model of MLflow's flavor pytorch or onnx, as models:/NAME/VERSION, "
            "models:/NAME@ALIAS, models:/m-ID, runs:/ID/PATH or a local folder.",
        ),
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="With --from: load a model that was logged as pickled Python code, which can do anything.",
        ),
    ]

    @functools.wraps(command)
    def collected(
        inputs: tuple[str, ...],
        dims: tuple[str, ...],
        precision: str | None,
        capabilities: tuple[str, ...],
        output_names: tuple[str, ...],
        converter: str,
        settings: tuple[str, ...],
        source: str | None,
        uri: str | None,
        allow_pickle: bool,
        **rest: Any,
    ) -> Any:
        if (source is None) == (uri is None):
            raise click.UsageError("Give a SOURCE, or --from with the URI of a model in MLflow.")
        if allow_pickle and uri is None:
            raise click.UsageError("--allow-pickle needs --from.")
        from . import parsing

        given = {
            "inputs": [parsing.parse_input(text) for text in inputs],
            "dims": parsing.parse_dims(dims),
            "precision": precision,
            "compute_capabilities": list(capabilities),
            "output_names": list(output_names),
            "converter": "" if converter == "auto" else converter,
            "allow_pickle": allow_pickle or None,
            **parsing.parse_settings(settings),
        }
        conversion = {name: value for name, value in given.items() if value or value is False}
        return command(source=source, uri=uri, conversion=conversion, **rest)

    return functools.reduce(lambda made, option: option(made), reversed(options), collected)


@main.command()
@click.argument("source", required=False)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A new folder (the model in MLflow's format), or a file *.engine or *.plan (the bare engine).",
)
@_conversion
@terminal.json_option
def convert(
    source: str | None,
    uri: str | None,
    output: Path,
    omit_program: bool,
    measure_timeout: float,
    as_json: bool,
    conversion: dict[str, Any],
) -> None:
    """Convert a model to a TensorRT engine.

    SOURCE is a graph in ONNX (.onnx), a file that torch.export.save wrote (.pt2), or module:attribute, a model or a
    function that returns one. A model that MLflow holds is named by --from instead.
    """
    import mlflow_trt

    from . import parsing

    with terminal.results() as stdout:
        if not output.absolute().parent.is_dir():
            raise click.UsageError(f"There is no folder {output.absolute().parent}.")
        if output.suffix in ENGINE_SUFFIXES:
            plan = mlflow_trt.convert(parsing.load(source, uri), **conversion)
            plan.save(output)
            record = plan.record.model_copy(update={"file": plan.record.file.model_copy(update={"path": output.name})})
            manifest = plan.manifest.model_copy(update={"plans": (record,)})
        else:
            mlflow_trt.save_model(
                parsing.load(source, uri),
                output,
                program=_program(omit_program),
                measure_timeout=measure_timeout,
                **conversion,
            )
            manifest = mlflow_trt.inspect(output)
        if as_json:
            terminal.show_json(stdout, {"output": str(output), "manifest": json.loads(manifest.to_json())})
        else:
            from . import tables

            terminal.show(stdout, tables.of_manifest(manifest), f"Written to {output}")


@main.command()
@click.argument("source", required=False)
@click.option("--name", help="The logged model's name.  [default: model]")
@click.option("--register", metavar="NAME", help="Register a version under this name.")
@click.option("--alias", "aliases", multiple=True, help="An alias for the registered version; repeatable.")
@_conversion
@terminal.json_option
def log(
    source: str | None,
    uri: str | None,
    name: str | None,
    register: str | None,
    aliases: tuple[str, ...],
    omit_program: bool,
    measure_timeout: float,
    as_json: bool,
    conversion: dict[str, Any],
) -> None:
    """Log a model to MLflow, converting it where needed.

    SOURCE is an .onnx or .pt2 file or module:attribute, as for convert; or an engine that is already built: a folder
    that convert wrote, or the file of another program (trtexec --saveEngine). A model that MLflow holds is named by
    --from instead, and its version is recorded: log --from models:/resnet/3 --register resnet-trt
    """
    if aliases and not register:
        raise click.UsageError("--alias needs --register.")
    import mlflow_trt

    from . import parsing

    with terminal.results() as stdout:
        built = source is not None and parsing.is_engine_or_folder(source)
        model = Path(str(source)) if built else parsing.load(source, uri)
        info = mlflow_trt.log_model(
            model,
            name,
            registered_model_name=register,
            program=_program(omit_program),
            measure_timeout=measure_timeout,
            **conversion,
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
            terminal.show_json(stdout, {**logged, "registered": registered, "manifest": json.loads(manifest.to_json())})
        else:
            from . import tables

            lines = [f"Logged as {info.model_uri}"]
            if registered:
                lines.append(f"Registered as {ModelUri(register, version=version)}")
                lines += [f"Alias {ModelUri(register, alias=alias)}" for alias in aliases]
            terminal.show(stdout, tables.of_manifest(manifest), *lines)


@main.command(short_help="Show what a model is.")
@click.argument("model")
@click.option(
    "--requirements",
    "as_requirements",
    is_flag=True,
    help="Print only what pip has to install here for it: pip install $(mlflow-trt inspect MODEL --requirements)",
)
@terminal.json_option
def inspect(model: str, as_requirements: bool, as_json: bool) -> None:
    """Show what a model is: inputs, outputs, plans, measurements, files. Reads only its manifest."""
    import mlflow_trt

    with terminal.results() as stdout:
        if as_requirements:
            from ..flavor.inspection import requirements

            needed = requirements(model)
            if as_json:
                terminal.show_json(stdout, needed)
            else:
                click.echo("\n".join(needed), file=stdout)
            return
        manifest = mlflow_trt.inspect(model)
        if as_json:
            terminal.show_json(stdout, json.loads(manifest.to_json()))
        else:
            from . import tables

            terminal.show(stdout, tables.of_manifest(manifest))


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
@terminal.json_option
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
    with terminal.results() as stdout:
        reports = [mlflow_trt.check(model, host) for host in hosts or (None,)]
        if as_json:
            terminal.show_json(stdout, {"model": model, "hosts": [report.to_dict() for report in reports]})
        else:
            from . import tables

            terminal.show(stdout, *(tables.of_report(report) for report in reports))
    if any(report.accepted is None for report in reports):
        sys.exit(1)


def _check_fleet(model: str, fleet: Path, as_json: bool) -> None:
    import mlflow_trt

    with terminal.results() as stdout:
        reports = mlflow_trt.check_fleet(model, fleet)
        if as_json:
            terminal.show_json(stdout, {"model": model, "hosts": {name: r.to_dict() for name, r in reports.items()}})
        else:
            from . import registry_tables

            terminal.show(stdout, registry_tables.of_fleet(reports))
    if any(report.accepted is None for report in reports.values()):
        sys.exit(1)


def _check_upgrade(upgrade: str, fleet: Path | None, as_json: bool) -> None:
    import mlflow_trt

    with terminal.results() as stdout:
        changes = mlflow_trt.check_upgrade(upgrade, fleet=fleet)
        if as_json:
            terminal.show_json(stdout, {"upgrade": upgrade, "changes": [vars(change) for change in changes]})
        else:
            from . import registry_tables

            terminal.show(stdout, registry_tables.of_changes(upgrade, changes))
    if any(change.broken for change in changes):
        sys.exit(1)


@main.command(short_help="Measure a model's parity and latency here.")
@click.argument("model")
@click.option("--device", default=0, show_default=True, help="Index of the GPU.")
@click.option("--backend", type=click.Choice(["tensorrt", "reference"]), default="tensorrt", show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Timed calls at each point.")
@terminal.json_option
def benchmark(model: str, device: int, backend: Any, runs: int, as_json: bool) -> None:
    """Measure a logged model's parity and latency here, and log them to its run.

    The exit status is 1 if the parity check fails.
    """
    import mlflow_trt

    with terminal.results() as stdout:
        report = mlflow_trt.benchmark(model, device=device, backend=backend, runs=runs)
        if as_json:
            figures = {
                "parity": report.parity.model_dump(mode="json"),
                "latency": report.latency.model_dump(mode="json"),
            }
            terminal.show_json(
                stdout, {"model": model, "backend": report.backend, "run_id": report.logged_to, **figures}
            )
        else:
            from . import tables

            where = f"Logged to the run {report.logged_to}" if report.logged_to else "Logged nowhere"
            terminal.show(
                stdout, tables.of_benchmark(report.parity, report.latency), f"Backend: {report.backend}. {where}."
            )
    if report.parity.status == "failed":
        sys.exit(1)


def _program(omit: bool) -> Any:
    return "omit" if omit else "include"
