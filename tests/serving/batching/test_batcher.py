"""How requests are joined: on an engine that stands for a GPU's, so that a test decides how long a call takes, and on
the real reference engine."""

from __future__ import annotations

import asyncio
import gc
import math
import queue
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlflow_trt
from mlflow_trt.errors import BusyError, DeadlineError, DeviceError, InputError, ManifestError, SettingError
from mlflow_trt.plan.api import Result
from mlflow_trt.plan.batch_sizes import batch_sizes
from mlflow_trt.plan.manifest import Branch, Interface, ShapeRange, Tensor, TensorLeaf
from mlflow_trt.plan.parity import default_tolerance
from mlflow_trt.plan.signature import CallSignature
from mlflow_trt.serving.batching.batcher import Batcher
from mlflow_trt.serving.batching.queue import Answer
from mlflow_trt.serving.batching.rows import rows_are_independent
from mlflow_trt.serving.served_model import ServedVersion

LONG = 20.0
"""Seconds that nothing here takes: a test that waits so long has failed."""


def interface(inputs, outputs):
    """``{name: shape}``, all float32 but ``ids``."""
    tensors = [
        [
            Tensor(name=n, binding=n, dtype=(d := "int64" if n == "ids" else "float32"), binding_dtype=d, shape=s)
            for n, s in group.items()
        ]
        for group in (inputs, outputs)
    ]
    leaves = [tuple(TensorLeaf(name=t.name) for t in group) for group in tensors]
    arguments = Branch(
        kind="tuple", items=(Branch(kind="tuple", items=leaves[0]), Branch(kind="dict", keys=(), items=()))
    )
    return Interface(
        inputs=tensors[0], outputs=tensors[1], arguments=arguments, result=Branch(kind="tuple", items=leaves[1])
    )


def profile(**ranges):
    return {name: ShapeRange(min=low, opt=opt, max=high) for name, (low, opt, high) in ranges.items()}


PLAIN = interface({"x": ("batch", 2)}, {"y": ("batch", 2)})
VERSION = ServedVersion("/stand-in", "1", "stand-in", PLAIN, ())
UP_TO_8 = (profile(x=((1, 2), (8, 2), (8, 2))),)
SEQUENCE = interface({"x": ("batch", "length")}, {"y": ("batch", "length")})
SEQUENCES = (profile(x=((1, 1), (8, 4), (8, 9))),)
APART = (profile(x=((1, 1), (2, 4), (2, 9))), profile(x=((8, 4), (8, 4), (16, 9))))
"""Nothing takes 3 to 7 rows, and more than 2 only if they are 4 to 9 long."""


class StandIn:
    """Stands for an engine: computes ``y = compute(x)``, and waits in every call while it is held."""

    backend = "reference"

    def __init__(self, interface=PLAIN, profiles=UP_TO_8, compute=lambda x: 2 * x):
        self.interface, self.profiles, self.compute = interface, profiles, compute
        self.inputs = []
        self.threads = []
        self.began = queue.Queue()
        self._call_signature = CallSignature(interface, profiles)
        self._go = threading.Event()
        self._go.set()

    def predict(self, inputs):
        self._call_signature.check(inputs)
        self.inputs.append({name: array.copy() for name, array in inputs.items()})
        self.threads.append(threading.current_thread())
        self.began.put(next(iter(inputs.values())).shape)
        assert self._go.wait(3 * LONG), "the test never let the engine go on"
        outputs = [t.name for t in self.interface.outputs]
        return Result({name: self.compute(inputs["x"]) for name in outputs}, "reference", "plan", 0)

    @property
    def batches(self):
        """The first column of every batch, as numbers."""
        return [call["x"][:, 0].tolist() for call in self.inputs]

    def hold(self):
        self._go.clear()

    def go_on(self):
        self._go.set()


class Poisoned:
    """Computes ``2 x`` unless a row says ``bad``; then it raises."""

    def __init__(self, error=None, bad=13.0):
        self.error, self.bad = error or ValueError("bad row"), bad

    def __call__(self, x):
        if (x == self.bad).any():
            raise self.error
        return 2 * x


@contextmanager
def batcher(*engines, **options):
    made = Batcher(engines, VERSION, **{"workers": 1, **options})
    try:
        # A worker that is still starting would find what nobody woke it for.
        all_wait(made)
        yield made
    finally:
        for engine in engines:
            getattr(engine, "go_on", lambda: None)()
        made.close()
        assert not any(thread.is_alive() for thread in made._threads)


