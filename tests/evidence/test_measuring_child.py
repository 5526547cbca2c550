"""What logging takes from the process that measures: all of its figures, or those that were there when its time was up.

A fake stands for that process, since it needs a GPU: it says what a real one says.
"""

import json
import logging
import types

import pytest

from mlflow_trt import engine, store
from mlflow_trt.errors import DeviceError, ParityError
from mlflow_trt.evidence import measuring_child, recorded
from mlflow_trt.plan import manifest
from mlflow_trt.plan.host import probe

FAKE = """
import json, os, signal, time
from mlflow_trt.conversion.child_process import serve

PARITY = {parity!r}
LATENCY = {{"status": "measured", "points": [
    {{"profile": 0, "point": "opt", "batch": 2, "p50_ms": 1.0, "p99_ms": 2.0, "runs": 100}}]}}

def measure(folder, say):
    job = json.loads((folder / "job.json").read_text())
    assert os.path.exists(os.path.join(job["model"], json.loads(job["manifest"])["plans"][0]["file"]["path"]))
    say({{"doing": "load"}})
    say({{"done": "load", "seconds": 0.5}})
    say({{"doing": "parity"}})
    say({{"progress": ["start", "parity", 3]}})
    say({{"done": "parity", "seconds": 1.5}})
    say({{"parity": PARITY}})
    say({{"doing": "latency"}})
    if {end!r} == "hang":
        time.sleep(60)
    if {end!r} == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    say({{"done": "latency", "seconds": 2.5}})
    say({{"latency": LATENCY}})
    curve = [{{"batch": 1, "p50_ms": 1.0, "p99_ms": 2.0, "per_second": 1000.0}}]
    say({{"latency_by_batch": curve, "layers": [{{"name": "a"}}]}})
    return {{}}

serve(measure)
"""


@pytest.fixture
def measure(tmp_path, monkeypatch, classifier_folder):
    if probe().gpu is not None:
        pytest.skip("a fake for machines without a GPU; on one, the GPU tests log models")
    model = store.open_model(classifier_folder)
    record = model.manifest.plans[0]
    (classifier_folder / manifest.FILE_NAME).unlink()  # it is written last, with the figures

    def measure(end="", status="passed", timeout=30.0):
        parity = {**record.parity.model_dump(mode="json"), "status": status, "reason": None}
        (tmp_path / "fake_measuring.py").write_text(FAKE.format(parity=parity, end=end))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(
            recorded, "measuring_child", types.SimpleNamespace(__name__="fake_measuring", JOB="job.json")
        )
        return recorded._measure_plan(model, timeout)

    return measure


def test_all_figures_and_the_time_of_each_step(measure):
    record, measured = measure()
    assert (record.parity.status, record.latency.status) == ("passed", "measured")
    assert measured.seconds == {"load": 0.5, "parity": 1.5, "latency": 2.5}
    assert [row["batch"] for row in measured.latency_by_batch] == [1]
    assert list(measured.layers) == [{"name": "a"}]


def test_when_the_time_is_up_what_is_missing_says_so(measure, caplog):
    with caplog.at_level(logging.WARNING):
        record, measured = measure(end="hang", timeout=5.0)
    assert record.parity.status == "passed"
    assert record.latency.status == "not_measured"
    assert "latency was not done when the 5 s for measuring were over" in record.latency.reason
    assert "latency was not done" in caplog.text
    assert measured.seconds == {"load": 0.5, "parity": 1.5}


def test_a_crash_is_an_error_that_names_the_step(measure):
    with pytest.raises(DeviceError, match=r"ended by SIGSEGV, at the step latency"):
        measure(end="crash")


def test_a_failed_comparison_is_refused_whatever_comes_after(measure):
    with pytest.raises(ParityError):
        measure(status="failed", end="hang", timeout=5.0)


def test_the_child_needs_no_manifest_in_the_folder(classifier_folder, tmp_path, monkeypatch):
    """The logged program answers in place of the engine, so that the child itself runs without a GPU."""
    text = store.open_model(classifier_folder).manifest.to_json()
    (classifier_folder / manifest.FILE_NAME).unlink()
    (tmp_path / measuring_child.JOB).write_text(json.dumps({"model": str(classifier_folder), "manifest": text}))

    class Reference(engine.ReferenceEngine):
        def layers(self):
            return [{"name": "a"}]

        def runtime_cache(self):
            return b"kernels"

    monkeypatch.setattr(engine, "load", Reference)
    said = {}
    measuring_child._measure(tmp_path, said.update)

    assert said["parity"]["status"] == "passed"
    assert said["latency"]["status"] == "measured"
    assert said["layers"] == [{"name": "a"}]
    assert (classifier_folder / said["runtime_cache"]["path"]).read_bytes() == b"kernels"
