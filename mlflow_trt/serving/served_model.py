"""What the server's faces know of a model that is served, whichever process holds its engines."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import TypeAdapter

from ..plan.manifest import Interface, Profile

if TYPE_CHECKING:
    from .batching.queue import Answer

_PROFILES = TypeAdapter(tuple[Profile, ...])


@dataclass(frozen=True)
class ServedVersion:
    """What is known of a version that answers; every answer carries it."""

    uri: str
    """``models:/name/3``, or the folder or URI as it was given."""
    version: str
    """``"3"``; of something that is no registered version, 12 digits of its manifest's SHA-256."""
    platform: str
    """``"tensorrt_rtx-1.6.1.120"``, or ``"reference"``."""
    interface: Interface
    profiles: tuple[Profile, ...]
    mlmodel: str | None = None
    """MLflow's own description of it; None: it has none."""

    def to_plain(self) -> tuple[Any, ...]:
        """Plain values, for another process."""
        profiles = [{name: bounds.model_dump(mode="json") for name, bounds in p.items()} for p in self.profiles]
        return (self.uri, self.version, self.platform, self.interface.model_dump(mode="json"), profiles, self.mlmodel)

    @classmethod
    def from_plain(cls, plain: tuple[Any, ...]) -> ServedVersion:
        """Undoes :meth:`to_plain`."""
        uri, version, platform, interface, profiles, mlmodel = plain
        return cls(
            uri, version, platform, Interface.model_validate(interface), _PROFILES.validate_python(profiles), mlmodel
        )


class ServedModel(Protocol):
    """A model that is served: :class:`.versions.served.Model`, or an HTTP worker's stand-in for it."""

    @property
    def name(self) -> str:
        """What clients call it."""

    @property
    def registered_model(self) -> str | None:
        """The registered model whose aliases decide what is served; None: the URI always means the same."""

    @property
    def current(self) -> ServedVersion:
        """The version that answers now.

        Raises:
            BusyError: None does yet.
        """

    def status(self) -> dict[str, Any]:
        """How things stand, fit for JSON."""

    def refresh(self) -> None:
        """Has the registry looked at now; returns before that is done."""

    def submit(
        self, inputs: Mapping[str, np.ndarray], deadline: float | None = None, *, inline: bool = False
    ) -> Future[Answer]:
        """Queues a request for the version that answers now; the answer says which that was.

        Args:
            inputs: Arrays by input name. They must not change before the future is done.
            deadline: By ``time.monotonic()``.
            inline: Whether it may run in this thread, see :meth:`.batching.batcher.Batcher.submit`.

        Raises:
            InputError: The inputs do not fit that version.
            BusyError: Its queue is full, or there is no version that answers.
        """
