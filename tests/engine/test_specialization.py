"""Specialized kernels answer only where they agree with the others, on a stand-in for the GPU that has the fault."""

import itertools
import logging

import numpy as np
import pytest
import standin
from affine import affine, rows, write_plan
from manifests import host

from mlflow_trt.engine import specialization
from mlflow_trt.engine.engine import TensorRTEngine
from mlflow_trt.errors import PlanError


def first_row_only(answers):
    """What kernels do that were compiled for a batch of one."""
    return {name: np.concatenate([a[:1], np.full_like(a[1:], 7)]) for name, a in answers.items()}


def nothing(answers):
    return dict.fromkeys(answers)


def check(engine, x, calls=4):
    for _ in range(calls):
        np.testing.assert_array_equal(engine.predict({"x": x})["y"], x * 2 + 1)


def strategy(engine, module):
    """Of the context that served the last call."""
    (stream_slot,) = [stream_slot for stream_slot in engine._pool._slots if stream_slot.contexts]
    (entry,) = stream_slot.contexts.values()
    return entry.bound.shaped.context.config.dynamic_shapes_kernel_specialization_strategy.name


def test_right_ones_serve_and_the_others_are_gone(engine, module):
    check(engine, rows(4))
    assert strategy(engine, module) == "EAGER"
    assert module.engines[0].contexts == 1


@pytest.mark.parametrize("fault", [first_row_only, nothing])
def test_wrong_ones_never_answer_and_others_are_tried(engine, module, fault):
    module.engines[0].fault = lambda number, answers: fault(answers) if number < 2 else answers
    check(engine, rows(4))
    assert strategy(engine, module) == "EAGER"
    assert module.engines[0].specialized == 3


def test_where_all_are_wrong_the_others_serve_for_good(engine, module, caplog):
    module.engines[0].fault = lambda number, answers: first_row_only(answers)
    with caplog.at_level(logging.WARNING):
        check(engine, rows(4))
    assert strategy(engine, module) == "NONE"
    assert module.engines[0].specialized == specialization.ATTEMPTS
    assert caplog.text.count("answer wrongly") == 1
    check(engine, rows(1))  # what answers right for one row is used there


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_inputs_that_cannot_tell_leave_the_trial_to_a_later_call(engine, module, fill):
    same = np.full((4, 3), fill, np.float32)
    module.engines[0].fault = lambda number, answers: first_row_only(answers) if number == 0 else answers
    check(engine, same)
    assert strategy(engine, module) == "NONE"
    assert module.engines[0].specialized == 0
    check(engine, rows(4))
    assert strategy(engine, module) == "EAGER"


@pytest.mark.parametrize("wrong", [False, True])
def test_kernels_that_read_what_nobody_wrote_find_no_nan(engine, module, wrong):
    """Nor one that another call, or a trial, left in scratch memory."""
    module.engines[0].reads_leftovers = True
    if wrong:
        module.engines[0].fault = lambda number, answers: first_row_only(answers)
    check(engine, rows(4))
    assert strategy(engine, module) == ("NONE" if wrong else "EAGER")
    check(engine, rows(2))
    check(engine, rows(4))
    for stream_slot in engine._pool._slots:
        if stream_slot.resources is not None:
            stream_slot.resources.fill(0xFF)
    check(engine, rows(4))
    engine.predict({"x": np.full((4, 3), np.nan, np.float32)})
    check(engine, rows(4))


def unsteady(share):
    """Computes as ``affine`` does, and now and then other numbers: kernels that do not wait for each other."""
    runs = itertools.count()

    def compute(given):
        y = given["x"] * 2 + 1
        y[-1] += share * next(runs)
        return {"output0": y, "output1": given["x"].sum(axis=1)}

    return compute


def test_an_engine_whose_answers_differ_from_run_to_run_is_refused(engine, module):
    module.engines[0].compute = unsteady(1.0)
    with pytest.raises(PlanError, match=r"at \(\(4, 3\),\) differently from one run to the next"):
        engine.predict({"x": rows(4)})
    assert engine.memory["lanes"] == 0
    module.engines[0].compute = unsteady(0.0)
    check(engine, rows(4))


