"""Kernels on a real GPU: float32 convolutions where specialized ones are wrong at random, or all are unsteady."""

import numpy as np
import pytest

import mlflow_trt
from mlflow_trt import plan
from mlflow_trt.engine import load as load_engine
from mlflow_trt.errors import PlanError

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.xdist_group("gpu")]

TIMES = 4
"""Engines that are opened; of bare contexts two of six were wrong (``benchmarks/specialization.py``)."""


@pytest.fixture(scope="module", params=["tf_efficientnet_lite0", "res2net50_26w_4s"])
def model(tmp_path_factory, request):
    pytest.importorskip("timm")
    from benchmarks.architectures import make

    folder = tmp_path_factory.mktemp(request.param)
    module = make(f"timm/{request.param}").module
    size = 96 if "lite0" in request.param else 64
    manifest = plan.write(
        [mlflow_trt.convert(module, [mlflow_trt.Input(((1, 2, 8), 3, size, size))], precision="fp32")], folder
    )
    return folder, manifest


@pytest.mark.timeout(500)  # 155 s on an H200 of its own, more beside other tests
def test_no_answer_of_any_engine_is_wrong(model, monkeypatch, tmp_path):
    folder, manifest = model
    golden = plan.read_golden(folder, manifest.golden)
    errors, refused = [], []
    for turn in range(TIMES):
        monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / str(turn)))  # each compiles anew
        with load_engine(folder, manifest) as engine:
            for _, point, inputs, outputs in golden.points():
                for call in range(3):
                    try:
                        found = engine.predict(inputs)
                    except PlanError as refusal:
                        refused.append(refusal.found)
                        continue
                    for name, wanted in outputs.items():
                        error = np.linalg.norm(found[name] - wanted) / np.linalg.norm(wanted)
                        errors.append((round(float(error), 5), turn, point, call))
    assert max(errors)[0] < 0.02
    assert len(errors) > len(refused)
    if "lite0" in folder.name:
        assert not refused
    assert all("differently from one run to the next" in found for found in refused), refused
