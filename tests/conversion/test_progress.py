"""What is told of a long job: the seconds of each step, and bars where somebody sees them."""

from __future__ import annotations

import io
import sys
import time

import pytest

pytest.importorskip("torch", reason="the package of conversion imports it")

from mlflow_trt.conversion import progress


def test_steps_are_timed_by_name():
    steps = progress.Steps()
    with steps.timed("export"):
        time.sleep(0.02)
    with steps.timed("build"):
        pass
    assert list(steps.seconds) == ["export", "build"]
    assert 0.02 <= steps.seconds["export"] < 5
    assert steps.seconds["build"] < steps.seconds["export"]


def test_a_step_that_failed_took_no_time_that_is_told():
    steps = progress.Steps()
    with pytest.raises(ValueError, match="in the middle"), steps.timed("build"):
        raise ValueError("in the middle")
    assert steps.seconds == {}


def test_a_listener_hears_of_every_item():
    events = []
    assert list(progress.counted(lambda *event: events.append(event), "golden", "ab")) == ["a", "b"]
    assert events == [("start", "golden", 2), ("step", "golden", 1), ("step", "golden", 2), ("finish", "golden", 0)]


def test_without_a_listener_there_are_only_the_items():
    assert list(progress.counted(None, "golden", [1, 2])) == [1, 2]


class Stderr(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def test_bars_are_drawn_on_a_terminal_alone(monkeypatch):
    for terminal in (False, True):
        monkeypatch.setattr(sys, "stderr", Stderr(terminal))
        monkeypatch.setenv("TERM", "xterm")
        with progress.shown() as listener:
            assert (listener is not None) == terminal
            if listener is not None:
                for event in (("start", 4), ("step", 3), ("finish", 0), ("step", 4)):  # after its end nothing is drawn
                    listener(event[0], "a phase", event[1])
                listener("finish", "what never began", 0)
        assert bool(sys.stderr.getvalue()) == terminal
