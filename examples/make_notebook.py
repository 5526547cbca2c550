"""Makes ``quickstart.ipynb`` from ``quickstart.py``: the same code, cell by cell, without ``main``.

    python examples/make_notebook.py

The docstring becomes the first cell's text, each part of the script a cell of code, and the body of ``main`` is cut
where it has an empty line. A comment at the start of such a part is a text above its cell.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPT = HERE / "quickstart.py"
NOTEBOOK = HERE / "quickstart.ipynb"


def made(source: str) -> str:
    """The notebook's text.

    Args:
        source: The script's.
    """
    cells = [_cell(number, kind, text) for number, (kind, text) in enumerate(_parts(source)) if text.strip()]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _parts(source: str) -> Iterator[tuple[str, str]]:
    """What the cells hold, in order: "markdown" or "code", and the text."""
    tree = ast.parse(source)
    lines = source.splitlines()
    yield "markdown", f"# Quickstart\n\n{_text(ast.get_docstring(tree) or '')}"
    body = tree.body[1:]
    simple: list[str] = []  # imports and constants, which share a cell
    last = 0
    steps: list[tuple[str, str]] = []
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        code = "\n".join(lines[first - 1 : node.end_lineno])
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If):
            simple.append(("\n" if simple and first > last + 1 else "") + code)
            last = node.end_lineno or 0
            continue
        if simple:
            yield "code", "\n".join(simple)
            simple = []
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            steps = list(_steps(textwrap.dedent("\n".join(lines[node.lineno : node.end_lineno]))))
        elif not isinstance(node, ast.If):  # that is: if __name__ == "__main__"
            yield "code", code
    yield from steps  # after all that they call


def _steps(body: str) -> Iterator[tuple[str, str]]:
    """The body of ``main`` in parts that can be run one by one."""
    for part in body.split("\n\n"):
        lines = part.splitlines()
        comments = []
        while lines and lines[0].startswith("#"):
            comments.append(lines.pop(0).lstrip("# "))
        if comments:
            yield "markdown", " ".join(comments)
        yield "code", "\n".join(lines)


def _text(docstring: str) -> str:
    """A docstring as Markdown: how to run a script is not for readers of the notebook."""
    return "\n\n".join(
        part.replace("``", "`") for part in docstring.split("\n\n") if not part.startswith(("    ", "python "))
    )


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": text.splitlines(keepends=True)}


if __name__ == "__main__":
    NOTEBOOK.write_text(made(SCRIPT.read_text(encoding="utf-8")), encoding="utf-8")
