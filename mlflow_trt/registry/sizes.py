"""Sizes of tensors as expressions of the sizes that a call chooses: evaluated, never compared by their symbols' names.

torch.export writes an output's size in its symbols: ``2*batch``, ``(height//2) + 1``. The same relation may be spelled
otherwise by another release, and a symbol may have any name. So two of them are compared by their values.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from ..plan.manifest import Dimension, Interface

Number = Fraction
Place = tuple[str, int]
"""An input's dimension: its name, and which."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
# As sympy and torch.utils._sympy print them.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "IntTrueDiv": operator.truediv,
    "floor": math.floor,
    "FloorToInt": math.floor,
    "TruncToInt": math.trunc,
    "ceiling": math.ceil,
    "CeilToInt": math.ceil,
    "Abs": abs,
    "ToFloat": lambda a: a,
    "Identity": lambda a: a,
}


def symbols(size: Dimension) -> frozenset[str]:
    """The symbols of a size; of a text that can't be read, the text itself."""
    if isinstance(size, int):
        return frozenset()
    tree = _parsed(size)
    if tree is None:
        return frozenset([size])
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called)


def value(size: Dimension, known: Mapping[str, int]) -> int | None:
    """What a size is where these symbols have these values.

    Args:
        size: A number, a symbol or an expression.
        known: Values of symbols, and of whole expressions.

    Returns:
        None: it holds other symbols, or something that can't be evaluated.
    """
    if isinstance(size, int):
        return size
    if size in known:
        return known[size]
    tree = _parsed(size)
    if tree is None:
        return None
    try:
        number = Number(_evaluate(tree, known))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return int(number) if number.denominator == 1 else None


def kind(size: Dimension, known: Mapping[str, int]) -> Literal["told", "data", "unreadable"]:
    """Whether the call tells a size, or the data; or whether it can't be evaluated though its symbols are known."""
    if value(size, known) is not None:
        return "told"
    return "data" if any(symbol not in known for symbol in symbols(size)) else "unreadable"


def canonical(size: Dimension, known: Mapping[str, int]) -> str:
    """A size's text with values in place of symbols, and a question mark for those that the call does not tell."""
    there = symbols(size)
    return re.sub(r"[^\W\d]\w*", lambda m: str(known.get(m[0], "?")) if m[0] in there else m[0], str(size))


def chosen(interface: Interface, call: Mapping[Place, int]) -> dict[str, int] | str:
    """The values of all symbols in a call with inputs of these sizes.

    Args:
        interface: How inputs' sizes are written.
        call: The size of each dimension of each input.

    Returns:
        Values of the symbols that the inputs tell; or, for a call that does not fit, what would have to hold.
    """
    known: dict[str, int] = {}
    compound: list[tuple[Place, str]] = []
    for tensor in interface.inputs:
        for index, size in enumerate(tensor.shape):
            place = (tensor.name, index)
            if isinstance(size, str) and symbols(size) != {size}:
                compound.append((place, size))
            elif isinstance(size, str) and known.setdefault(size, call[place]) != call[place]:
                return f"{_text(place)} would have to be as large as others that are {size}"
    for place, size in compound:
        unknown = [symbol for symbol in symbols(size) if symbol not in known]
        if len(unknown) == 1 and (line := _line(size, unknown[0], known)) is not None:
            start, slope = line
            known[unknown[0]] = (call[place] - start) // slope
        if value(size, known) not in (call[place], None):
            return f"{_text(place)} would have to be {size}"
    return {**known, **{size: call[place] for place, size in compound}}


def _line(size: str, symbol: str, known: Mapping[str, int]) -> tuple[int, int] | None:
    """(value at 0, growth) of an expression that is linear in a symbol."""
    first, second, third = (value(size, {**known, symbol: n}) for n in (0, 1, 2))
    if first is None or second is None or third is None or second == first or third - second != second - first:
        return None
    return first, second - first


def _text(place: Place) -> str:
    return f"{place[0]}.shape[{place[1]}]"


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _evaluate(node: ast.expr, known: Mapping[str, int]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Number(node.value)
    if isinstance(node, ast.Name):
        return Number(known[node.id])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        power = _evaluate(node.right, known)
        if not 0 <= power <= 16:
            raise ValueError("a size is no such power")
        return _evaluate(node.left, known) ** int(power)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, known), _evaluate(node.right, known))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_evaluate(node.operand, known))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _FUNCTIONS[node.func.id](*(_evaluate(argument, known) for argument in node.args))
    raise ValueError(f"{type(node).__name__} is no size")
