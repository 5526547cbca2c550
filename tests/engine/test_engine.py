"""The engine from the plan's bytes to answers, on the stand-in for GPU and TensorRT (see standin.py)."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import standin
from affine import AFFINE, RANGE, affine, plan_bytes, rows, write_plan
from interfaces import interface, span, tensor
from manifests import host, record

from mlflow_trt.engine.engine import TensorRTEngine, describe_engine
from mlflow_trt.errors import DeviceError, InputError, ManifestError, PlanError, SettingError


def test_native_call_answers_in_the_models_structure(engine):
    x = rows(2)
    for _ in range(3):  # enqueued, captured, launched
        answer = engine(x)
        assert list(answer) == ["y", "z", "k", "x"]
        np.testing.assert_array_equal(answer["y"], x * 2 + 1)
        np.testing.assert_array_equal(answer["z"], x.sum(axis=1))
        assert answer["k"] == 7
        assert answer["x"] is x


def test_predict_tells_who_answered(engine):
    result = engine.predict({"x": rows(2)})
    assert sorted(result) == ["y", "z"]
    assert (result.backend, result.plan, result.profile) == ("tensorrt", engine.record.file.sha256, 0)
    assert sorted(engine.predict(rows(2))) == ["y", "z"]


def test_closing_gives_everything_back(tmp_path, module):
    engine = TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host())
    for n in (1, 2, 3):
        for _ in range(3):
            engine.predict({"x": rows(n)})
    engine.close()
    engine.close()
    assert module.cudart.used == 0
    assert not module.cudart.pinned
    assert not module.cudart.streams
    assert module.cudart.graphs == 0
    assert module.engines[0].contexts == 0
    with pytest.raises(DeviceError, match="closed"):
        engine.predict({"x": rows(1)})
    with pytest.raises(DeviceError, match="closed"):
        engine.layers()


def test_many_threads_get_their_own_answers(engine, module):
    wrong = []

    def work(seed):
        random = np.random.default_rng(seed)
        for _ in range(60):
            x = random.standard_normal((int(random.integers(1, 9)), 3)).astype(np.float32)
            answer = engine(x)
            if not np.array_equal(answer["y"], x * 2 + 1) or answer["x"] is not x:
                wrong.append(x.shape)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert module.engines[0].contexts <= 16  # at most 8 shapes in each of 2 slots


def test_bad_input_never_reaches_the_gpu(engine, module):
    engine.predict({"x": rows(2)})
    lanes, launches = engine.memory["lanes"], module.cudart.launches
    for bad in (rows(2).astype(np.float64), rows(0), rows(33), rows(2)[0], {"w": rows(2)}, {"x": rows(2), "w": 1}):
        with pytest.raises(InputError):
            engine.predict(bad)
    assert (engine.memory["lanes"], module.cudart.launches) == (lanes, launches)


def test_a_failed_call_drops_its_context_and_the_next_works(engine, module):
    engine.predict({"x": rows(2)})
    module.cudart.fail_next = standin.real.cudaError_t.cudaErrorLaunchFailure
    with pytest.raises(DeviceError, match="running the engine"):
        engine.predict({"x": rows(2)})
    assert engine.memory["lanes"] == 0
    np.testing.assert_array_equal(engine.predict({"x": rows(2)})["y"], rows(2) * 2 + 1)


def test_out_of_memory_says_what_is_needed_and_the_engine_stays_usable(tmp_path, monkeypatch):
    module = standin.install(monkeypatch, lambda trt: affine(trt, context_bytes=60_000), total=100_000)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), memory_limit=1 << 30) as engine:
        engine.predict({"x": rows(1)})
        # No room for a second context: the first goes, and the call succeeds.
        np.testing.assert_array_equal(engine.predict({"x": rows(2)})["y"], rows(2) * 2 + 1)
        module.cudart.total = 50_000
        with pytest.raises(DeviceError, match=r"free: .* of 50,000") as caught:
            engine.predict({"x": rows(3)})
        assert "smaller batch" in caught.value.remedy
        module.cudart.total = 100_000
        np.testing.assert_array_equal(engine.predict({"x": rows(3)})["y"], rows(3) * 2 + 1)


def test_the_callers_current_device_is_left_as_it_was(engine, module):
    module.cudart.device = 1
    engine.predict({"x": rows(2)})
    assert module.cudart.device == 1
    with pytest.raises(InputError):
        engine.predict({"x": rows(0)})
    assert module.cudart.device == 1


def test_torch_in_torch_out(engine):
    torch = pytest.importorskip("torch")
    answer = engine(torch.from_numpy(rows(2)))
    assert torch.equal(answer["y"], torch.from_numpy(rows(2) * 2 + 1))
    assert isinstance(answer["z"], torch.Tensor)
    with pytest.raises(InputError, match="bfloat16"):
        engine(torch.ones(2, 3, dtype=torch.bfloat16))


def test_layers(engine):
    assert engine.layers() == [{"name": "a"}, {"name": "b"}]


# --- loading ---


def cut(content):
    return content[:-1]


def flip(content):
    return content[:500] + b"\x01" + content[501:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut, "999 bytes"), (flip, "SHA-256"), (lambda c: b"", "0 bytes"), (lambda c: None, "missing")],
    ids=["cut short", "altered", "empty", "missing"],
)
def test_a_damaged_plan_is_refused_before_tensorrt_sees_it(tmp_path, monkeypatch, damage, message):
    module = standin.install(monkeypatch, affine)
    made = write_plan(tmp_path)
    path = tmp_path / made.file.path
    content = damage(plan_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        TensorRTEngine(tmp_path, made, AFFINE, host=host())
    assert not module.engines


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", PlanError, "empty"),
        (b"ONNX" + bytes(100), PlanError, "b'ONNX'"),
        (plan_bytes()[:40], PlanError, "ends after 40"),
        (plan_bytes() + b"more", PlanError, "1,004 bytes"),
        (plan_bytes(release=(1, 4, 0, 76)), ManifestError, r"1\.4\.0\.76"),
        (b"ftrt" + plan_bytes()[4:], ManifestError, "tensorrt 1.6"),
    ],
    ids=["empty", "no engine", "header cut", "appended", "other release", "other runtime"],
)
def test_a_plan_that_its_record_does_not_describe_is_refused(tmp_path, monkeypatch, content, error, message):
    module = standin.install(monkeypatch, affine)
    with pytest.raises(error, match=message):
        TensorRTEngine(tmp_path, write_plan(tmp_path, content), AFFINE, host=host())
    assert not module.engines


def test_refusal_by_tensorrt_holds_its_own_words(tmp_path, monkeypatch):
    standin.install(monkeypatch, lambda trt: None)
    with pytest.raises(PlanError, match="Serialization assertion failed") as caught:
        TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host())
    assert "UNSUPPORTED_CC" in str(caught.value)
    assert "a warning" not in str(caught.value)


@pytest.mark.parametrize(
    "face",
    [
        interface([tensor("x", ("b", 3))], [tensor("y", ("b", 3), binding="output0")]),
        interface(
            [tensor("x", ("b", 3), "float16")],
            [tensor("y", ("b", 3), binding="output0"), tensor("z", ("b",), binding="output1")],
        ),
        interface(
            [tensor("y", ("b", 3), binding="output0")],
            [tensor("x", ("b", 3)), tensor("z", ("b",), binding="output1")],
        ),
    ],
    ids=["missing output", "other dtype", "swapped"],
)
def test_an_interface_that_is_not_the_engines_is_refused(tmp_path, module, face):
    with pytest.raises(ManifestError, match="belong together"):
        TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host())


def test_profiles_that_are_not_the_engines_are_refused(tmp_path, module):
    profile = {"x": span(*RANGE)}
    with pytest.raises(ManifestError, match="1 optimization profiles"):
        TensorRTEngine(tmp_path, write_plan(tmp_path, profiles=(profile, profile)), AFFINE, host=host())


@pytest.mark.parametrize(
    "settings", [{"max_contexts": 0}, {"max_contexts": 1.5}, {"max_contexts": True}, {"memory_limit": 0}]
)
def test_settings_are_checked(tmp_path, module, settings):
    with pytest.raises(SettingError):
        TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), **settings)


def test_an_engine_without_a_manifest_describes_itself(tmp_path, module):
    face, profiles = describe_engine(plan_bytes(), record())
    assert [t.shape for t in face.inputs] == [("x.0", 3)]
    assert [t.name for t in face.outputs] == ["output0", "output1"]
    assert profiles == ({"x": span(*RANGE)},)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), None, host=host()) as engine:
        assert engine.interface == face
        y, z = engine(rows(2))
        np.testing.assert_array_equal(y, rows(2) * 2 + 1)
        np.testing.assert_array_equal(z, rows(2).sum(axis=1))


def test_a_cache_folder_that_cant_be_written_fails_no_call(tmp_path, module, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "file"))
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        engine.predict({"x": rows(1)})
