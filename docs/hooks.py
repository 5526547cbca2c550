"""What MkDocs can't do by itself for these pages; ``mkdocs.yml`` names this file.

* Pages link to the repository's files outside ``docs/`` as GitHub understands it, ``../benchmarks/results/….md``. The
  site gets a copy of each such file, under its path in the repository, and the links are rewritten. A link to a file
  that is not there is left alone, so that ``mkdocs build --strict`` reports it.
* The command line reference is click's own help.
* Docstrings name things as Sphinx does, ``:func:`load_model```; the Python reference makes links of that.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import mlflow_trt
from mlflow_trt.cli import main

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
HELP = "<!-- the commands' help -->"
LINK = re.compile(r"\]\((\.\./[^)#\s]+)((?:#[^)\s]*)?)\)")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?(?:mlflow_trt\.)?([\w.]+)</code>")


def _outside(page: str, link: str) -> str | None:
    """The path in the repository that a page's link leads to; None if it stays in docs/ or leads nowhere."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if path.startswith(("..", "docs/")) or not (ROOT / path).exists():
        return None
    return path


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to; of benchmarks/results all, since they link to one another."""
    wanted: set[str] = set()
    for file in files.documentation_pages():
        for link, _ in LINK.findall(file.content_string):
            path = _outside(file.src_uri, link)
            if path is not None and path.startswith(RESULTS):
                wanted.update(p.relative_to(ROOT).as_posix() for p in (ROOT / RESULTS).iterdir())
            elif path is not None:
                wanted.add(path)
    for path in sorted(wanted):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Rewrites a page's links to those files, and writes the commands' help where it belongs."""
    here = posixpath.dirname(page.file.src_uri) or "."

    def rewritten(match: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, match[1])
        return match[0] if path is None else f"]({posixpath.relpath(path, here)}{match[2]})"

    return LINK.sub(rewritten, markdown).replace(HELP, "\n".join(_help(main, "mlflow-trt")))


def on_page_content(html: str, **_: Any) -> str:
    """Makes links of the names in docstrings."""

    def linked(match: re.Match[str]) -> str:
        name = match[1]
        if name not in mlflow_trt.__all__:
            return f"<code>{name}</code>"
        return f'<a href="#mlflow_trt.{name}"><code>{name}</code></a>'

    return ROLE.sub(linked, html)


def _help(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """A command's help and that of its subcommands, each under a heading."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _help(command.commands[inner], inner, context)