@contextmanager
def busy(engine, **options):
    """A batcher whose only worker is in a call, so that everything further waits until the engine goes on."""
    with batcher(engine, **options) as made:
        engine.hold()
        first = made.submit(x(0.5))
        engine.began.get(timeout=LONG)
        yield made
        engine.go_on()
        assert first.result(LONG).outputs["y"].tolist() == [[1.0, 1.0]]


def all_wait(batcher):
    """Until every worker waits, for requests or for others to join one."""
    assert becomes(lambda: len(batcher._work_waits._waiters) == len(batcher._threads) - 1)


def x(*values, length=2):
    """A row for each number, which fills it."""
    return {"x": np.repeat(np.array(values, np.float32)[:, None], length, axis=1)}


def y(future):
    return future.result(LONG).outputs["y"][:, 0].tolist()


def in_seconds(seconds):
    return time.monotonic() + seconds


def becomes(condition):
    """For what another thread does a moment later."""
    end = in_seconds(LONG)
    while not condition() and time.monotonic() < end:
        threading.Event().wait(0.001)
    return condition()


# --- one request ---


def test_a_lone_request_of_a_right_size_is_not_copied():
    seen = []

    def keep(array):
        seen.append(array)
        return 2 * array

    with batcher(StandIn(compute=keep)) as b:
        given_ = x(1, 2)
        answer = b.submit(given_).result(LONG)
        assert seen[0] is given_["x"]
        assert (answer.rows, answer.batch) == (2, 2)
        assert answer.outputs["y"].tolist() == [[2, 2], [4, 4]]
        assert (answer.outputs.backend, answer.outputs.plan, answer.outputs.profile) == ("reference", "plan", 0)


def test_a_lone_request_of_another_size_is_padded_with_its_last_row():
    engine = StandIn()
    with batcher(engine) as b:
        answer = b.submit(x(1, 2, 3)).result(LONG)
    assert engine.batches == [[1, 2, 3, 3]]
    assert answer.outputs["y"][:, 0].tolist() == [2, 4, 6]
    assert (answer.rows, answer.batch) == (3, 3)


def test_times_are_told():
    engine = StandIn()
    with busy(engine) as b:
        begin = time.monotonic()
        future = b.submit(x(1))
        threading.Event().wait(0.02)  # what the answer should tell
        engine.go_on()
        answer = future.result(LONG)
        total = time.monotonic() - begin
    assert 0.02 <= answer.queued <= total
    assert 0 < answer.computed <= total - answer.queued


