"""How far a server's end has come, as what answers requests needs to know it."""

from __future__ import annotations


class Shutdown:
    """One server's end.

    First it drains: it says that it is not ready, so that no more requests are sent to it, and answers whatever comes
    nevertheless. Then it listens no more, answers what it has accepted, and is gone.
    """

    def __init__(self) -> None:
        self.draining = False
        """Whether it drains, or is beyond that."""
