"""A version that could not be made ready, and when it is tried again.

It is tried again when the alias comes back to it and when somebody asks for that. Where the fault may pass by itself (a
store that is away, a GPU whose memory is full) it is also tried again after one interval, two, four and so on, up to
five minutes. Everything else lies in the version and stays.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from ...errors import DeviceError, StoreError, TrtError

_PASSING = (StoreError, DeviceError)
_LONGEST_PAUSE = 300.0


@dataclass(frozen=True)
class FailedLoad:
    """A version that could not be made ready."""

    uri: str
    error: TrtError
    """Without the frames that it came through: it is kept, maybe for days."""
    when: float
    """Seconds since 1970."""
    attempts: int
    """How many have failed one after the other."""
    pause: float
    """Seconds until it is tried again; infinite: not by itself."""
    again_at: float
    """By ``time.monotonic()``."""

    @classmethod
    def after(cls, previous: FailedLoad | None, uri: str, error: TrtError, interval: float) -> FailedLoad:
        """What a failure means.

        Args:
            previous: What failed last; None: nothing has.
            uri: The version.
            error: Why; it loses its frames, and so do its causes.
            interval: Seconds between two looks at the registry.
        """
        attempts = previous.attempts + 1 if previous is not None and previous.uri == uri else 1
        pause = math.inf
        if isinstance(error, _PASSING):
            pause = min(interval * 2 ** min(attempts - 1, 30), _LONGEST_PAUSE)
        _forget_frames(error)
        return cls(uri, error, time.time(), attempts, pause, time.monotonic() + pause)

    def at_once(self) -> FailedLoad:
        """The same, to be tried again now."""
        return replace(self, again_at=0.0)


def _forget_frames(error: BaseException) -> None:
    """Lets go of what the frames of an error hold, such as half an engine, and those of all that led to it."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            waiting += [each.__cause__, each.__context__]
