"""The engine that most tests here call, on the stand-in for GPU and TensorRT (see standin.py)."""

from __future__ import annotations

import pytest
import standin
from affine import AFFINE, affine, write_plan
from manifests import host

from mlflow_trt.engine.engine import TensorRTEngine


@pytest.fixture
def module(monkeypatch):
    return standin.install(monkeypatch, affine)


@pytest.fixture
def engine(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as made:
        yield made
