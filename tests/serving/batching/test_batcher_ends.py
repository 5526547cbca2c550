"""How requests, calls and a batcher end otherwise than well: errors, and closing."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from concurrent.futures import Future, wait

import numpy as np
import pytest

from mlflow_trt.errors import BusyError, DeadlineError, DeviceError, InputError
from mlflow_trt.serving.batching.batcher import Batcher

from .held_engine import LONG, SEQUENCE, SEQUENCES, VERSION, Poisoned, StandIn, batcher, becomes, busy, in_seconds, x, y

# --- failing ---


def test_of_a_failing_batch_only_the_guilty_fail():
    engine = StandIn(compute=Poisoned(InputError("the value 13 is unlucky", "another", "give 12")))
    with busy(engine) as b:
        futures = [b.submit(x(n)) for n in (1, 13, 3)]
        engine.go_on()
        assert (y(futures[0]), y(futures[2])) == ([2], [6])
        with pytest.raises(InputError, match="unlucky"):
            futures[1].result(LONG)
    assert engine.batches[1:] == [[1, 13, 3, 3], [1], [13], [3]]
    assert futures[0].result().batch == 1


def test_a_broken_device_is_asked_once_more_for_each_request_and_never_again():
    engine = StandIn()
    with busy(engine) as b:
        engine.compute = Poisoned(DeviceError("out of memory"), bad=7.0)
        futures = [b.submit(x(7)) for _ in range(4)]
        engine.compute, poisoned = (lambda v: 2 * v if v[0, 0] == 0.5 else poisoned(v)), engine.compute
        engine.go_on()
        assert all(isinstance(f.exception(LONG), DeviceError) for f in futures)
        assert y(b.submit(x(1))) == [2]
    assert [len(batch) for batch in engine.batches] == [1, 4, 1, 1, 1, 1, 1]


def test_what_is_over_when_a_batch_has_failed_is_not_run_again():
    begun = []

    def compute(v):
        if len(v) > 1:
            begun.append(in_seconds(0))
            while time.monotonic() <= ends:
                threading.Event().wait(0.01)
            raise ValueError
        return 2 * v

    engine = StandIn(compute=compute)
    with busy(engine) as b:
        ends = in_seconds(0.2)
        over, other = b.submit(x(1), ends), b.submit(x(2))
        engine.go_on()
        assert isinstance(over.exception(LONG), DeadlineError)
        assert y(other) == [4]
    assert begun[0] < ends, "the machine is too slow for this test"
    assert engine.batches[1:] == [[1, 2], [2]]


@pytest.mark.parametrize("others", [0, 2])
def test_errors_do_not_keep_inputs_alive(others):
    """An error, its traceback's frames and the requests in them must not hold each other until the next collection."""

    def compute(v):
        if (v == 13).any():
            raise ValueError
        return 2 * v

    engine = StandIn(compute=compute)
    with busy(engine) as b:
        gc.collect()
        gc.disable()
        try:
            futures = [b.submit(x(n)) for n in range(others)]
            inputs = x(13, 1, 2)
            gone = weakref.ref(inputs["x"])
            futures.append(b.submit(inputs))
            engine.go_on()
            wait(futures, LONG)
            assert isinstance(futures[-1].exception(), ValueError)
            futures_gone = [weakref.ref(future) for future in futures]
            del futures, inputs
            y(b.submit(x(1)))  # the worker has gone on
            assert gone() is None
            assert [future() for future in futures_gone] == [None] * (others + 1)
        finally:
            gc.enable()


def test_an_idle_worker_keeps_nothing_alive():
    with batcher(StandIn()) as b:
        future = b.submit(x(1, 2, 3))
        assert y(future) == [2, 4, 6]
        gone = weakref.ref(future)
        del future
        assert becomes(lambda: gone() is None)


# --- closing ---