def test_an_engine_that_adds_in_another_order_each_time_is_none(engine, module):
    module.engines[0].compute = unsteady(1e-6)
    np.testing.assert_allclose(engine.predict({"x": rows(4)})["y"], rows(4) * 2 + 1, rtol=1e-4)


def test_specialized_kernels_whose_answers_differ_from_run_to_run_are_not_used(engine, module):
    runs = itertools.count()

    def fault(number, answers):
        return {name: answer + next(runs) for name, answer in answers.items()}

    module.engines[0].fault = fault
    check(engine, rows(4))
    assert strategy(engine, module) == "NONE"


def test_scratch_memory_is_left_alone_where_nobody_reads_it(engine, module, monkeypatch):
    check(engine, rows(4))
    filled = []
    monkeypatch.setattr("mlflow_trt.engine.context.StreamResources.fill", lambda stream_slot, byte: filled.append(byte))
    check(engine, rows(4))
    assert not filled


def test_a_context_that_can_not_be_made_is_done_without(engine, module, monkeypatch):
    real = standin.Engine.create_execution_context

    def refused(self, config):
        if config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER":
            module.say("ERROR", "Error Code 2: OutOfMemory (out of memory)")
            return None
        return real(self, config)

    monkeypatch.setattr(standin.Engine, "create_execution_context", refused)
    check(engine, rows(4))
    assert strategy(engine, module) == "NONE"


def test_a_first_call_that_fails_leaves_no_lane(engine, module):
    module.engines[0].compute = lambda given: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.predict({"x": rows(4)})
    assert engine.memory["lanes"] == 0


def test_an_engine_of_fixed_shapes_has_nothing_to_compare(tmp_path, monkeypatch):
    from interfaces import interface, tensor

    fixed = interface(
        [tensor("x", (4, 3))], [tensor("y", (4, 3), binding="output0"), tensor("z", (4,), binding="output1")]
    )
    module = standin.install(monkeypatch, affine)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), fixed, host=host()) as engine:
        check(engine, rows(4))
    assert module.engines[0].specialized == 1


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ([np.zeros(3)], False),
        ([np.zeros(1)], True),
        ([np.zeros(0)], False),
        ([np.array([0.0, 1.0])], True),
        ([np.array([np.nan, np.nan])], False),
        ([np.array([np.nan, 1.0, np.inf])], False),
        ([np.zeros(3), np.array([1, 2])], True),
        ([np.array([True, False])], True),
        ([], True),
    ],
)
def test_tells(arrays, told):
    assert specialization.tells(arrays) is told


RIGHT = np.random.default_rng(0).standard_normal((8, 100))


@pytest.mark.parametrize(
    ("found", "low", "high"),
    [
        (RIGHT, 0, 0),
        (RIGHT * 1.001, 0.0009, 0.0011),
        (
            np.concatenate([RIGHT[:7], RIGHT[:1]]),
            1.0,
            2.0,
        ),  # one row of eight: the whole differs by half a percent more
        (np.where(np.arange(800).reshape(8, 100) == 305, np.nan, RIGHT), np.inf, np.inf),
        (RIGHT[:7], np.inf, np.inf),
    ],
)
def test_worst_error(found, low, high):
    assert low <= specialization.worst_error([RIGHT], [found]) <= high


def test_worst_error_of_the_unusual():
    nan = np.array([np.nan, 1.0, np.inf])
    assert specialization.worst_error([nan], [nan]) == 0
    assert specialization.worst_error([np.zeros(3)], [np.zeros(3)]) == 0
    assert specialization.worst_error([np.zeros(3)], [np.ones(3)]) == np.inf
    assert specialization.worst_error([np.arange(4)], [np.array([0, 1, 2, 4])]) == 0.25
    assert specialization.worst_error([np.zeros((0, 3))], [np.zeros((0, 3))]) == 0
    small = np.array([[1.0, 1.0], [1e-9, 0.0]])  # a row that cancels out
    assert specialization.worst_error([small], [small + np.array([[0, 0], [1e-6, 0]])]) < 1e-5
