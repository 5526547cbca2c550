"""What the processes of a server use: its own, and all that it started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric

_PROC = Path("/proc")
_ROLES = {b".workers.worker": "http", b".codec_process": "codec"}
"""How the module that a process runs ends → what it is for."""


def collect() -> Iterator[Metric]:
    """Yields Prometheus' usual ``process_*`` figures, of each process by ``process`` (its role) and ``pid``."""
    families: dict[str, Metric] = {}
    for role, pid in processes():
        labels = {"process": role, "pid": str(pid)}
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {**sample.labels, **labels}, sample.value)
    yield from families.values()


def processes() -> list[tuple[str, int]]:
    """Returns this process and its descendants with their roles; nothing where there is no ``/proc``."""
    own = os.getpid()
    roles = [("server", own)] if (_PROC / str(own)).exists() else []
    parents = [own]
    while parents:
        for pid in _children(parents.pop()):
            roles.append((_role(pid), pid))
            parents.append(pid)
    return roles


def _children(pid: int) -> list[int]:
    pids: list[int] = []
    for path in (_PROC / str(pid)).glob("task/*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            pids += map(int, path.read_text().split())
    return pids


def _role(pid: int) -> str:
    words: list[Any] = []
    with contextlib.suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    return next((role for word in words for end, role in _ROLES.items() if word.endswith(end)), "other")
