"""Requests that wait: which of them run together, in which order, and how long they wait."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections import deque
from concurrent.futures import CancelledError, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_trt.errors import BusyError, DeadlineError, DeviceError
from mlflow_trt.serving.batching.queue import Answer, QueuedRequest, is_full, take

from .held_engine import (
    LONG,
    SEQUENCE,
    SEQUENCES,
    VERSION,
    Poisoned,
    StandIn,
    all_wait,
    batcher,
    busy,
    in_seconds,
    x,
    y,
)


# --- what is decided of waiting requests ---
def waiting(name, rows=1, shapes=((2,),), sizes=(1, 2, 4, 8), deadline=math.inf, forget=lambda request: None):
    """A request that waits, and is told apart by the name that stands for its arrays."""
    return QueuedRequest(name, rows, shapes, sizes, deadline, forget)


def names(requests):
    return [request.arrays for request in requests]


OTHER = ((3,),)

TAKEN = {
    "one": ([("a", 1)], "a", ""),
    "all that fit": ([("a", 1), ("b", 2), ("c", 3)], "abc", ""),
    "up to the largest size and no more": ([("a", 4), ("b", 4), ("c", 1)], "ab", "c"),
    "a small one passes one that is too large": ([("a", 5), ("b", 4), ("c", 3), ("d", 1)], "ac", "bd"),
    "none but the head where that is full": ([("a", 8), ("b", 1)], "a", "b"),
    "only those of the head's shape": ([("a", 1), ("b", 1, OTHER), ("c", 1), ("d", 1, OTHER)], "ac", "bd"),
    "a lone one alone": ([("a", 1, None, ()), ("b", 1, None, ()), ("c", 1)], "a", "bc"),
    "no lone one with others": ([("a", 1), ("b", 1, None, ()), ("c", 1)], "ac", "b"),
    "no more than the head's own sizes": (
        [("a", 1, OTHER, (1, 2)), ("b", 1, OTHER, (1, 2)), ("c", 1, OTHER)],
        "ab",
        "c",
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken_together_and_what_stays_in_its_order(case):
    requests, together, left = TAKEN[case]
    line = deque(waiting(*request) for request in requests)
    assert names(take(line)) == list(together)
    assert names(line) == list(left)


@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from([((2,),), OTHER, None])), min_size=1, max_size=30))
def test_whatever_waits_the_head_is_taken_and_nothing_is_lost(requests):
    line = deque(
        waiting(i, rows, shapes, () if shapes is None else (1, 8)) for i, (rows, shapes) in enumerate(requests)
    )
    before = list(line)
    taken = []
    while line:
        head = line[0]
        batch = take(line)
        assert batch[0] is head, "it may have been passed for ever"
        assert len({request.row_shapes for request in batch}) == 1
        assert len(batch) == 1 or sum(request.rows for request in batch) <= 8
        assert [before.index(request) for request in line] == sorted(before.index(request) for request in line)
        taken += batch
    assert sorted(names(taken)) == list(range(len(requests)))


@pytest.mark.parametrize(
    ("requests", "full"),
    [
        ([("a", 1)], False),
        ([("a", 8)], True),
        ([("a", 4), ("b", 3)], False),
        ([("a", 4), ("b", 4)], True),
        ([("a", 4), ("b", 4, OTHER)], False),
        ([("a", 4), ("b", 8, OTHER), ("c", 4)], True),
        ([("a", 1, None, ())], True),
        ([("a", 1, OTHER, (1,))], True),
    ],
)
def test_a_head_that_nothing_can_join_need_not_wait(requests, full):
    assert is_full(deque(waiting(*request) for request in requests)) is full


def test_who_cancels_gives_the_place_free_once():
    forgotten = []
    request = waiting("a", forget=forgotten.append)
    assert request.cancel()
    assert forgotten == [request]
    running = waiting("b", forget=forgotten.append)
    assert running.set_running_or_notify_cancel()
    assert not running.cancel()
    assert forgotten == [request]


def test_a_deadline_is_over_at_its_moment_and_not_before(monkeypatch):
    request = waiting("a", deadline=100.0)
    request.arrived = 98.5
    request.set_running_or_notify_cancel()
    monkeypatch.setattr(time, "monotonic", lambda: 99.999)
    assert not request.expire()
    assert not request.done()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert request.expire()
    assert "after 1.500 s" in str(request.exception(0))
    assert not request.arrays


def test_who_was_answered_holds_no_inputs():
    request = waiting("a")
    request.set_running_or_notify_cancel()
    answer = Answer({}, VERSION, 1, 1, 0.0, 0.0)
    request.answer(answer)
    assert request.result(0) is answer
    assert not request.arrays


# --- which run together ---


def test_a_batch_takes_no_more_than_the_profile_and_later_ones_may_fill_it():
    engine = StandIn()
    with busy(engine) as b:
        futures = [b.submit(x(*rows)) for rows in ([1] * 5, [2] * 4, [3] * 2, [4], [5])]
        engine.go_on()
        assert [len(y(f)) for f in futures] == [5, 4, 2, 1, 1]
    assert engine.batches[1:] == [[1, 1, 1, 1, 1, 3, 3, 4], [2, 2, 2, 2, 5, 5, 5, 5]]


def test_other_shapes_are_never_mixed_and_the_first_is_served_first():
    engine = StandIn(SEQUENCE, SEQUENCES)
    with busy(engine) as b:
        futures = [b.submit(x(n, length=length)) for n, length in ((1, 3), (2, 5), (3, 3), (4, 7), (5, 5), (6, 3))]
        engine.go_on()
        assert [f.result(LONG).outputs["y"].tolist() for f in futures] == [
            [[2 * n] * length] for n, length in ((1, 3), (2, 5), (3, 3), (4, 7), (5, 5), (6, 3))
        ]
    assert engine.batches[1:] == [[1, 3, 6, 6], [2, 5], [4]]


def test_a_stream_of_others_starves_nobody():
    engine = StandIn(SEQUENCE, SEQUENCES)
    with busy(engine) as b:
        stream = [b.submit(x(*[1] * 8, length=3)) for _ in range(3)]
        other = b.submit(x(7, length=5))
        stream += [b.submit(x(*[1] * 8, length=3)) for _ in range(20)]
        engine.go_on()
        wait([other, *stream], LONG)
    assert [batch[0] for batch in engine.batches].index(7) == 4


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3)), max_size=25),
    cancelled=st.sets(st.integers(0, 24)),
    workers=st.integers(1, 3),
)
def test_any_requests(requests, cancelled, workers):
    """Everyone gets their own rows; no batch is larger than the profile, of a size that was not agreed, or mixed."""
    engine = StandIn(SEQUENCE, SEQUENCES)
    with batcher(engine, workers=workers) as b:
        engine.hold()
        for _ in range(workers):
            b.submit(x(-1, length=9))
            engine.began.get(timeout=LONG)
        futures = [
            b.submit(x(*[100 * i + row for row in range(rows)], length=length))
            for i, (rows, length) in enumerate(requests)
        ]
        gone = {i for i in cancelled if i < len(futures) and futures[i].cancel()}
        assert len(gone) == len([i for i in cancelled if i < len(futures)])
        assert b.depth == len(futures) - len(gone)
        engine.go_on()
        for i, (rows, length) in enumerate(requests):
            if i not in gone:
                expected = [[2.0 * (100 * i + row)] * length for row in range(rows)]
                answer = futures[i].result(LONG)
                assert answer.outputs["y"].tolist() == expected
                assert answer.rows == rows <= answer.batch <= 8
    ran = [call["x"] for call in engine.inputs[workers:]]
    assert all(len(batch) in b.sizes for batch in ran)
    seen = {i for batch in ran for i in (batch[:, 0] // 100).astype(int).tolist()}
    assert seen == set(range(len(requests))) - gone
    if workers == 1:
        heads = [int(batch[0, 0] // 100) for batch in ran]
        assert heads == sorted(heads), "a batch began with a request that came later"


# --- which need not wait for others ---


def test_a_full_batch_does_not_wait():
    engine = StandIn()
    with batcher(engine, workers=2, delay=2 * LONG) as b:
        futures = []
        for n in (1, 2, 3):
            futures.append(b.submit(x(n, n)))
            all_wait(b)
        futures.append(b.submit(x(4, 4)))
        assert [y(f)[0] for f in futures] == [2, 4, 6, 8]
        assert y(b.submit(x(*range(8))))[7] == 14
    assert len(engine.batches) == 2


def test_others_do_not_fill_a_batch():
    engine = StandIn(SEQUENCE, SEQUENCES)
    with batcher(engine, delay=2 * LONG) as b:
        first = b.submit(x(1, length=3))
        all_wait(b)
        b.submit(x(*[2] * 8, length=5))
        all_wait(b)
        b.submit(x(*[3] * 7, length=3))
        assert y(first) == [2]
        assert engine.batches[0] == [1, *[3] * 7]


# --- a bounded queue ---


def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room():
    engine = StandIn()
    with busy(engine, max_queue=2) as b:
        waiting = [b.submit(x(1)), b.submit(x(2))]
        with pytest.raises(BusyError, match="2 requests are waiting") as caught:
            b.submit(x(3))
        assert caught.value.get_http_status_code() == 503
        assert waiting[0].cancel()
        assert b.depth == 1
        replaced = b.submit(x(4))
        engine.go_on()
        assert (y(waiting[1]), y(replaced)) == ([4], [8])
    assert engine.batches[1:] == [[2, 4]]


# --- cancelling ---


def test_a_cancelled_request_never_runs_and_lets_go_of_its_inputs():
    engine = StandIn()
    with busy(engine) as b:
        inputs = x(1)
        gone = weakref.ref(inputs["x"])
        future = b.submit(inputs)
        del inputs
        assert future.cancel()
        assert gone() is None
        assert future.cancel()
        assert wait([future], timeout=LONG).done == {future}
        with pytest.raises(CancelledError):
            future.result()
    assert len(engine.batches) == 1


def test_a_running_request_can_not_be_cancelled():
    engine = StandIn()
    with batcher(engine) as b:
        engine.hold()
        future = b.submit(x(1))
        engine.began.get(timeout=LONG)
        assert not future.cancel()
        engine.go_on()
        assert y(future) == [2]


def test_cancelling_from_an_event_loop():
    engine = StandIn()

    async def wait_for(future):
        return await asyncio.wrap_future(future)

    async def client(b):
        abandoned = asyncio.create_task(wait_for(b.submit(x(1))))
        kept = asyncio.wrap_future(b.submit(x(2)))
        await asyncio.sleep(0)
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned
        assert b.depth == 1
        engine.go_on()
        return (await kept).outputs["y"].tolist()

    with busy(engine) as b:
        assert asyncio.run(client(b)) == [[4, 4]]
    assert engine.batches[1:] == [[2]]


# --- deadlines ---


def test_a_passed_deadline_fails_while_all_workers_are_busy():
    engine = StandIn()
    with busy(engine) as b:
        later = b.submit(x(1), in_seconds(LONG))  # the watch sleeps for this one, and must be woken for the next
        sooner = b.submit(x(2), in_seconds(0.03))
        over = b.submit(x(3), in_seconds(-1))
        never = b.submit(x(4))
        with pytest.raises(DeadlineError) as caught:
            sooner.result(LONG)
        assert caught.value.get_http_status_code() == 504
        assert isinstance(over.exception(LONG), DeadlineError)
        assert b.depth == 2
        engine.go_on()
        assert (y(later), y(never)) == ([2], [8])
    assert engine.batches[1:] == [[1, 4]]


def test_deadlines_one_after_the_other():
    engine = StandIn()
    with busy(engine) as b:
        futures = [b.submit(x(n), in_seconds(0.01 * n)) for n in (1, 2, 3, 4)]
        assert all(isinstance(f.exception(LONG), DeadlineError) for f in futures)
        assert b.depth == 0
        again = b.submit(x(5), in_seconds(0.01))
        assert isinstance(again.exception(LONG), DeadlineError)


def test_a_deadline_that_passed_unnoticed_is_seen_before_the_request_runs(monkeypatch):
    engine = StandIn()
    with busy(engine) as b:
        monkeypatch.setattr(b, "_alarm", -math.inf)  # the watch sleeps on: the worker itself must look
        future = b.submit(x(1), in_seconds(-1))
        engine.go_on()
        assert isinstance(future.exception(LONG), DeadlineError)
    assert len(engine.batches) == 1


@pytest.mark.parametrize("deadline", [math.inf, math.nan, 1e300, float(2**63)])
def test_deadlines_beyond_any_clock(deadline):
    engine = StandIn()
    with busy(engine) as b:
        far = b.submit(x(1), deadline)
        near = b.submit(x(2), in_seconds(0.01))
        assert isinstance(near.exception(LONG), DeadlineError)
        engine.go_on()
        assert y(far) == [2]


# --- errors ---


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit()])
def test_no_error_ends_a_worker_or_escapes_to_the_event_loop(error, caplog):
    engine = StandIn(compute=Poisoned(error))
    with batcher(engine) as b:
        with pytest.raises(DeviceError, match=type(error).__name__) as caught:
            b.submit(x(13)).result(LONG)
        assert caught.value.__cause__ is error
        assert y(b.submit(x(1))) == [2]
    assert type(error).__name__ in caplog.text
