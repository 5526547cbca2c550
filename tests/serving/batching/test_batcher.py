"""How requests are joined: on an engine that stands for a GPU's, see ``held_engine.py``, and on a real one."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

import mlflow_trt
from mlflow_trt.errors import InputError, SettingError
from mlflow_trt.plan.parity import default_tolerance
from mlflow_trt.serving.batching.batcher import Batcher
from mlflow_trt.serving.batching.queue import Answer
from mlflow_trt.serving.batching.rows import rows_are_independent

from .held_engine import (
    LONG,
    SEQUENCE,
    SEQUENCES,
    UP_TO_8,
    VERSION,
    Poisoned,
    StandIn,
    batcher,
    busy,
    in_seconds,
    interface,
    x,
    y,
)

# --- requests ---


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


# --- the memory of shapes ---


def test_forgetting_shapes_keeps_a_stream_of_new_ones_from_filling_the_memory(monkeypatch):
    monkeypatch.setattr("mlflow_trt.serving.batching.batcher._KNOWN_SHAPES", 3)
    with batcher(StandIn(SEQUENCE, SEQUENCES)) as b:
        for length in (1, 2, 3, 4, 5, 6, 7, 8, 9):
            assert y(b.submit(x(1, 2, 3, length=length))) == [2, 4, 6]
            assert len(b._sizes_of) <= 3


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
