"""What the process that holds the engines and its HTTP workers tell each other, and how that is written.

Each message is a type of its own. On the wire it is its type's number and its fields, as plain values, which
:mod:`marshal` reads and writes faster than anything that carries names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Union, get_args

from ...plan.api import Backend
from ..config import LoadOptions, ServerConfig
from ..error_parts import ErrorParts
from ..limits import Limits
from ..served_model import ServedVersion

KNOWN_VERSIONS = 4
"""Versions of a model that a worker knows: what was replaced is draining, and soon gone."""


TensorPlace = tuple[str, str, tuple[int, ...], int]
"""A tensor in shared memory: name, numpy's name of its dtype, shape, offset. Every request and answer has some, and a
plain tuple goes through :mod:`marshal` as it is."""


# --- from a worker ---


class Infer(NamedTuple):
    """Asks a model; the tensors lie in the memory for requests."""

    id: int
    model: str
    inputs: list[TensorPlace]
    deadline: float | None
    """By ``time.monotonic()``, which all processes of a machine share."""


class Cancel(NamedTuple):
    """Nobody waits for a request any more."""

    id: int


class FreeBlock(NamedTuple):
    """A block of the memory for answers was read."""

    offset: int
    nbytes: int


class WorkerLoad(NamedTuple):
    """How a worker stands. The first one says that it serves."""

    closed: int
    """Of the connections that it was handed."""
    running: int
    """Requests under way."""


class InferenceCount(NamedTuple):
    """Has an inference request counted, see :meth:`.Metrics.request`."""

    model: str
    protocol: str
    status: int | str
    seconds: float | None


class OtherCount(NamedTuple):
    """Has any other request counted, see :meth:`.Metrics.other`."""

    route: str
    protocol: str
    status: int | str


class CutCount(NamedTuple):
    """Has a connection counted that was refused or cut off."""

    limit: str


class Refresh(NamedTuple):
    """Has the registry looked at for a model."""

    model: str


class MetricsQuery(NamedTuple):
    """Asks for what Prometheus reads."""

    id: int


# --- to a worker ---


class Configure(NamedTuple):
    """How to serve."""

    config: ServerConfig


class Drain(NamedTuple):
    """The server ends: connections are to end after their next answer."""


class VersionLoaded(NamedTuple):
    """Describes a version of a model; comes before any other message that names the version."""

    model: str
    version: ServedVersion


class ModelStatus(NamedTuple):
    """How a model stands."""

    model: str
    registered_model: str | None
    status: dict[str, Any]
    current: str | None
    """The version that answers; None: none does."""


class InferenceAnswer(NamedTuple):
    """Answers an :class:`Infer`; the tensors lie in the memory for answers."""

    id: int
    version: str
    backend: Backend
    outputs: list[TensorPlace]
    rows: int
    batch: int
    queued: float
    computed: float


class MetricsText(NamedTuple):
    """Answers a :class:`MetricsQuery`."""

    id: int
    text: TensorPlace


class RequestFailed(NamedTuple):
    """Answers an :class:`Infer` with an error."""

    id: int
    error: ErrorParts


Message = Union[
    Infer,
    Cancel,
    FreeBlock,
    WorkerLoad,
    InferenceCount,
    OtherCount,
    CutCount,
    Refresh,
    MetricsQuery,
    Configure,
    Drain,
    VersionLoaded,
    ModelStatus,
    InferenceAnswer,
    MetricsText,
    RequestFailed,
]
Plain = tuple[Any, ...]

_TYPES: tuple[Any, ...] = get_args(Message)
_new: Any = tuple.__new__  # half the time of a named tuple's own constructor, which looks at names first


def encode(message: Message) -> Plain:
    """Writes a message as plain values."""
    number, write = _WRITERS[type(message)]
    return (number, write(message))


def decode(plain: Plain) -> Message:
    """Undoes :func:`encode`."""
    message: Message = _READERS[plain[0]](plain[1])
    return message


def _read_configure(fields: Plain) -> Configure:
    settings = fields[0]
    nested = {"options": LoadOptions(**settings["options"]), "limits": Limits(**settings["limits"])}
    return Configure(ServerConfig(**{**settings, **nested}))


_NESTED: dict[Any, tuple[Callable[[Any], Plain], Callable[[Plain], Any]]] = {
    Configure: (lambda m: (dataclasses.asdict(m.config),), _read_configure),
    VersionLoaded: (
        lambda m: (m.model, m.version.to_plain()),
        lambda fields: VersionLoaded(fields[0], ServedVersion.from_plain(fields[1])),
    ),
    RequestFailed: (
        lambda m: (m.id, tuple(m.error)),
        lambda fields: RequestFailed(fields[0], ErrorParts(*fields[1])),
    ),
}
"""How those are written and read whose fields are not all plain values."""

_WRITERS: dict[Any, tuple[int, Callable[[Any], Plain]]] = {
    kind: (number, _NESTED[kind][0] if kind in _NESTED else tuple) for number, kind in enumerate(_TYPES)
}
_READERS: list[Callable[[Plain], Any]] = [
    _NESTED[kind][1] if kind in _NESTED else partial(_new, kind) for kind in _TYPES
]