BAD = {
    "rank": {"x": np.zeros(2, np.float32)},
    "dtype": {"x": np.zeros((1, 2))},
    "name": {"z": np.zeros((1, 2), np.float32)},
    "too many rows": {"x": np.zeros((9, 2), np.float32)},
    "no rows": {"x": np.zeros((0, 2), np.float32)},
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_at_once_and_alone(case):
    engine = StandIn()
    with busy(engine) as b:
        before = b.submit(x(1))
        with pytest.raises(InputError):
            b.submit(BAD[case])
        after = b.submit(x(2))
        engine.go_on()
        assert (y(before), y(after)) == ([2], [4])
    assert engine.batches == [[0.5], [1, 2]]


# --- joining ---


def test_what_waits_is_joined_and_padded_and_everyone_gets_their_own():
    engine = StandIn()
    with busy(engine) as b:
        futures = [b.submit(x(1)), b.submit(x(2, 3)), b.submit(x(4, 5))]
        assert b.depth == 3
        engine.go_on()
        answers = [f.result(LONG) for f in futures]
    assert engine.batches == [[0.5], [1, 2, 3, 4, 5, 5, 5, 5]]
    assert [a.outputs["y"][:, 0].tolist() for a in answers] == [[2], [4, 6], [8, 10]]
    assert [(a.rows, a.batch) for a in answers] == [(1, 5), (2, 5), (2, 5)]
    assert b.depth == 0


def test_answers_are_views_of_the_batch():
    engine = StandIn()
    with busy(engine) as b:
        futures = [b.submit(x(1)), b.submit(x(2))]
        engine.go_on()
        bases = [f.result(LONG).outputs["y"].base for f in futures]
    assert bases[0] is bases[1] is not None


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


def test_profiles_with_a_gap():
    engine = StandIn(SEQUENCE, APART)
    with busy(engine) as b:
        assert b.sizes == (1, 2, 8, 16)
        short = [b.submit(x(n, length=3)) for n in (1, 2, 3)]  # only the first profile: two at the most
        long = [b.submit(x(n, length=4)) for n in (4, 5, 6)]  # padded over the gap
        engine.go_on()
        assert [y(f) for f in (*short, *long)] == [[2], [4], [6], [8], [10], [12]]
    assert engine.batches[1:] == [[1, 2], [3], [4, 5, 6, 6, 6, 6, 6, 6]]


def test_several_inputs_in_any_memory_order():
    def total(v):
        return v.sum(axis=1)

    signature = interface({"x": ("batch", 2, 3), "ids": ("batch",)}, {"y": ("batch",)})
    profiles = (profile(x=((1, 2, 3), (4, 2, 3), (4, 2, 3)), ids=((1,), (4,), (4,))),)
    engine = StandIn(signature, profiles, lambda v: v.reshape(len(v), -1).sum(axis=1))
    with batcher(engine) as b:
        engine.hold()
        first = b.submit({"x": np.zeros((4, 2, 3), np.float32), "ids": np.zeros(4, np.int64)})
        engine.began.get(timeout=LONG)
        values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
        strange = b.submit({"x": values.transpose(0, 2, 1), "ids": np.array([1, 2], ">i8")})
        plain = b.submit({"x": np.ones((1, 2, 3), ">f4"), "ids": np.array([3])})
        engine.go_on()
        wait([first], LONG)
        assert strange.result(LONG).outputs["y"].tolist() == [15, 51]
        assert plain.result(LONG).outputs["y"].tolist() == [6]
    joined = engine.inputs[1]
    assert joined["ids"].tolist() == [1, 2, 3, 3]
    assert joined["ids"].dtype == np.dtype("=i8")
    assert joined["x"].dtype == np.dtype("=f4")


@pytest.mark.parametrize("why", ["batching is off", "the model can't"])
def test_without_joining_every_request_runs_alone_and_unpadded(why):
    if why == "batching is off":
        engine, options = StandIn(), {"batching": False}
    else:
        engine, options = StandIn(interface({"x": ("batch", 2)}, {"y": ("batch", "batch")}), UP_TO_8), {"delay": LONG}
    with busy(engine, **options) as b:
        assert b.sizes == ()
        futures = [b.submit(x(1, 2, 3)), b.submit(x(4))]
        engine.go_on()
        assert [(y(f), f.result().rows, f.result().batch) for f in futures] == [([2, 4, 6], 3, 3), ([8], 1, 1)]
    assert engine.batches[1:] == [[1, 2, 3], [4]]


def test_a_model_without_a_batch_dimension():
    engine = StandIn(interface({"x": (3,)}, {"y": (3,)}), ())
    with batcher(engine) as b:
        answer = b.submit({"x": np.ones(3, np.float32)}).result(LONG)
    assert answer.outputs["y"].tolist() == [2, 2, 2]
    assert (answer.rows, answer.batch) == (1, 1)


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


# --- delay ---


def test_a_lone_request_starts_at_once():
    engine = StandIn()
    with batcher(engine) as b:
        assert min(b.submit(x(1)).result(LONG).queued for _ in range(20)) < 0.005


def test_with_a_delay_the_first_waits_for_others_and_no_longer():
    engine = StandIn()
    with batcher(engine, workers=2, delay=0.05) as b:
        futures = [b.submit(x(n)) for n in (1, 2, 3)]
        answers = [f.result(LONG) for f in futures]
    assert engine.batches == [[1, 2, 3, 3]]
    assert answers[0].queued >= 0.05
    assert [a.outputs["y"][0, 0] for a in answers] == [2, 4, 6]


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


def test_with_a_delay_those_behind_another_shape_wait_no_longer_either():
    engine = StandIn(SEQUENCE, SEQUENCES)
    with batcher(engine, workers=2, delay=0.03) as b:
        engine.hold()
        b.submit(x(1, length=3))
        b.submit(x(2, length=5))
        # The first worker is in the first call, so that the second must be woken for what was left.
        assert {engine.began.get(timeout=LONG), engine.began.get(timeout=LONG)} == {(1, 3), (1, 5)}


def test_a_request_that_has_less_time_than_the_delay_does_not_wait():
    with batcher(StandIn(), delay=LONG) as b:
        assert y(b.submit(x(1), in_seconds(LONG / 2))) == [2]


def test_closing_ends_the_delay():
    with batcher(StandIn(), delay=1.5 * LONG) as b:
        future = b.submit(x(1))
        b.close()
        assert future.done()
        assert future.result().queued < LONG


# --- several workers, several engines ---


def test_workers_call_an_engine_at_once():
    engine = StandIn()
    with batcher(engine, workers=2) as b:
        engine.hold()
        futures = [b.submit(x(1))]
        assert engine.began.get(timeout=LONG) == (1, 2)
        futures.append(b.submit(x(2)))
        assert engine.began.get(timeout=LONG) == (1, 2)
        futures += [b.submit(x(n)) for n in (3, 4, 5)]  # both are busy: these gather
        engine.go_on()
        assert [y(f) for f in futures] == [[2], [4], [6], [8], [10]]
    assert [3, 4, 5, 5] in engine.batches


def test_engines_share_one_queue():
    engines = [StandIn(compute=lambda v: 2 * v), StandIn(compute=lambda v: 3 * v)]
    with batcher(*engines) as b:
        engines[1].began = engines[0].began
        for engine in engines:
            engine.hold()
        futures = []
        for _ in engines:
            futures.append(b.submit(x(1)))
            engines[0].began.get(timeout=LONG)
        assert [engine.batches for engine in engines] == [[[1]], [[1]]]
        engines[0].go_on()
        later = b.submit(x(5))
        assert y(later) == [10]  # the other engine is still held
        engines[1].go_on()
        assert sorted(y(futures[0]) + y(futures[1])) == [2, 3]


def test_engines_that_take_different_calls_are_refused():
    with pytest.raises(SettingError, match="different calls"):
        Batcher([StandIn(), StandIn(SEQUENCE, SEQUENCES)], VERSION)


@pytest.mark.parametrize(
    "options",
    [{"engines": []}, {"workers": 0}, {"max_queue": 0}, {"delay": -0.1}, {"delay": math.nan}, {"delay": math.inf}],
)
def test_settings_that_cannot_be_honoured(options):
    before = threading.active_count()
    with pytest.raises(SettingError) as caught:
        Batcher(**{"engines": [StandIn()], "version": VERSION, **options})
    assert caught.value.remedy
    assert threading.active_count() == before


# --- in the caller's own thread ---


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


# --- a bounded queue, cancelling, deadlines ---


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


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit()])
def test_no_error_ends_a_worker_or_escapes_to_the_event_loop(error, caplog):
    engine = StandIn(compute=Poisoned(error))
    with batcher(engine) as b:
        with pytest.raises(DeviceError, match=type(error).__name__) as caught:
            b.submit(x(13)).result(LONG)
        assert caught.value.__cause__ is error
        assert y(b.submit(x(1))) == [2]
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize("rows", [1, 3])
def test_an_engine_that_answers_too_few_rows_gives_nobody_the_rows_of_others(rows):
    engine = StandIn(compute=lambda v: v[:-1])
    with batcher(engine, workers=1) as b:
        future = b.submit(x(*range(rows)))
        if rows == 3:  # padded to 4
            with pytest.raises(ManifestError, match=r"\(3, 2\) for a batch of 4"):
                future.result(LONG)
        else:  # alone and as it is: what the engine says is what the caller gets
            assert future.result(LONG).outputs["y"].shape == (0, 2)


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


