"""What both converters ask of TensorRT's builder, of the real one."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")

from mlflow_trt.conversion.builder import Messages, configure, profiles  # noqa: E402
from mlflow_trt.conversion.job import BindingSpec, Job  # noqa: E402

LOGGER = trt.Logger(trt.Logger.ERROR)
FIXED = BindingSpec("fixed", "float32", (((3,),) * 3,))
SMALL, LARGE = ((1, 4), (2, 4), (3, 4)), ((4, 4), (6, 4), (8, 4))


def job(*inputs: BindingSpec, capabilities: tuple[str, ...] | None = None) -> Job:
    return Job(inputs, ("y",), {}, capabilities)


@pytest.fixture
def builder():
    return trt.Builder(LOGGER)


def shapes(profile, name):
    return [tuple(shape) for shape in profile.get_shape(name)]


def test_a_profile_for_each_of_the_ranges(builder):
    both = BindingSpec("x", "float32", (SMALL, LARGE)), BindingSpec("same", "float32", (SMALL,))
    first, second = profiles(builder, job(*both, FIXED))
    assert (shapes(first, "x"), shapes(second, "x")) == (list(SMALL), list(LARGE))
    assert shapes(first, "same") == shapes(second, "same") == list(SMALL)
    assert not first.get_shape("fixed")


def test_a_network_of_fixed_sizes_has_one_profile(builder):
    assert len(profiles(builder, job(FIXED))) == 1
    assert len(profiles(builder, job())) == 1


def test_one_size_in_each_profile_is_no_fixed_one(builder):
    x = BindingSpec("x", "float32", (((1,),) * 3, ((2,),) * 3))
    first, second = profiles(builder, job(x))
    assert (shapes(first, "x"), shapes(second, "x")) == ([(1,)] * 3, [(2,)] * 3)


def watch(listener=None):
    return SimpleNamespace(listener=listener, interrupted=False)


def test_targets_and_what_layers_tell(builder):
    config = builder.create_builder_config()
    configure(trt, config, job(FIXED, capabilities=("8.6", "12.0")), watch())
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.num_compute_capabilities == 2
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86
    assert config.get_compute_capability(1) == trt.ComputeCapability.SM120


def test_without_named_targets_it_is_the_gpu_there(builder):
    config = builder.create_builder_config()
    before = config.num_compute_capabilities
    configure(trt, config, job(FIXED), watch())
    assert config.num_compute_capabilities == before


def monitor(builder, listener):
    config = builder.create_builder_config()
    watching = watch(listener)
    configure(trt, config, job(FIXED), watching)
    return config.progress_monitor, watching


def test_who_listens_is_told_of_each_step(builder):
    events = []
    told, _ = monitor(builder, lambda *event: events.append(event))
    told.phase_start("Building", None, 3)
    assert told.step_complete("Building", 0)
    told.phase_finish("Building")
    assert events == [("start", "Building", 3), ("step", "Building", 0), ("finish", "Building", 0)]


def test_an_interrupt_waits_for_the_next_step(builder):
    def interrupt(*event):
        raise KeyboardInterrupt

    told, watching = monitor(builder, interrupt)
    told.phase_start("Building", None, 3)  # must not raise: TensorRT's C++ called it
    assert watching.interrupted
    assert not told.step_complete("Building", 0)


def test_a_display_that_fails_is_let_go(builder):
    calls = []

    def fail(*event):
        calls.append(event)
        raise BrokenPipeError

    told, watching = monitor(builder, fail)
    told.phase_start("Building", None, 3)
    assert told.step_complete("Building", 0)
    assert (len(calls), watching.listener) == (1, None)


def test_tensorrts_own_words_are_kept_within_limits():
    kept: list[str] = []
    logger = logging.Logger("builder")
    logger.addHandler(Messages(kept))
    logger.warning("no error")
    logger.error("  no room %s\n", "x" * 600)
    assert kept == [f"no room {'x' * 492}"]
