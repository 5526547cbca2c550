"""What bound contexts are thought to cost, and what they are seen to."""

from __future__ import annotations

import numpy as np
import standin
from affine import AFFINE, affine, rows, write_plan
from manifests import host

from mlflow_trt.engine.engine import TensorRTEngine


def test_under_a_memory_limit_old_contexts_take_new_shapes(tmp_path, monkeypatch):
    module = standin.install(monkeypatch, lambda trt: affine(trt, context_bytes=100_000))
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), memory_limit=350_000) as engine:
        for n in [*range(1, 33), *range(1, 33)]:
            np.testing.assert_array_equal(engine.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)
            assert engine.memory["contexts"] <= 350_000
        assert 1 <= module.engines[0].contexts <= 3
    assert module.cudart.used == 0
