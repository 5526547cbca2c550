"""A version is made ready: what is fetched, what is compared, what is refused, and that nothing stays behind."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading

import numpy as np
import pytest
from interfaces import tensor

pytest.importorskip("torch", reason="the reference backend runs with it")

from mlflow_trt import CompatibilityError, InputError, ParityError, PlanError, SettingError, TrtError, cache, plan
from mlflow_trt.errors import DeviceError, StoreError
from mlflow_trt.plan import host
from mlflow_trt.plan.manifest import Host, ShapeRange
from mlflow_trt.serving.config import LoadOptions
from mlflow_trt.serving.versions.loading import DroppedError, load_version, version_of, warm_up_calls

from ..registered import REFERENCE, Counter, answer, engines, events, forged, no_threads_left, registry, rows
from ..registered import plan as shifted

__all__ = ["engines", "no_threads_left", "registry"]

pytestmark = pytest.mark.usefixtures("no_threads_left")


def save(tmp_path, made, name="model"):
    folder = tmp_path / name
    folder.mkdir()
    plan.write([made], folder)
    return folder


def test_a_registered_version_answers(registry, engines):
    version = registry.log(shifted(5.0))

    loaded = load_version(f"models:/{registry.name}/{version}", REFERENCE)

    try:
        assert (loaded.info.uri, loaded.info.version) == (f"models:/{registry.name}/{version}", version)
        assert (loaded.info.platform, loaded.devices) == ("reference", (0,))
        assert loaded.manifest.interface == loaded.info.interface
        assert loaded.info.profiles == ({"x": ShapeRange(min=(1, 4), opt=(2, 4), max=(8, 4))},)
        assert loaded.batcher.sizes == (1, 2, 4, 8)
        x = rows(3)
        assert np.array_equal(loaded.submit(x).result(10).outputs["scores"], answer(x["x"], 5.0))
        assert engines.open == {1}
    finally:
        loaded.close()
    assert not engines.open
    loaded.close()
    with pytest.raises(TrtError, match="takes no more requests"):
        loaded.submit(rows(1))


def test_only_what_is_needed_is_fetched(registry):
    version = registry.log(shifted(5.0))

    load_version(f"models:/{registry.name}/{version}", REFERENCE).close()

    [folder] = (cache.folder() / "models").iterdir()
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == ["golden/inputs.safetensors", "golden/outputs.safetensors", "manifest.json", "program/model.pt2"]


def test_a_converted_model_answers(classifier_folder):
    """With a real conversion's manifest, program and golden tensors."""
    loaded = load_version(str(classifier_folder), REFERENCE)
    try:
        assert loaded.info.version == version_of("elsewhere", classifier_folder)
        assert len(loaded.info.version) == 12
        assert loaded.batcher.sizes == (1, 2, 4, 8)
        golden = plan.read_golden(classifier_folder, loaded.manifest.golden)
        for _, _, inputs, outputs in golden.points():
            found = loaded.submit(inputs).result(10).outputs
            for name, array in outputs.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
    finally:
        loaded.close()


def test_every_device_has_an_engine(tmp_path, engines):
    loaded = load_version(str(save(tmp_path, shifted(1.0))), LoadOptions(backend="reference", devices=(0, 1)))
    assert len(loaded.engines) == len(engines.open) == 2
    loaded.close()
    assert not engines.open


@pytest.mark.parametrize("devices", [(), (0, 0)])
def test_devices_that_can_not_be(devices):
    with pytest.raises(SettingError, match="devices"):
        LoadOptions(devices=devices)


def test_a_batch_is_reported(tmp_path):
    seen = []
    loaded = load_version(str(save(tmp_path, shifted(1.0))), REFERENCE, on_batch=seen.append)
    loaded.submit(rows(3)).result(10)
    loaded.close()
    assert [batch.rows for batch in seen] == [3]  # the calls that warm up are none


# --- What is refused, and that it is closed again.


def refuse(uri, error, match, engines, options=REFERENCE, made=None, unwanted=lambda: False):
    with pytest.raises(error, match=match) as raised:
        load_version(str(uri), options, unwanted=unwanted)
    assert not engines.open
    if made is not None:
        assert engines.made == made
    return raised.value


def test_wrong_answers_are_refused(tmp_path, engines):
    error = refuse(save(tmp_path, shifted(1.0, "wrong")), ParityError, "otherwise than the model", engines, made=1)
    assert "FAILED" in error.message  # with the figures


