"""Protocol Buffers' text format, as much of it as a ``config.pbtxt`` needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Message = Mapping[str, Any]
"""Field name → value: a bool, an int, a string, a :class:`Name`, a message, or a sequence of these, for a repeated
field. A map field is a sequence of messages with ``key`` and ``value``."""


class Name(str):
    """The name of an enum's value, which stands without quotes."""


def dumps(message: Message) -> str:
    """Writes a message, one field a line; an empty sequence, which is a field's default, is left out."""
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Message) -> Iterator[str]:
    for field, value in message.items():
        if isinstance(value, Mapping):
            yield f"{field} {{"
            yield from (f"  {line}" for line in _lines(value))
            yield "}"
        elif isinstance(value, (bool, int, str)):
            yield f"{field}: {_scalar(value)}"
        elif value and isinstance(value[0], Mapping):
            for entry in value:
                yield from _lines({field: entry})
        elif value:
            yield f"{field}: [{', '.join(map(_scalar, value))}]"


def _scalar(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, Name)) else f'"{"".join(map(_escape, value.encode()))}"'


def _escape(byte: int) -> str:
    """A byte of a string: as it is where it is printable ASCII and ends nothing, else in octal."""
    return chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\{byte:03o}"
