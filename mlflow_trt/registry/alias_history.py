"""The history of an alias, move by move, and what follows from it: who held it before. Pure functions of records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from ..evidence import names


@dataclass(frozen=True)
class Move:
    """One move of an alias, as it stands in the registry."""

    id: str
    """Random: tells two attempts at the same number apart."""
    name: str
    """The registered model."""
    alias: str
    number: int
    """From 1 without gaps, for this model and alias."""
    kind: Literal["promote", "rollback"]
    from_version: str | None
    """Who held the alias; None: nobody."""
    to_version: str
    who: str
    when: str
    """UTC, ISO 8601."""
    digest: str | None = None
    """SHA-256 of the first plan of ``to_version``."""
    report: str | None = None
    """The folder that holds ``report.json`` and ``report.html``: ``models:/<name>/<version>/promotions/<id>``."""
    model_id: str | None = None
    """The logged model that this folder belongs to, whatever becomes of the version."""
    note: str | None = None

    def to_json(self) -> str:
        """The content of the tags."""
        return json.dumps(asdict(self))


def parse(text: str) -> Move | None:
    """Reads a move's tag; None if it holds none. Fields that a newer release added are passed over."""
    try:
        content = json.loads(text)
        return Move(**{f.name: content[f.name] for f in fields(Move) if f.name in content})
    except (ValueError, TypeError):
        return None


def history_of(tags: Mapping[str, str], alias: str) -> tuple[Move, ...]:
    """All moves of an alias, from the registered model's tags, oldest first."""
    moves = []
    for key, value in tags.items():
        where, _, number = key.rpartition(".")
        if where == f"{names.MOVE}{alias}" and number.isdigit() and (move := parse(value)) is not None:
            moves.append(move)
    return tuple(sorted(moves, key=lambda move: move.number))


def evidence_of(tags: Mapping[str, str]) -> tuple[Move, ...]:
    """The moves by which a version became holder, from its own tags.

    A copy of a version carries the tags of what it was copied from: its moves under other names are in here too.
    """
    moves = [parse(value) for key, value in tags.items() if key.startswith(names.MOVE)]
    return tuple(sorted((m for m in moves if m is not None), key=lambda move: (move.when, move.number)))


def holders(moves: Iterable[Move]) -> list[str]:
    """The versions that a rollback can go back through, the present holder last.

    A promotion puts its version on top; a rollback takes the top away. A version that somebody gave the alias by hand,
    without a record, shows as the ``from_version`` of the next move and is put where it was.
    """
    stack: list[str] = []

    def push(version: str | None) -> None:
        if version is not None and (not stack or stack[-1] != version):
            stack.append(version)

    for move in moves:
        push(move.from_version)
        if move.kind == "rollback":
            if move.from_version is not None:
                stack.pop()
            # Versions that were deleted meanwhile were passed over.
            while stack and stack[-1] != move.to_version:
                stack.pop()
        push(move.to_version)
    return stack


def previous(moves: Sequence[Move], holder: str | None, exists: Iterable[str]) -> tuple[str | None, list[str]]:
    """The version that held the alias before its present holder, and those in between that were deleted.

    Args:
        moves: All of them, oldest first.
        holder: Who holds the alias now, whatever the moves say.
        exists: The versions that were not deleted.

    Returns:
        The version, None if there was none before; and the deleted ones that were passed over.
    """
    there = set(exists)
    stack = holders(moves)
    if holder is not None and stack and stack[-1] == holder:
        stack.pop()
    passed_over: list[str] = []
    for version in reversed(stack):
        if version in there and version != holder:
            return version, passed_over
        if version not in there:
            passed_over.append(version)
    return None, passed_over
