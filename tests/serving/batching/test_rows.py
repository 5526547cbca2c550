"""A batch's rows: joined and padded, cut apart again, and whether they depend on each other."""

from __future__ import annotations

from concurrent.futures import wait

import numpy as np
import pytest

from mlflow_trt.errors import InputError, ManifestError
from mlflow_trt.plan.api import Result
from mlflow_trt.plan.batch_sizes import batch_sizes
from mlflow_trt.plan.parity import default_tolerance
from mlflow_trt.plan.signature import CallSignature
from mlflow_trt.serving.batching.rows import call, check_rows, cut, fitting, joined, next_size, rows_are_independent

from .held_engine import APART, LONG, PLAIN, SEQUENCE, UP_TO_8, StandIn, batcher, busy, interface, profile, x, y

# --- pure functions ---


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (8, 8), (9, 9)])
def test_the_size_that_an_engine_is_called_with(rows, size):
    assert next_size((1, 2, 4, 8), rows) == size
    assert next_size((), rows) == rows


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        (((3,),), (1, 2)),  # the first profile alone
        (((4,),), (1, 2, 8, 16)),  # either
        (((9,),), (1, 2, 8, 16)),
        (((10,),), ()),  # none
        (((4, 1),), ()),
    ],
)
def test_sizes_that_some_profile_takes_together_with_the_other_dimensions(shapes, sizes):
    call_signature = CallSignature(SEQUENCE, APART)
    assert fitting(call_signature, (1, 2, 8, 16), shapes) == sizes


def test_rows_are_joined_in_their_order_and_the_last_one_fills_up():
    parts = [[np.array([[1], [2]]), np.array([5.0, 6.0])], [np.array([[3]]), np.array([7.0])]]
    whole, more = joined(parts, 3, 5)
    assert whole.tolist() == [[1], [2], [3], [3], [3]]
    assert more.tolist() == [5, 6, 7, 7, 7]


def test_one_part_of_the_right_size_is_as_it_is_and_else_a_copy():
    array = np.arange(6.0).reshape(3, 2)
    assert joined([[array]], 3, 3)[0] is array
    padded = joined([[array]], 3, 4)[0]
    assert not np.shares_memory(padded, array)
    assert padded.tolist() == [*array.tolist(), [4, 5]]


def test_a_part_is_cut_out_as_a_view_with_what_is_told_of_the_answer():
    whole = Result({"y": np.arange(8.0).reshape(4, 2), "z": np.arange(4)}, "tensorrt", "plan", 1)
    part = cut(whole, 1, 3)
    assert part["y"].tolist() == [[2, 3], [4, 5]]
    assert part["z"].tolist() == [1, 2]
    assert np.shares_memory(part["y"], whole["y"])
    assert (part.backend, part.plan, part.profile) == ("tensorrt", "plan", 1)


@pytest.mark.parametrize("shape", [(3, 2), (5, 2), (2, 4), (), (0,)])
def test_an_output_without_a_row_for_each_of_the_batch_is_refused_by_name(shape):
    with pytest.raises(ManifestError, match="'bad' of shape"):
        check_rows(Result({"y": np.zeros((4, 2)), "bad": np.zeros(shape)}, "tensorrt"), 4)


def test_an_output_of_one_number_for_each_row_is_right():
    check_rows(Result({"y": np.zeros((4, 2)), "z": np.zeros(4)}, "tensorrt"), 4)


class Stacking(StandIn):
    """An engine that puts rows together itself."""

    def predict_stacked(self, inputs, size):
        self.stacked = inputs, size
        return Result({}, "tensorrt")


def test_an_engine_that_puts_rows_together_itself_gets_the_parts():
    engine = Stacking()
    parts = [[x(1)["x"]], [x(2, 3)["x"]]]
    call(engine, ["x"], parts, 3, 4)
    [[first, second]], size = engine.stacked
    assert (first is parts[0][0], second is parts[1][0], size) == (True, True, 4)
    assert engine.batches == []


def test_a_request_of_the_right_size_needs_no_putting_together():
    engine = Stacking()
    call(engine, ["x"], [[x(1, 2)["x"]]], 2, 2)
    assert engine.batches == [[1, 2]]


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


# --- several ---


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


def test_profiles_with_a_gap():
    engine = StandIn(SEQUENCE, APART)
    with busy(engine) as b:
        assert b.sizes == (1, 2, 8, 16)
        short = [b.submit(x(n, length=3)) for n in (1, 2, 3)]  # only the first profile: two at the most
        long = [b.submit(x(n, length=4)) for n in (4, 5, 6)]  # padded over the gap
        engine.go_on()
        assert [y(f) for f in (*short, *long)] == [[2], [4], [6], [8], [10], [12]]
    assert engine.batches[1:] == [[1, 2], [3], [4, 5, 6, 6, 6, 6, 6, 6]]


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
