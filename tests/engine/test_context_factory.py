"""What bound contexts are thought to cost, and what they are seen to."""

from __future__ import annotations

import numpy as np
import pytest
import standin
from affine import AFFINE, affine, rows, write_plan
from manifests import host

from mlflow_trt.engine.context import Key
from mlflow_trt.engine.context_factory import ContextFactory
from mlflow_trt.engine.engine import TensorRTEngine


def test_under_a_memory_limit_old_contexts_take_new_shapes(tmp_path, monkeypatch):
    module = standin.install(monkeypatch, lambda trt: affine(trt, context_bytes=100_000))
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), memory_limit=350_000) as engine:
        for n in [*range(1, 33), *range(1, 33)]:
            np.testing.assert_array_equal(engine.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)
            assert engine.memory["contexts"] <= 350_000
        assert 1 <= module.engines[0].contexts <= 3
    assert module.cudart.used == 0


MEGA = 1 << 20


@pytest.fixture
def large(tmp_path, monkeypatch):
    """An engine whose contexts take three megabytes each."""
    module = standin.install(monkeypatch, lambda trt: affine(trt, context_bytes=3 * MEGA))
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        yield engine, module


def key(n, **changes):
    return Key(((n, 3),), 0, **changes)


def test_before_anything_was_seen_a_context_is_thought_to_be_large(large):
    factory = ContextFactory(large[0]._core)
    assert factory.estimate(key(1000)) == 32 * MEGA + 2 * 12_000, "as much out as in"
    assert factory.estimate(key(1000, on_gpu=True)) == 32 * MEGA, "tensors on the GPU lie in the caller's memory"


def test_after_the_first_run_the_next_is_thought_to_take_as_much(large):
    engine, _ = large
    engine.predict({"x": rows(4)})
    factory = engine._factory
    taken = factory.estimate(key(1, on_gpu=True))
    assert taken == 3 * MEGA
    in_bytes, out_bytes = 256, 512  # each tensor begins at a multiple of 256
    assert factory.estimate(key(100)) == int(1200 * (1 + out_bytes / in_bytes)) + taken


@pytest.mark.parametrize(
    ("others", "expected"), [(0, 3 * MEGA), (5 * MEGA, 8 * MEGA), (-10 * MEGA, 0), (1 << 40, 1 << 30)]
)
def test_what_others_take_or_give_meanwhile_does_not_count_without_end(large, monkeypatch, others, expected):
    """Free memory is compared before and after, and other processes use the GPU too."""
    engine, module = large
    factory = ContextFactory(engine._core)
    resources = factory.open_resources()
    bound = factory.build(resources, key(4), None)
    free, total = module.cudart.total - module.cudart.used - others, module.cudart.total
    monkeypatch.setattr("mlflow_trt.engine.cuda.memory", lambda: (free, total))
    factory.weigh(bound)
    assert bound.context_bytes == expected
    bound.close()
    factory.close_resources(resources)


@pytest.mark.parametrize("reshapes", [True, False])
def test_an_old_context_is_taken_over_only_where_it_may_change_its_shape(large, monkeypatch, reshapes):
    engine, module = large
    monkeypatch.setattr(type(engine._core), "reshapes", reshapes)
    factory = ContextFactory(engine._core)
    resources = factory.open_resources()
    old = factory.build(resources, key(4), None)
    factory.weigh(old)
    (stood,) = [old.shaped.context]
    new = factory.build(resources, key(8), old)
    assert (new.shaped.context is stood) == reshapes
    factory.weigh(new)
    assert new.context_bytes == old.context_bytes == 3 * MEGA
    del stood
    new.close()
    factory.close_resources(resources)
    assert module.cudart.used == 0
