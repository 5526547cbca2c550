"""How a command's results reach the terminal: tables or JSON on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def results() -> Iterator[TextIO]:
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


def show_json(stdout: TextIO, content: object) -> None:
    """Prints JSON."""
    click.echo(json.dumps(content, indent=2), file=stdout)


def show(stdout: TextIO, *parts: RenderableType) -> None:
    """Prints tables and lines."""
    from rich.console import Console

    # Names and shapes are shown as they are: rich would take [1:8] for markup and colour every number.
    console = Console(file=stdout, markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part)
