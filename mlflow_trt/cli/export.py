"""The commands that write a model for another server: ``mlflow-trt export-triton`` and ``export-kserve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import terminal


@click.command(short_help="Write a version into a Triton model repository.")
@click.argument("model")
@click.argument("repository", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", help="The model's name in Triton.  [default: the registered model's, or the folder's]")
@click.option("--version", type=int, help="Its version there.  [default: the registry's, or 1]")
@click.option("--tensorrt", metavar="RELEASE", help="The TensorRT that your Triton links, such as 10.15.1.")
@click.option("--batching/--no-batching", default=True, show_default=True, help="Join concurrent requests.")
@click.option(
    "--preferred-batch-size",
    "preferred_batch_sizes",
    multiple=True,
    type=int,
    metavar="N",
    help="A size at which Triton starts a batch before the delay is over; repeatable.",
)
@click.option("--delay", default=0.0, show_default=True, help="Milliseconds that a request may wait for others.")
@click.option("--instances", default=1, show_default=True, help="Engines on each GPU.")
@click.option(
    "--gpu", "gpus", multiple=True, type=int, metavar="INDEX", help="A GPU to use; repeatable.  [default: all]"
)
@click.option(
    "--keep-versions", default=1, show_default=True, help="How many versions Triton serves, newest first; 0: all."
)
@terminal.json_option
def export_triton(
    model: str, repository: Path, delay: float, keep_versions: int, as_json: bool, **options: Any
) -> None:
    """Write a model version into REPOSITORY, a model repository of NVIDIA's Triton Inference Server.

    Only plans of the full TensorRT can be exported: Triton's backend loads no others.
    """
    from ..export import export_triton as export

    with terminal.results() as stdout:
        exported = export(model, repository, delay=delay / 1000, keep_versions=keep_versions or None, **options)
        if as_json:
            terminal.show_json(stdout, exported.to_dict())
        else:
            files = ", ".join(exported.files)
            terminal.show(
                stdout,
                f"Written to {exported.path}: version {exported.version}, {files}",
                f"Needs a Triton that links TensorRT {exported.tensorrt}",
            )


@click.command(short_help="Write a KServe InferenceService that runs mlflow-trt serve.")
@click.argument("model")
@click.option("--image", required=True, help="A container image in which mlflow-trt serve runs.")
@click.option("--name", help="The service's name.  [default: made of the registered model's]")
@click.option("--namespace", help="Its namespace.")
@click.option("--gpus", default=1, show_default=True, help="GPUs of each replica.")
@click.option("--cpu", default="4", show_default=True, help="Cores of each replica.")
@click.option("--memory", default="8Gi", show_default=True, help="Memory of each replica.")
@click.option("--replicas", nargs=2, type=int, default=(1, 1), show_default=True, help="The fewest and the most.")
@click.option("--protocol", type=click.Choice(["http", "grpc"]), default="http", show_default=True)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="An environment variable; repeatable.")
@click.option("--secret", "secrets", multiple=True, help="A secret whose entries become such; repeatable.")
@click.option("--service-account", help="The service account that the container runs as.")
@click.option("--node-selector", multiple=True, metavar="LABEL=VALUE", help="A label of its nodes; repeatable.")
@click.option("--argument", "arguments", multiple=True, help="One more argument of mlflow-trt serve; repeatable.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it here instead.")
def export_kserve(
    model: str, image: str, env: tuple[str, ...], node_selector: tuple[str, ...], output: Path | None, **options: Any
) -> None:
    """Print the manifest of a KServe InferenceService whose container runs mlflow-trt serve MODEL.

    For kubectl apply -f -. MODEL is a URI that the cluster reaches.
    """
    from ..export import export_kserve as export

    with terminal.results() as stdout:
        text = export(
            model, image, env=_pairs("--env", env), node_selector=_pairs("--node-selector", node_selector), **options
        )
        if output is None:
            click.echo(text, nl=False, file=stdout)
        else:
            output.write_text(text, encoding="utf-8")


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    if wrong := [text for text in texts if "=" not in text or text.startswith("=")]:
        raise click.UsageError(f"{option} {wrong[0]} is not NAME=VALUE.")
    return pairs