# --- what is told of batches ---


def test_on_batch_is_told_of_every_call_before_its_answers_are_handed_out():
    told = []
    engine = StandIn(compute=Poisoned())
    with busy(engine, on_batch=told.append) as b:
        futures = [b.submit(x(n, n)) for n in (1, 2)] + [b.submit(x(3))]
        at_answer = []
        futures[0].add_done_callback(lambda _: at_answer.append(len(told)))
        engine.go_on()
        wait(futures, LONG)
        assert isinstance(b.submit(x(13)).exception(LONG), ValueError)
    first, second = told
    assert isinstance(first, Answer)
    assert (first.rows, first.batch) == (1, 1)
    assert (second.rows, second.batch) == (5, 5)
    assert second.outputs["y"][:, 0].tolist() == [2, 2, 4, 4, 6]
    assert second.queued == max(f.result().queued for f in futures)
    assert second.computed == futures[0].result().computed
    assert at_answer == [2]


def test_a_failing_on_batch_fails_no_request(caplog):
    def fail(answer):
        raise RuntimeError("no metrics today")

    with batcher(StandIn(), on_batch=fail) as b:
        assert y(b.submit(x(1))) == [2]
        assert y(b.submit(x(1))) == [2]
    assert "no metrics today" in caplog.text


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


