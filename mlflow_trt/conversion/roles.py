"""What integer and boolean inputs are for: indices into a table, a mask, positions. Read off the exported program.

Random integers say little: outside a table PyTorch fails, and a mask of noise is none that anybody sends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .arguments import Spec
from .operators import CASTS, VIEWS, operator_name
from .program import placeholder_values
from .shapes import fixed_size

_UNKNOWN_ROWS = 2
"""Of a table whose size changes from call to call: 0 and 1 fit nearly every one."""

_HANDED_ON = frozenset(
    {
        *(*VIEWS, *CASTS, "expand_as", "flip", "repeat", "roll"),
        *("cat", "stack", "where", "masked_fill"),
        *("clamp", "clamp_min", "clamp_max"),
    }
)
"""Operations whose integers are those of their operands, as far as a table's size goes: beside what moves them, what
joins several tensors or chooses among them, and bounds."""

# Operator: where the table stands among its arguments (None: its rows are given), the index, and the dimension.
_TABLES: Mapping[str, tuple[int, int, int | None]] = {
    "embedding": (0, 1, None),
    "embedding_bag": (0, 1, None),
    "_embedding_bag": (0, 1, None),
    "index_select": (0, 2, 1),
    "gather": (0, 2, 1),
    "scatter": (0, 2, 1),
    "scatter_add": (0, 2, 1),
}


@dataclass(frozen=True)
class Role:
    """What an input's integers stand for."""

    kind: Literal["indices", "mask", "padding", "positions"]
    """A ``mask`` is true where there is something, a ``padding`` mask where there is nothing."""
    rows: int | None = None
    """Of the smallest table that is read with it, where that is known."""


def roles(program: ExportedProgram, specs: Mapping[str, Spec]) -> dict[str, Role]:
    """The role of each integer or boolean input that has one; an input with a domain of its own has none."""
    values = placeholder_values(program)
    rows = _rows(program)
    roles: dict[str, Role] = {}
    for name, spec in specs.items():
        dtype = spec.dtype or values[name].dtype
        if not _plain(spec, dtype):
            continue
        if "mask" in name and "masked" not in name:
            roles[name] = Role("padding" if "pad" in name else "mask")
        elif dtype != torch.bool and re.search(r"(^|_)pos(ition)?s?(_ids?)?($|_)", name):
            roles[name] = Role("positions", rows.get(name))
        elif dtype != torch.bool and name in rows:
            roles[name] = Role("indices", rows[name])
    shapes = [specs[name].ranges for name, role in roles.items() if role.kind == "indices"]
    for name, spec in specs.items():
        plain = _plain(spec, spec.dtype or values[name].dtype)
        if name not in roles and plain and spec.rank == 2 and spec.ranges in shapes:
            roles[name] = Role("mask")
    return roles


def _plain(spec: Spec, dtype: torch.dtype) -> bool:
    """Whether values are integers or booleans whose range nobody gave."""
    return not dtype.is_floating_point and not dtype.is_complex and spec.domain is None and spec.rank > 0


def _rows(program: ExportedProgram) -> dict[str, int]:
    """By input, one more than the largest index that all tables read with it have."""
    limits: dict[str, int] = {}
    for node in program.graph.nodes:
        for index, rows in _reads(node):
            for name, offset in _inputs(index, 0, set()):
                if rows > offset:
                    limits[name] = min(limits.get(name, rows - offset), rows - offset)
    return limits


def _reads(node: Node) -> Iterator[tuple[Node, int]]:
    """(index, rows of the table) of every table that a node reads."""
    if node.op != "call_function":
        return
    name = operator_name(node)
    if name in _TABLES:
        table, index, place = _TABLES[name]
        dim = 0 if place is None else _argument(node, place, 0)
        if isinstance(of := _argument(node, index), Node):
            yield of, _size(_argument(node, table), dim)
    elif name == "index":
        for dim, of in enumerate(_argument(node, 1, ())):
            if isinstance(of, Node) and getattr(of.meta.get("val"), "dtype", torch.bool) != torch.bool:
                yield of, _size(_argument(node, 0), dim)
    elif name == "one_hot" and isinstance(of := _argument(node, 0), Node):
        classes = _argument(node, 1, -1)
        yield of, classes if isinstance(classes, int) and classes > 0 else _UNKNOWN_ROWS


def _argument(node: Node, place: int, default: Any = None) -> Any:
    if len(node.args) > place:
        return node.args[place]
    schema = getattr(node.target, "_schema", None)
    return node.kwargs.get(schema.arguments[place].name, default) if schema is not None else default


def _size(table: Any, dim: Any) -> int:
    shape = getattr(table.meta.get("val"), "shape", ()) if isinstance(table, Node) else ()
    if not isinstance(dim, int) or not -len(shape) <= dim < len(shape):
        return _UNKNOWN_ROWS
    fixed = fixed_size(shape[dim])
    return _UNKNOWN_ROWS if fixed is None else fixed


def _inputs(node: Node, offset: int, seen: set[tuple[Node, int]]) -> Iterator[tuple[str, int]]:
    """(input, what was added to it) of every input whose integers come to a node unchanged otherwise."""
    if (node, offset) in seen:
        return
    seen.add((node, offset))
    if node.op == "placeholder":
        yield node.name, offset
        return
    if node.op != "call_function":
        return
    name = operator_name(node)
    if name in ("add", "sub") and len(node.args) == 2 and isinstance(node.args[0], Node):
        second = node.args[1]
        if isinstance(second, int):
            yield from _inputs(node.args[0], offset + (second if name == "add" else -second), seen)
    elif name in _HANDED_ON:
        for operand in node.all_input_nodes:
            yield from _inputs(operand, offset, seen)
