from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import standin
from affine import AFFINE, affine, rows, write_plan
from manifests import host, manifest, record

from mlflow_trt.engine import load as load_engine
from mlflow_trt.errors import CompatibilityError, DeviceError, SettingError
from mlflow_trt.plan.compatibility import SelectedPlan, check_all
from mlflow_trt.plan.manifest import File


@pytest.fixture
def here(monkeypatch):
    """A machine with an L4 and TensorRT-RTX 1.6.1.120, and the stand-in for both."""
    module = standin.install(monkeypatch, affine)
    monkeypatch.setattr("mlflow_trt.engine.probe", lambda device=0: host())
    monkeypatch.setattr("mlflow_trt.engine.check_index", lambda device: None)
    return module


def test_unknown_backend(tmp_path):
    for name in ("onnx", "", None):
        with pytest.raises(SettingError, match="backend"):
            load_engine(tmp_path, manifest(), backend=name)


def test_unknown_setting(tmp_path, here):
    with pytest.raises(TypeError, match="max_context"):
        load_engine(tmp_path, manifest(write_plan(tmp_path)), max_context=3)


def test_the_first_plan_that_loads_is_taken_and_the_log_says_so(tmp_path, here, caplog):
    other = record(release="1.4.0.76", file=File(path="plans/other/model.plan", size=1, sha256="0" * 64))
    described = manifest(other, write_plan(tmp_path), interface=AFFINE)
    with caplog.at_level(logging.INFO, logger="mlflow_trt.engine"), load_engine(tmp_path, described) as engine:
        assert engine.record is described.plans[1]
        np.testing.assert_array_equal(engine(rows(2))["y"], rows(2) * 2 + 1)
    (line,) = [r.message for r in caplog.records if r.name == "mlflow_trt.engine"]
    assert "backend=tensorrt" in line
    assert "tensorrt_rtx-1.6.1.120-sm86-sm89 answers on NVIDIA L4" in line
    assert "Passed over: tensorrt_rtx-1.4.0.76-sm86-sm89" in line


def test_settings_reach_the_engine(tmp_path, here):
    described = manifest(write_plan(tmp_path), interface=AFFINE)
    with load_engine(tmp_path, described, max_contexts=3, memory_limit=12345, cuda_graphs=False) as engine:
        assert engine.memory["limit"] == 12345
        for _ in range(3):
            engine.predict(rows(1))
    assert here.cudart.launches == 0


def test_a_plan_that_was_selected_already_is_not_selected_again_nor_the_host_probed(tmp_path, here, monkeypatch):
    first, second = write_plan(tmp_path), write_plan(tmp_path)
    described = manifest(first, second, interface=AFFINE)
    selected = SelectedPlan(second, check_all(described, host()))
    monkeypatch.setattr("mlflow_trt.engine.probe", None)
    with load_engine(tmp_path, described, selected=selected) as engine:
        assert engine.record is second
        assert engine.host is selected.report.host


def test_no_plan_loads_here(tmp_path, here):
    with pytest.raises(CompatibilityError, match=r"12\.0"):
        load_engine(tmp_path, manifest(record(capabilities=("12.0",))))


def test_never_the_reference_backend_unasked(tmp_path):
    from programs import nested

    pytest.importorskip("torch")
    described, _ = nested(tmp_path)
    unloadable = described.model_copy(update={"plans": (described.plans[0].model_copy(update={"release": "0.0.0.1"}),)})
    with pytest.raises(CompatibilityError):
        load_engine(tmp_path, unloadable)


def test_the_reference_backend_is_logged(tmp_path, caplog):
    from programs import nested

    pytest.importorskip("torch")
    described, _ = nested(tmp_path)
    with caplog.at_level(logging.INFO, logger="mlflow_trt.engine"):
        load_engine(tmp_path, described, backend="reference").close()
    assert [r.message for r in caplog.records if "backend=reference" in r.message]


def test_device_index_too_high(tmp_path, monkeypatch):
    from cuda.bindings import runtime as cudart

    monkeypatch.setattr(cudart, "cudaGetDeviceCount", lambda: (0, 1))
    with pytest.raises(DeviceError, match="index 3"):
        load_engine(tmp_path, manifest(), device=3)


def test_without_a_driver_nothing_crashes(tmp_path):
    """In a process of its own, with the real TensorRT-RTX where it is installed and no GPU to be seen."""
    content = b"vtrt" + bytes(12) + (1000).to_bytes(8, "little") + bytes([1, 6, 1, 120]) + bytes(972)
    assert len(content) == 1000
    code = f"""
import hashlib, pathlib, tempfile
from mlflow_trt.errors import DeviceError
from mlflow_trt.plan.manifest import PlanRecord
from mlflow_trt.engine.engine import TensorRTEngine
folder = pathlib.Path({str(tmp_path)!r})
content = (folder / "model.plan").read_bytes()
record = PlanRecord.model_validate_json((folder / "record.json").read_text())
for device in (0, 7, -1):
    try:
        TensorRTEngine(folder, record, device=device)
    except DeviceError as error:
        print("refused:", error.found)
"""
    (tmp_path / "model.plan").write_bytes(content)
    file = File(path="model.plan", size=1000, sha256=hashlib.sha256(content).hexdigest())
    (tmp_path / "record.json").write_text(record(file=file).model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: No NVIDIA GPU can be used") == 3


def test_loading_imports_neither_torch_nor_tensorrt(tmp_path):
    code = (
        "import sys; import mlflow_trt.engine.engine, mlflow_trt.engine.device_call, mlflow_trt.evidence.measure; "
        "print([m for m in ('torch', 'torch_tensorrt', 'tensorrt_rtx', 'tensorrt', 'cuda.core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