def test_close_runs_what_waits():
    engine = StandIn()
    with busy(engine) as b:
        futures = [b.submit(x(n)) for n in (1, 2)]
        closing = threading.Thread(target=b.close)
        closing.start()
        assert becomes(lambda: b._closed)
        with pytest.raises(BusyError):
            b.submit(x(3))
        assert not futures[0].done()
        engine.go_on()
        closing.join(LONG)
        assert not closing.is_alive()
        assert all(f.done() for f in futures)
        assert [y(f) for f in futures] == [[2], [4]]


def test_deadlines_pass_while_a_closed_batcher_drains():
    engine = StandIn()
    with busy(engine) as b:
        waits = b.submit(x(1))
        closing = threading.Thread(target=b.close)
        over = b.submit(x(2), in_seconds(0.1))
        closing.start()
        assert isinstance(over.exception(LONG), DeadlineError)
        assert not waits.done()
        engine.go_on()
        closing.join(LONG)
        assert y(waits) == [2]


def test_close_without_drain_fails_what_waits_and_finishes_what_runs():
    engine = StandIn()
    with batcher(engine) as b:
        engine.hold()
        running = b.submit(x(1))
        engine.began.get(timeout=LONG)
        waiting = [b.submit(x(2)), b.submit(x(3), in_seconds(LONG))]
        draining = threading.Thread(target=b.close)
        draining.start()
        dropping = threading.Thread(target=b.close, args=(False,))  # cuts the other short
        dropping.start()
        assert all(isinstance(f.exception(LONG), BusyError) for f in waiting)
        assert not running.done()
        engine.go_on()
        for thread in (draining, dropping):
            thread.join(LONG)
            assert not thread.is_alive()
        assert y(running) == [2]
    b.close()
    assert len(engine.batches) == 1


def test_close_from_a_callback():
    """In two workers at once: neither waits for the other."""
    engine = StandIn()
    with batcher(engine, workers=2) as b:
        engine.hold()
        both = threading.Barrier(2)

        def close(_):
            both.wait(LONG)
            b.close()
            closed.append(True)

        closed = []
        futures = []
        for n in (1, 2):
            futures.append(b.submit(x(n)))
            engine.began.get(timeout=LONG)
            futures[-1].add_done_callback(close)
        engine.go_on()
        wait(futures, LONG)
        for thread in b._threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert closed == [True, True]


def test_no_thread_stays():
    before = set(threading.enumerate())
    for drain in (True, False):
        b = Batcher([StandIn(), StandIn()], VERSION, workers=3)
        futures = [b.submit(x(n), in_seconds(LONG)) for n in range(8)]
        b.close(drain)
        assert all(f.done() for f in futures)
    assert set(threading.enumerate()) == before


def test_nothing_is_lost_when_closing_cancelling_and_deadlines_meet():
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for seed in range(15):
            rng = np.random.default_rng(seed)
            b = Batcher(
                [StandIn(SEQUENCE, SEQUENCES)], VERSION, workers=3, max_queue=20, delay=float(rng.choice([0, 1e-4]))
            )
            futures: list[tuple[float, Future]] = []

            def client(number, b=b, futures=futures, seed=seed):
                rng = np.random.default_rng([seed, number])
                for i in range(40):
                    value = float(number * 100 + i)
                    length = int(rng.integers(1, 4))
                    deadline = in_seconds(float(rng.exponential(1e-3))) if rng.random() < 0.3 else None
                    try:
                        future = b.submit(x(*[value] * int(rng.integers(1, 9)), length=length), deadline)
                    except BusyError:
                        continue
                    futures.append((value, future))
                    if rng.random() < 0.3:
                        future.cancel()

            clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
            for thread in clients:
                thread.start()
            if seed % 3 == 0:
                b.close(drain=bool(seed % 2))
            for thread in clients:
                thread.join(LONG)
            b.close()
            for value, future in futures:
                assert future.done()
                if not future.cancelled() and future.exception() is None:
                    assert (future.result().outputs["y"] == 2 * value).all()
                elif not future.cancelled():
                    assert isinstance(future.exception(), (DeadlineError, BusyError))
            assert b.depth == 0
    finally:
        sys.setswitchinterval(switch)
