"""What a caller with nothing else to do runs in its own thread."""

from __future__ import annotations

import threading

import pytest

from mlflow_trt.errors import BusyError, DeadlineError

from .held_engine import LONG, SEQUENCE, SEQUENCES, Poisoned, StandIn, all_wait, batcher, becomes, in_seconds, x, y


@pytest.fixture
def quick(monkeypatch):
    """Every call counts as quick, on a slow machine too."""
    monkeypatch.setattr("mlflow_trt.serving.batching.batcher._QUICK", LONG)


def here(engine):
    """Whether each call ran in this thread."""
    return [thread is threading.current_thread() for thread in engine.threads]


@pytest.mark.usefixtures("quick")
def test_a_caller_with_nothing_else_to_do_runs_shapes_that_are_known_to_be_quick():
    engine = StandIn(SEQUENCE, SEQUENCES)
    told = []
    with batcher(engine, on_batch=told.append, delay=0.001) as b:
        for rows, length in ((3, 2), (4, 2), (3, 2), (3, 3), (3, 3), (1, 2)):
            values = range(1, rows + 1)
            answer = b.submit(x(*values, length=length), inline=True).result(LONG)
            assert answer.outputs["y"].tolist() == [[2 * v] * length for v in values]
            all_wait(b)  # the worker is done, and no longer counts as running
        b.submit(x(1, 2, 3)).result(LONG)
    # 3 and 4 rows are the same to the engine; another length or a smaller batch may have to be compiled.
    assert here(engine) == [False, True, True, False, True, False, False]
    assert len(told) == 7


def test_what_took_long_the_last_time_does_not_hold_up_the_caller(monkeypatch):
    engine = StandIn()
    with batcher(engine) as b:
        for limit in (-1.0, LONG, LONG, -1.0, LONG, LONG):  # what counts as quick
            monkeypatch.setattr("mlflow_trt.serving.batching.batcher._QUICK", limit)
            b.submit(x(1), inline=True).result(LONG)
            all_wait(b)
    assert here(engine) == [False, False, True, True, False, True]


@pytest.mark.usefixtures("quick")
def test_another_engine_s_speed_says_nothing():
    engines = [StandIn(), StandIn()]
    with batcher(*engines) as b:
        engines[0].hold()
        engines[1].began = engines[0].began
        futures = []
        while not engines[1].inputs:  # either engine may be the first that is taken
            futures.append(b.submit(x(1)))
            engines[0].began.get(timeout=LONG)
        y(futures[-1])
        assert not b._quick
        engines[0].go_on()
        assert becomes(lambda: all(f.done() for f in futures))


@pytest.mark.usefixtures("quick")
def test_a_caller_joins_the_queue_where_others_wait_or_run():
    engine = StandIn()
    with batcher(engine) as b:
        assert y(b.submit(x(0.5))) == [1]
        all_wait(b)
        engine.hold()
        first = b.submit(x(0.5))
        futures = [b.submit(x(n), inline=True) for n in (1, 2)]
        assert not any(f.done() for f in (first, *futures))
        engine.go_on()
        assert [y(f) for f in futures] == [[2], [4]]
    assert not any(here(engine))


@pytest.mark.usefixtures("quick")
def test_errors_deadlines_and_closing_in_the_caller_s_thread():
    engine = StandIn(compute=Poisoned())
    with batcher(engine) as b:
        y(b.submit(x(1)))
        all_wait(b)
        assert isinstance(b.submit(x(13), inline=True).exception(0), ValueError)
        assert isinstance(b.submit(x(2), in_seconds(-1), inline=True).exception(0), DeadlineError)
        assert y(b.submit(x(3), inline=True)) == [6]
        b.close()
        with pytest.raises(BusyError):
            b.submit(x(4), inline=True)
    assert engine.batches == [[1], [13], [3]]
    assert here(engine) == [False, True, True]


@pytest.mark.usefixtures("quick")
def test_close_waits_for_a_caller_that_runs_its_request():
    engine = StandIn()
    with batcher(engine) as b:
        y(b.submit(x(1)))
        all_wait(b)
        engine.began.get(timeout=LONG)
        engine.hold()
        answers = []
        caller = threading.Thread(target=lambda: answers.append(y(b.submit(x(2), inline=True))))
        caller.start()
        engine.began.get(timeout=LONG)
        assert engine.threads[-1] is caller
        closing = threading.Thread(target=b.close)
        closing.start()
        for thread in b._threads:
            thread.join(LONG)
        closing.join(0.05)
        assert closing.is_alive()
        engine.go_on()
        closing.join(LONG)
        caller.join(LONG)
        assert answers == [[4]]