def test_wrong_answers_of_the_second_device_are_refused(tmp_path, engines, monkeypatch):
    """A stand-in for a GPU that computes wrongly: the second engine's answers are off by one."""
    load = Counter.load

    def second_is_wrong(self, *args, **kwargs):
        engine = load(self, *args, **kwargs)
        if self.made == 2:
            predict = engine.predict

            def wrong(inputs):
                result = predict(inputs)
                result["scores"] = result["scores"] + 1
                return result

            engine.predict = wrong
        return engine

    monkeypatch.setattr("mlflow_trt.serving.versions.loading.load_engine", second_is_wrong.__get__(engines))
    options = LoadOptions(backend="reference", devices=(0, 1))
    refuse(save(tmp_path, shifted(1.0)), ParityError, "on device 1", engines, options, made=2)


@pytest.mark.parametrize("file", ["program/model.pt2", "golden/inputs.safetensors", "golden/outputs.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, engines, file):
    folder = save(tmp_path, shifted(1.0))
    forged.flip_one_byte(folder / file)
    refuse(folder, PlanError, "SHA-256", engines, made=0)


def test_a_version_without_a_program_is_refused(tmp_path, engines):
    folder = save(tmp_path, dataclasses.replace(shifted(1.0), program=None))
    refuse(folder, SettingError, "no program to run on the CPU", engines, made=0)


def test_a_folder_that_is_not_there_is_refused(tmp_path, engines):
    refuse(tmp_path / "nowhere", TrtError, "can't be read", engines, made=0)


def test_a_version_that_is_not_there_is_refused(registry, engines):
    refuse(f"models:/{registry.name}/7", StoreError, "can't be read", engines, made=0)


def test_a_plan_for_other_machines_is_refused_before_it_is_fetched(registry, engines, monkeypatch):
    version = registry.log(shifted(1.0))
    here = Host(os="linux", capability="9.0", driver="580.95.05", cuda="13.0", runtimes={"tensorrt_rtx": "1.4.0.76"})
    monkeypatch.setattr(host, "check_index", lambda device: None)
    monkeypatch.setattr(host, "probe", lambda device=0: here)

    refuse(f"models:/{registry.name}/{version}", CompatibilityError, "1.4.0.76", engines, LoadOptions(), made=0)

    assert not list((cache.folder() / "models").rglob("*.plan"))


def test_a_model_that_fails_in_pytorch_is_refused_with_one_error(tmp_path, engines, monkeypatch):
    """A stand-in for whatever a runtime raises that is none of our own errors."""

    def fails(self, *args, **kwargs):
        engine = Counter.load(self, *args, **kwargs)

        def predict(inputs):
            raise ValueError("line one\nline two")

        engine.predict = predict
        return engine

    monkeypatch.setattr("mlflow_trt.serving.versions.loading.load_engine", fails.__get__(engines))
    error = refuse(save(tmp_path, shifted(1.0)), TrtError, "ValueError: line one", engines, made=1)
    assert isinstance(error.__cause__, ValueError)


def test_devices_whose_memory_is_full_leave_nothing_loaded(tmp_path, engines):
    """A stand-in: the second device refuses."""

    def full(folder):
        if engines.made == 1:
            raise DeviceError("The GPU's memory does not suffice.")

    engines.before = full
    options = LoadOptions(backend="reference", devices=(0, 1))
    refuse(save(tmp_path, shifted(1.0)), DeviceError, "memory", engines, options, made=1)


def test_what_is_not_wanted_any_more_is_given_up_at_the_next_step(tmp_path, engines):
    folder = save(tmp_path, shifted(1.0))
    asked = 0

    def count():
        nonlocal asked
        asked += 1
        return False

    load_version(str(folder), REFERENCE, unwanted=count).close()
    steps = asked
    assert steps > 10  # also between the calls that warm up, which may take minutes
    for step in range(1, steps + 1):
        left = iter([False] * (step - 1) + [True])
        refuse(folder, DroppedError, "not wanted", engines, unwanted=lambda left=left: next(left))


# --- Batching.


class Mean:
    """Rows that depend on each other."""

    @staticmethod
    def module():
        import torch

        class Module(torch.nn.Module):
            def forward(self, x):
                return x[:, :3] - x[:, :3].mean(dim=0, keepdim=True)

        return Module()


def test_rows_that_change_each_other_are_not_joined(tmp_path, caplog):
    made = shifted(0.0, "none", module=Mean.module())
    with caplog.at_level(logging.WARNING, "mlflow_trt.serving"):
        loaded = load_version(str(save(tmp_path, made)), REFERENCE)
    loaded.close()
    assert loaded.batcher.sizes == ()
    assert events(caplog) == ["no_golden", "batching_off"]


def test_batching_may_be_off(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mlflow_trt.serving"):
        loaded = load_version(str(save(tmp_path, shifted(1.0))), LoadOptions(backend="reference", batching=False))
    loaded.close()
    assert loaded.batcher.sizes == ()
    assert events(caplog) == []


def test_golden_tensors_may_be_missing(tmp_path):
    loaded = load_version(str(save(tmp_path, shifted(1.0, "none"))), REFERENCE)
    loaded.close()
    assert loaded.batcher.sizes == (1, 2, 4, 8)


# --- Warming up.


def test_every_context_has_run_every_shape_before_the_first_request(tmp_path, engines, monkeypatch):
    calls = []
    most = running = 0
    lock = threading.Lock()

    def watched(self, *args, **kwargs):
        engine = Counter.load(self, *args, **kwargs)
        predict = engine.predict
        together = threading.Barrier(3, timeout=10)

        def counted(inputs):
            nonlocal most, running
            by_warm_up = threading.current_thread().name.startswith("warm-up")
            if by_warm_up:
                together.wait()  # as many as there are contexts, or this fails
            with lock:
                calls.append((len(inputs["x"]), by_warm_up))
            return predict(inputs)

        engine.predict = counted
        return engine

    monkeypatch.setattr("mlflow_trt.serving.versions.loading.load_engine", watched.__get__(engines))
    load_version(str(save(tmp_path, shifted(1.0))), LoadOptions(backend="reference", max_contexts=3)).close()
    warm = [size for size, by_warm_up in calls if by_warm_up]
    assert {size: warm.count(size) for size in set(warm)} == {1: 9, 2: 9, 4: 9, 8: 9}


def shapes(calls):
    return sorted(tuple(call["x"].shape) for call in calls)


def test_warm_up_covers_points_and_batch_sizes():
    from mlflow_trt.plan.manifest import Branch, Interface, TensorLeaf

    interface = Interface(
        inputs=(tensor("x", ("batch", "length"), "int64"),),
        outputs=(tensor("y", ("batch", "length")),),
        arguments=Branch(kind="tuple", items=()),
        result=TensorLeaf(name="y"),
    )
    profiles = (
        {"x": ShapeRange(min=(1, 8), opt=(4, 16), max=(8, 32))},
        {"x": ShapeRange(min=(1, 64), opt=(1, 64), max=(2, 128))},
    )
    golden = [{"x": np.arange(32).reshape(4, 8) + 100}, {"x": np.full((1, 9), 7)}]

    calls = warm_up_calls(interface, profiles, golden, (1, 2, 4, 8))

    expected = {(1, 8), (4, 16), (8, 32)}  # the first profile's points
    expected |= {(1, 64), (2, 128)}  # the second's
    expected |= {(1, 16), (2, 16), (8, 16)} | {(2, 64)}  # batch sizes at their opt
    expected |= {(4, 8), (1, 9)}  # golden
    assert shapes(calls) == sorted(expected)
    # Values as the model takes them: those of the golden points, repeated.
    assert all(set(call["x"].ravel()) <= {*range(100, 132), 7} for call in calls)
    rows_of = {call["x"].shape: call["x"] for call in calls}
    assert np.array_equal(rows_of[4, 8], golden[0]["x"])
    assert len({row.tobytes() for row in rows_of[8, 32]}) == 1  # 32 values repeat: no harm in warming up


def test_warm_up_of_an_engine_without_profiles():
    from mlflow_trt.plan.manifest import Branch, Interface, TensorLeaf

    interface = Interface(
        inputs=(tensor("x", (2, 3)),),
        outputs=(tensor("y", (2, 3)),),
        arguments=Branch(kind="tuple", items=()),
        result=TensorLeaf(name="y"),
    )
    assert shapes(warm_up_calls(interface, (), [], ())) == [(2, 3)]


# --- Names.


@pytest.mark.parametrize(
    ("uri", "version"),
    [("models:/resnet/3", "3"), ("models:/a b/12", "12"), ("models:///resnet/3", "3")],
)
def test_a_registered_version_is_called_by_its_number(tmp_path, uri, version):
    assert version_of(uri, tmp_path) == version


def test_anything_else_is_called_by_its_manifest(tmp_path):
    folder = save(tmp_path, shifted(1.0))
    shutil.copytree(folder, tmp_path / "copy")
    other = save(tmp_path, shifted(2.0), "other")
    name = version_of(str(folder), folder)
    assert name == version_of("runs:/abc/m", tmp_path / "copy") == version_of("models:/m-12/3/x", folder)
    assert name != version_of(str(folder), other)


def test_what_does_not_fit_fails_alone(tmp_path):
    loaded = load_version(str(save(tmp_path, shifted(1.0))), REFERENCE)
    with pytest.raises(InputError):
        loaded.submit(rows(9))
    loaded.close()
