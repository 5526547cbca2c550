"""When a version that could not be made ready is tried again, and what is kept of its error."""

from __future__ import annotations

import gc
import math
import time
import weakref

import pytest

from mlflow_trt.errors import CompatibilityError, DeviceError, ManifestError, PlanError, StoreError, TrtError
from mlflow_trt.serving.versions.failed_load import FailedLoad

URI = "models:/m/3"


def failed(times, error=StoreError, interval=5.0, uri=URI):
    """What is known after so many failures."""
    found = None
    for _ in range(times):
        found = FailedLoad.after(found, uri, error("It failed."), interval)
    return found


@pytest.mark.parametrize("error", [StoreError, DeviceError])
def test_what_may_pass_by_itself_is_tried_again_ever_more_seldom(error):
    assert [failed(times, error).pause for times in range(1, 9)] == [5, 10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize("error", [TrtError, PlanError, ManifestError, CompatibilityError])
def test_what_lies_in_the_version_is_not_tried_again(error):
    found = failed(3, error)
    assert (found.attempts, found.pause, found.again_at) == (3, math.inf, math.inf)


@pytest.mark.parametrize(("interval", "pause"), [(0.001, 300.0), (600.0, 300.0), (1e6, 300.0)])
def test_the_longest_pause_is_five_minutes_whatever_the_interval_and_the_number(interval, pause):
    assert failed(100, interval=interval).pause == pause


def test_when_it_is_tried_again():
    before = time.monotonic(), time.time()
    found = failed(2)
    after = time.monotonic(), time.time()
    assert before[0] + 10 <= found.again_at <= after[0] + 10
    assert before[1] <= found.when <= after[1]
    assert (found.uri, str(found.error)) == (URI, "It failed.")


def test_another_version_s_failures_do_not_count():
    found = FailedLoad.after(failed(4), "models:/m/4", StoreError("It failed."), 5.0)
    assert (found.uri, found.attempts, found.pause) == ("models:/m/4", 1, 5.0)


@pytest.mark.parametrize("error", [StoreError, PlanError])
def test_whoever_asks_has_it_tried_at_once(error):
    asked = failed(2, error).at_once()
    assert asked.again_at <= time.monotonic()
    again = FailedLoad.after(asked, URI, error("It failed."), 5.0)
    assert again.attempts == 3


class Half:
    """What a frame holds, such as half an engine."""


def test_an_error_that_is_kept_holds_nothing_of_its_frames_nor_do_those_that_led_to_it():
    held = []

    def raising(error, cause=None):
        half = Half()
        held.append(weakref.ref(half))
        raise error from cause

    def caught(error, cause=None):
        try:
            raising(error, cause)
        except Exception as found:
            return found

    def load():
        cause = caught(KeyError("the cause"), caught(OSError("and its own")))
        try:
            raising(ValueError("the first"))  # the context of what follows, and not its cause
        except ValueError:
            raising(StoreError("It failed."), cause)

    try:
        load()
    except StoreError as error:
        kept = FailedLoad.after(None, URI, error, 5.0)
    gc.collect()
    assert len(held) == 4
    assert [half() for half in held] == [None] * 4
    assert (type(kept.error.__cause__), type(kept.error.__context__)) == (KeyError, ValueError)
