"""When a server is ready, as ``/v2/health/ready``, gRPC's ``ServerReady`` and the standard health service tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def ready(statuses: Iterable[Mapping[str, Any]], exit_on_error: bool) -> bool:
    """Decides whether a server is ready.

    Args:
        statuses: Of its models.
        exit_on_error: Whether a model that can't be loaded ends it: then it is ready once all of them answer. Else it
            is ready once each has either answered or failed, and at least one answers.
    """
    states = [(status["state"] == "ready", status.get("attempted", True)) for status in statuses]
    if exit_on_error:
        return all(answers for answers, _ in states)
    return any(answers for answers, _ in states) and all(answers or attempted for answers, attempted in states)
