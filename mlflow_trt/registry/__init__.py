"""Promotion by evidence: gates, aliases, rollback, and what an upgrade would do to a registry.

* :mod:`.promotion`: ``promote``, ``rollback``, ``history``: the order of things;
* :mod:`.gates`: what a version must show; :mod:`.contract`, :mod:`.parity`, :mod:`.latency`, :mod:`.accuracy` hold the
  longer ones, :mod:`.sizes` what a tensor's size is, :mod:`.statistics` how sure a ratio of latencies is;
* :mod:`.ledger`: the one place that writes to the registry, and what it guarantees; :mod:`.alias_history`: what follows
  from its moves;
* :mod:`.report` and :mod:`.html_report`: what was judged, as JSON, text and HTML;
* :mod:`.fleet`: many machines, many models.
"""

from __future__ import annotations

from .alias_history import Move
from .fleet import check_fleet, check_upgrade
from .gate_context import Gate, GateContext, Subject
from .ledger import LostError
from .promotion import evidence, history, promote, rollback
from .report import PromotionReport
from .verdicts import Chart, Mark, Table, Verdict

__all__ = [
    "Chart",
    "Gate",
    "GateContext",
    "LostError",
    "Mark",
    "Move",
    "PromotionReport",
    "Subject",
    "Table",
    "Verdict",
    "check_fleet",
    "check_upgrade",
    "evidence",
    "history",
    "promote",
    "rollback",
]