# --- rows that depend on each other ---

ROWS = np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32)
INDEPENDENT = {
    "each row alone": lambda v: 2 * v,
    "summed along the row": lambda v: v - v.mean(axis=1, keepdims=True),
    "rounded another way": lambda v: v * np.float32(1 + 1e-5 * len(v)),
}
DEPENDENT = {
    "the batch's mean": lambda v: v - v.mean(axis=0),
    "softmax over the batch": lambda v: np.exp(v) / np.exp(v).sum(axis=0),
    "the batch's size": lambda v: v / len(v),
    "the place in the batch": lambda v: v + np.arange(len(v), dtype=np.float32)[:, None],
    "the row before": lambda v: np.cumsum(v, axis=0),
    "in reverse": lambda v: v[::-1],
    "the largest row": lambda v: v / np.abs(v).max(),
    "too few rows": lambda v: v[:-1],
    "one row for all": lambda v: v[:1],
}


@pytest.mark.parametrize("rows", [2, 3, 8])
@pytest.mark.parametrize("low", [1, 2])
def test_rows_that_depend_on_each_other_are_found(rows, low):
    profiles = (profile(x=((low, 2), (4, 2), (8, 2))),)
    for name, compute in {**INDEPENDENT, **DEPENDENT}.items():
        engine = StandIn(profiles=profiles, compute=compute)
        found = rows_are_independent(engine, {"x": ROWS[:rows]}, default_tolerance("fp32"))
        assert found == (name in INDEPENDENT), name
        assert all(len(batch) in batch_sizes(PLAIN, profiles) for batch in engine.batches), name


def test_rows_of_a_model_that_is_not_joined():
    engine = StandIn(interface({"x": ("batch", 2)}, {"y": ("batch", "batch")}), UP_TO_8)
    assert not rows_are_independent(engine, {"x": ROWS}, default_tolerance("fp32"))
    assert engine.batches == []


def test_one_row_says_nothing_about_others():
    with pytest.raises(InputError, match="1 row"):
        rows_are_independent(StandIn(), {"x": ROWS[:1]}, default_tolerance("fp32"))


# --- the real reference engine ---


def test_many_threads_get_their_own_rows(classifier_folder):
    """Random numbers of rows from 16 threads, against lone calls of the engine."""
    with mlflow_trt.load_model(classifier_folder, backend="reference") as engine:
        assert rows_are_independent(
            engine,
            {"x": np.random.default_rng(2).standard_normal((8, 4)).astype(np.float32)},
            default_tolerance("fp32"),
        )
        told: list[Answer] = []
        failures = []
        barrier = threading.Barrier(16)
        with batcher(engine, workers=2, on_batch=told.append) as b:
            assert b.sizes == (1, 2, 4, 8)

            def client(number):
                rng = np.random.default_rng(number)
                barrier.wait(LONG)
                for _ in range(15):
                    rows = rng.standard_normal((int(rng.integers(1, 9)), 4)).astype(np.float32)
                    answer = b.submit({"x": rows}).result(LONG)
                    alone = engine.predict({"x": rows})
                    try:
                        assert set(answer.outputs) == {"scores", "mean"}
                        assert answer.outputs.backend == "reference"
                        assert answer.rows == len(rows) <= answer.batch <= 8
                        for name, array in alone.items():
                            np.testing.assert_allclose(answer.outputs[name], array, rtol=1e-4, atol=1e-5)
                    except AssertionError as error:
                        failures.append(error)

            threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LONG)
        assert not failures, failures[0]
        assert len(told) < 16 * 15, "nothing was ever joined"


def test_forgetting_shapes_keeps_a_stream_of_new_ones_from_filling_the_memory(monkeypatch):
    monkeypatch.setattr("mlflow_trt.serving.batching.batcher._KNOWN_SHAPES", 3)
    with batcher(StandIn(SEQUENCE, SEQUENCES)) as b:
        for length in (1, 2, 3, 4, 5, 6, 7, 8, 9):
            assert y(b.submit(x(1, 2, 3, length=length))) == [2, 4, 6]
            assert len(b._sizes_of) <= 3
