"""How a model's arguments and results nest: taken apart into named tensors, and put together again."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import InputError, ManifestError
from .manifest import Branch, ConstantLeaf, InputLeaf, Structure, TensorLeaf

Unflatten = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""(outputs by name, inputs by name) → the structure."""


def leaves(structure: Structure) -> Iterator[TensorLeaf | InputLeaf | ConstantLeaf]:
    """Yields the leaves from left to right."""
    if isinstance(structure, Branch):
        for item in structure.items:
            yield from leaves(item)
    else:
        yield structure


def unflattener(structure: Structure) -> Unflatten:
    """Returns the function that puts a structure together; compiled once, as it runs at every call."""
    if isinstance(structure, TensorLeaf):
        name = structure.name
        return lambda tensors, inputs: tensors[name]
    if isinstance(structure, InputLeaf):
        name = structure.name
        return lambda tensors, inputs: inputs[name]
    if isinstance(structure, ConstantLeaf):
        value = structure.value
        return lambda tensors, inputs: value
    items = [unflattener(item) for item in structure.items]
    keys = structure.keys or ()
    if structure.kind == "tuple":
        return lambda tensors, inputs: tuple([item(tensors, inputs) for item in items])
    if structure.kind == "list":
        return lambda tensors, inputs: [item(tensors, inputs) for item in items]
    if len(keys) != len(items):
        raise ManifestError(
            f"The manifest holds a {structure.kind} with {len(keys)} keys and {len(items)} items.",
            "one key for each item",
            "log the model again",
        )
    if structure.kind == "dict":
        return lambda tensors, inputs: {key: item(tensors, inputs) for key, item in zip(keys, items)}
    # The model's own class is not importable here; a namedtuple of the same name and fields stands for it.
    made = collections.namedtuple(structure.type_name or "Result", [str(key) for key in keys], rename=True)  # type: ignore[misc]
    return lambda tensors, inputs: made(*[item(tensors, inputs) for item in items])


def flatten(structure: Branch, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Matches a call's arguments with the structure that the model was exported with.

    Args:
        structure: ``Interface.arguments``: a tuple of the positional tuple and the keyword dict.
        args: Positional arguments. A tensor that was exported by position may also come by its input's name.
        kwargs: Keyword arguments.

    Returns:
        What was given for each tensor, by the input's name.

    Raises:
        InputError: An argument is missing, superfluous, or nests otherwise.
    """
    positional, keyword = structure.items
    if not isinstance(positional, Branch) or not isinstance(keyword, Branch):
        raise ManifestError(
            "The manifest's arguments are no (positional, keyword) pair.",
            "a tuple of a tuple and a dict",
            "log the model again",
        )
    values: dict[str, Any] = {}
    by_name = dict(kwargs)
    if len(args) > len(positional.items):
        raise _misfit(structure, f"{len(args)} positional arguments were given", f"{len(positional.items)}")
    for place, item in enumerate(positional.items):
        if place < len(args):
            _match(item, args[place], f"argument {place}", values)
        elif isinstance(item, TensorLeaf) and item.name in by_name:
            values[item.name] = by_name.pop(item.name)
        elif not isinstance(item, ConstantLeaf):
            raise _misfit(structure, f"Argument {place} is missing", f"{len(positional.items)} positional arguments")
    for key, item in zip(keyword.keys or (), keyword.items):
        if key in by_name:
            _match(item, by_name.pop(str(key)), f"argument {key!r}", values)
        elif not isinstance(item, ConstantLeaf):
            raise _misfit(structure, f"The keyword argument {key!r} is missing", "all that the model was exported with")
    if by_name:
        names = ", ".join(map(repr, by_name))
        raise _misfit(structure, f"The keyword argument {names} is not known", "those the model was exported with")
    return values


def describe(structure: Branch) -> str:
    """Returns a call's form: ``(x, [a, b], mask=mask)``."""
    positional, keyword = structure.items
    parts = [_form(item) for item in positional.items] if isinstance(positional, Branch) else []
    if isinstance(keyword, Branch):
        parts += [f"{key}={_form(item)}" for key, item in zip(keyword.keys or (), keyword.items)]
    return f"({', '.join(parts)})"


def _match(structure: Structure, value: Any, where: str, values: dict[str, Any]) -> None:
    if isinstance(structure, (TensorLeaf, InputLeaf)):
        values[structure.name] = value
    elif isinstance(structure, ConstantLeaf):
        if type(value) is not type(structure.value) or value != structure.value:
            raise InputError(
                f"The {where} is {value!r}.",
                f"{structure.value!r}, which is part of the engine: the model was exported with it",
                "give this value, or convert the model again with the other",
            )
    elif structure.kind == "dict":
        keys = structure.keys or ()
        if not isinstance(value, Mapping) or set(value) != set(keys):
            given = f"a dict with the keys {list(value)}" if isinstance(value, Mapping) else type(value).__name__
            raise InputError(f"The {where} is {given}.", f"a dict with the keys {list(keys)}", "call it that way")
        for key, item in zip(keys, structure.items):
            _match(item, value[key], f"{where}[{key!r}]", values)
    else:
        if not isinstance(value, (tuple, list)) or len(value) != len(structure.items):
            given = f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
            raise InputError(
                f"The {where} is {given}.", f"a {structure.kind} of {len(structure.items)}", "call it that way"
            )
        for place, (item, inner) in enumerate(zip(structure.items, value)):
            _match(item, inner, f"{where}[{place}]", values)


def _misfit(structure: Branch, given: str, expected: str) -> InputError:
    return InputError(f"{given}.", expected, f"call the model as {describe(structure)}")


def _form(structure: Structure) -> str:
    if isinstance(structure, (TensorLeaf, InputLeaf)):
        return structure.name
    if isinstance(structure, ConstantLeaf):
        return repr(structure.value)
    inner = [_form(item) for item in structure.items]
    if structure.kind == "dict":
        return "{" + ", ".join(f"{key!r}: {form}" for key, form in zip(structure.keys or (), inner)) + "}"
    return f"[{', '.join(inner)}]" if structure.kind == "list" else f"({', '.join(inner)}{',' * (len(inner) == 1)})"
