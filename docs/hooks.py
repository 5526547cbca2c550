"""What MkDocs can't do by itself for these pages; ``mkdocs.yml`` names this file.

* Pages link to the repository's files outside ``docs/`` as GitHub understands it, ``../benchmarks/results/….md``. The
  site gets a copy of each such file, under its path in the repository, and the links are rewritten, those back into
  ``docs/`` too. A link to a file that is not there is left alone, so that ``mkdocs build --strict`` reports it.
* The command line reference is click's own help.
* Docstrings name things as Sphinx does, ``:func:`load_model```; the Python reference makes links of that.
"""

from __future__ import annotations

import pkgutil
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import mlflow_trt

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 80
"""Characters that the column of a page has room for."""
HELP = "<!-- the commands' help -->"
LINK = re.compile(r"\]\(([^)#\s:]+)((?:#[^)\s]*)?)\)")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?(?:mlflow_trt\.)?([\w.]+)</code>")


def _linked(page: Path, link: str) -> Path | None:
    """The file that a link leads to; None if there is none in the repository."""
    path = Path(posixpath.normpath(page.parent / link))
    return path if path.is_relative_to(ROOT) and path.exists() else None


def _address(path: Path) -> str:
    """Where a file of the repository is in the site's sources."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to, and those that these link to; of benchmarks/results all."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    added: set[Path] = set()
    while pages:
        page = pages.pop()
        found = {_linked(page, link) for link, _ in LINK.findall(page.read_text(encoding="utf-8"))}
        new = {path for path in found if path is not None and not path.is_relative_to(DOCS)}
        if any(path.is_relative_to(RESULTS) for path in new):
            new.update(RESULTS.iterdir())  # tables, figures and JSON of one measurement belong together
        new -= added
        added |= new
        pages += [path for path in new if path.suffix == ".md"]
    for path in sorted(added):
        files.append(File.generated(config, _address(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Rewrites a page's links to those files, and writes the commands' help where it belongs."""
    source = Path(page.file.abs_src_path or "")
    here = posixpath.dirname(page.file.src_uri) or "."

    def rewritten(match: re.Match[str]) -> str:
        path = _linked(source, match[1])
        return match[0] if path is None else f"]({posixpath.relpath(_address(path), here)}{match[2]})"

    markdown = LINK.sub(rewritten, markdown)
    if HELP in markdown:
        ((name, entry),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
        markdown = markdown.replace(HELP, "\n".join(_help(pkgutil.resolve_name(entry), name)))
    return markdown


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
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _help(command.commands[inner], inner, context)
