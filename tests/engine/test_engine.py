"""The engine from the plan's bytes to answers, on the stand-in for GPU and TensorRT (see standin.py)."""

from __future__ import annotations

import gc
import hashlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from interfaces import branch, interface, leaf, span, tensor
from manifests import host, record
from standin import Binding, Engine

from mlflow_trt.engine import kernel_files, runtime_cache
from mlflow_trt.engine.engine import TensorRTEngine, describe_engine
from mlflow_trt.engine.runtime_cache import network_of
from mlflow_trt.errors import DeviceError, InputError, ManifestError, PlanError, SettingError
from mlflow_trt.plan import casts
from mlflow_trt.plan.manifest import ConstantLeaf, File, InputLeaf

RANGE = ((1, 3), (4, 3), (32, 3))


def plan_bytes(size=1000, release=(1, 6, 1, 120)):
    head = bytearray(size)
    head[:4] = b"vtrt"
    head[16:24] = size.to_bytes(8, "little")
    head[24:28] = bytes(release)
    return bytes(head)


def write_plan(folder, content=None, **changes):
    content = plan_bytes() if content is None else content
    path = folder / "plans/p/model.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    file = File(path="plans/p/model.plan", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return record(file=file, **changes)


def affine(trt, **changes):
    """y = 2 x + 1, z = the sum of each row."""
    return Engine(
        trt,
        [Binding("x", "FLOAT", (-1, 3), True), Binding("output0", "FLOAT", (-1, 3), False),
         Binding("output1", "FLOAT", (-1,), False)],
        [{"x": RANGE}],
        lambda given: {"output0": given["x"] * 2 + 1, "output1": given["x"].sum(axis=1)},
        lambda shapes: {"output0": shapes["x"], "output1": shapes["x"][:1]},
        **changes,
    )  # fmt: skip


AFFINE = interface(
    [tensor("x", ("batch", 3))],
    [tensor("y", ("batch", 3), binding="output0"), tensor("z", ("batch",), binding="output1")],
    result=branch("dict", leaf("y"), leaf("z"), ConstantLeaf(value=7), InputLeaf(name="x"), keys=("y", "z", "k", "x")),
)


@pytest.fixture
def module(monkeypatch):
    return standin.install(monkeypatch, affine)


@pytest.fixture
def engine(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as made:
        yield made


def rows(n, start=0.0):
    return (np.arange(n * 3, dtype=np.float32) + start).reshape(n, 3)


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


def test_answers_belong_to_the_caller(engine):
    first = engine.predict({"x": rows(2)})["y"]
    kept = first.copy()
    second = engine.predict({"x": rows(2, 100)})["y"]
    np.testing.assert_array_equal(first, kept)
    assert second.flags.owndata
    assert second.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(rows(4)),
        rows(8)[::2],
        rows(4).astype(">f4"),
        np.ascontiguousarray(rows(4).T).T,
        np.frombuffer(rows(4).tobytes(), np.float32).reshape(4, 3),
        rows(4).tolist(),
        np.full((4, 3), np.nan, np.float32),
    ],
    ids=["fortran", "strided", "big-endian", "transposed", "read-only", "list", "nan"],
)
def test_takes_any_memory_layout(engine, array):
    want = np.asarray(array, np.float32) * 2 + 1
    for _ in range(3):
        np.testing.assert_array_equal(engine.predict({"x": array})["y"], want)


def test_the_first_call_records_a_graph_and_later_ones_launch_it(engine, module):
    for _ in range(5):
        engine.predict({"x": rows(2)})
    assert module.cudart.graphs == 1
    assert module.cudart.launches == 6  # one without specialized kernels, to compare them with


def test_without_cuda_graphs_every_call_is_enqueued(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), cuda_graphs=False) as engine:
        for _ in range(3):
            engine.predict({"x": rows(2)})
    assert module.cudart.launches == 0


def test_where_nothing_can_be_captured_tensorrt_makes_its_own_graphs(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        module.engines[0].capturable = False
        for _ in range(3):
            np.testing.assert_array_equal(engine.predict({"x": rows(2)})["y"], rows(2) * 2 + 1)
        assert module.cudart.launches == 0
        assert module.engines[0].config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert module.engines[0].contexts == 1


def test_a_context_keeps_its_shape(engine, module):
    for _ in range(4):
        for n in (1, 8, 3):
            np.testing.assert_array_equal(engine.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)
    assert module.engines[0].contexts == 3
    assert engine.memory["lanes"] == 3


def test_under_a_memory_limit_old_contexts_take_new_shapes(tmp_path, monkeypatch):
    module = standin.install(monkeypatch, lambda trt: affine(trt, context_bytes=100_000))
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), memory_limit=350_000) as engine:
        for n in [*range(1, 33), *range(1, 33)]:
            np.testing.assert_array_equal(engine.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)
            assert engine.memory["contexts"] <= 350_000
        assert 1 <= module.engines[0].contexts <= 3
    assert module.cudart.used == 0


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


def test_data_dependent_output(tmp_path, monkeypatch):
    def positive(trt):
        return Engine(
            trt,
            [Binding("x", "FLOAT", (-1,), True), Binding("output0", "FLOAT", (-1,), False),
             Binding("output1", "INT64", (-1,), False)],
            [{"x": ((1,), (4,), (1000,))}],
            lambda given: {"output0": given["x"][given["x"] > 0], "output1": np.flatnonzero(given["x"] > 0)},
            lambda shapes: {"output0": (-1,), "output1": (-1,)},
        )  # fmt: skip

    module = standin.install(monkeypatch, positive)
    face = interface(
        [tensor("x", ("n",))], [tensor("v", ("m",), binding="output0"), tensor("i", ("m",), "int64", binding="output1")]
    )
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        for x in ([1, -1, 2], [-1, -1, -1], [3, 4, 5], list(range(1000)), [0, 1, 0]):
            x = np.asarray(x, np.float32)
            answer = engine.predict({"x": x})
            np.testing.assert_array_equal(answer["v"], x[x > 0])
            np.testing.assert_array_equal(answer["i"], np.flatnonzero(x > 0))
        assert module.cudart.launches == 0
    assert module.cudart.used == 0


def test_shape_tensor_is_part_of_what_a_context_is_bound_to(tmp_path, monkeypatch):
    def resize(trt):
        def shapes(given):
            return {"output0": (3,)}

        return Engine(
            trt,
            [Binding("x", "FLOAT", (3,), True), Binding("s", "INT64", (1,), True, on_host=True),
             Binding("output0", "FLOAT", (3,), False)],
            [{"x": ((3,),) * 3}],
            lambda given: {"output0": given["x"] * given["s"][0]},
            shapes,
        )  # fmt: skip

    standin.install(monkeypatch, resize)
    face = interface([tensor("x", (3,)), tensor("s", (1,), "int64")], [tensor("y", (3,), binding="output0")])
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        x = np.ones(3, np.float32)
        for s in (2, 3, 2, 5, 3, 2):
            np.testing.assert_array_equal(engine(x, np.array([s])), x * s)
        assert engine.memory["lanes"] == 3


def test_profiles_each_have_their_own_contexts(tmp_path, monkeypatch):
    def two(trt):
        made = affine(trt)
        made.profiles = [{"x": ((1, 3), (1, 3), (2, 3))}, {"x": ((2, 3), (16, 3), (32, 3))}]
        made.num_optimization_profiles = 2
        return made

    standin.install(monkeypatch, two)
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        for _ in range(2):
            assert [engine.predict({"x": rows(n)}).profile for n in (1, 2, 3, 32)] == [0, 0, 1, 1]
        np.testing.assert_array_equal(engine.predict({"x": rows(32)})["y"], rows(32) * 2 + 1)


def test_narrower_and_rounded_bindings(tmp_path, monkeypatch):
    def narrow(trt):
        return Engine(
            trt,
            [Binding("x", "BF16", (2,), True), Binding("i", "INT32", (2,), True),
             Binding("output0", "BF16", (2,), False), Binding("output1", "INT32", (1,), False)],
            [{"x": ((2,),) * 3, "i": ((2,),) * 3}],
            lambda given: {"output0": given["x"], "output1": given["i"][:1]},
            lambda shapes: {"output0": (2,), "output1": (1,)},
        )  # fmt: skip

    standin.install(monkeypatch, narrow)
    face = interface(
        [tensor("x", (2,), "float32", "bfloat16"), tensor("i", (2,), "int64", "int32")],
        [tensor("y", (2,), "float32", "bfloat16", "output0"), tensor("n", (), "int64", "int32", "output1")],
    )
    with TensorRTEngine(tmp_path, write_plan(tmp_path), face, host=host()) as engine:
        x = np.array([1.00390625, 3.14159265], np.float32)
        answer = engine.predict({"x": x, "i": np.array([5, 6])})
        np.testing.assert_array_equal(answer["y"], casts.from_bfloat16(casts.to_bfloat16(x)))
        assert answer["y"].dtype == np.float32
        assert answer["n"].dtype == np.int64
        assert answer["n"].shape == ()
        assert answer["n"] == 5
        with pytest.raises(InputError, match="int32"):
            engine.predict({"x": x, "i": np.array([1 << 40, 0])})
        assert engine.memory["lanes"] == 1  # refusing it cost no context


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


def test_rows_of_several_calls_are_put_together_where_the_gpu_reads_them(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        first, second = rows(1, 5.0), rows(2, 50.0).astype(">f4")
        for _ in range(3):  # first call, capture, launch
            found = engine.predict_stacked([[first, second]], 4)
            assert (found.backend, found.profile) == ("tensorrt", 0)
            whole = np.concatenate([first, second, second[1:]])
            np.testing.assert_array_equal(found["y"], whole * 2 + 1)
        with pytest.raises(InputError, match="above the maximum"):
            engine.predict_stacked([[rows(1)]], 99)


# --- runtime cache ---


def test_compiled_kernels_are_kept_for_the_next_process(tmp_path, module, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    made = write_plan(tmp_path)
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        for n in (1, 4, 2):
            engine.predict({"x": rows(n)})
        content = engine.runtime_cache()
    assert all(f"({n}, 3)".encode() in content for n in (1, 2, 4))
    path = kernel_files.path_for(made.file.sha256, made.release, host())
    assert kernel_files.read(path) == content
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        assert engine.runtime_cache() == content
        engine.predict({"x": rows(4)})
        assert engine.runtime_cache() == content


def test_contexts_that_judge_begin_without_specialized_kernels(tmp_path, module, monkeypatch):
    """In this process, and from the bytes that it leaves to the next one."""
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    made = write_plan(tmp_path)
    for _ in range(2):
        with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
            for n in (1, 4, 2):
                engine.predict({"x": rows(n)})
    assert [engine.specialized for engine in module.engines] == [3, 3]
    assert [engine.misled for engine in module.engines] == [False, False]


def test_kernels_of_both_kinds_are_told_apart():
    for caches in ({False: b"plain", True: b"special"}, {False: b"plain"}, {True: b"special"}):
        assert runtime_cache.unpacked(runtime_cache.packed(caches)) == caches
    assert runtime_cache.unpacked(b"as earlier versions wrote it") == {True: b"as earlier versions wrote it"}


@pytest.mark.parametrize("memory_limit", [None, 1])
def test_a_batch_of_one_spoils_no_larger_one(tmp_path, module, memory_limit):
    """Whatever the order, and whether or not there is room for a context per size."""
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), memory_limit=memory_limit) as engine:
        for n in (1, 4, 2, 1, 4):
            for _ in range(3):
                np.testing.assert_array_equal(engine.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)


def caches(module):
    """The cache object of the last context of each engine."""
    return [engine.config.cache for engine in module.engines]


def test_engines_of_one_network_share_the_kernels_of_a_shape(tmp_path, module):
    """Loaded ones: TensorRT-RTX loads them anew from bytes."""
    made = write_plan(tmp_path)
    first = TensorRTEngine(tmp_path, made, AFFINE, host=host())
    first.predict({"x": rows(4)})
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as second:
        second.predict({"x": rows(4)})
        assert caches(module)[1] is caches(module)[0]
        second.predict({"x": rows(2)})
        assert caches(module)[1] is not caches(module)[0], "another shape must not share them"
        first.close()
        for n in (4, 2):
            np.testing.assert_array_equal(second.predict({"x": rows(n)})["y"], rows(n) * 2 + 1)
        saved = second.runtime_cache()
        assert all(f"({n}, 3)".encode() in saved for n in (2, 4)), "what it took over is saved too"


def test_contexts_of_an_older_release_have_cache_objects_of_their_own(tmp_path, module, monkeypatch):
    """TensorRT-RTX 1.4 would run all but the first with its slower kernels."""
    assert [runtime_cache.shares(release) for release in ("1.4.0.76", "1.6.1.120", "1.10.0.1")] == [False, True, True]
    monkeypatch.setattr(runtime_cache, "shares", lambda release: False)  # the stand-in and its plan are of a newer one
    made = write_plan(tmp_path)
    with (
        TensorRTEngine(tmp_path, made, AFFINE, host=host()) as first,
        TensorRTEngine(tmp_path, made, AFFINE, host=host()) as second,
    ):
        for engine in (first, second):
            np.testing.assert_array_equal(engine.predict({"x": rows(4)})["y"], rows(4) * 2 + 1)
        one, other = caches(module)
        assert one is not other
        assert b"specialized" in other.content, "what the first compiled is there as bytes"


def test_two_calls_at_once_of_one_shape_share_its_kernels(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host(), max_contexts=2) as engine:
        engine.predict({"x": rows(4)})
        first = caches(module)[0]
        busy = engine._pool.acquire("another call's")
        engine.predict({"x": rows(4)})
        engine._pool.release(busy)
        assert engine.memory["lanes"] == 2
        assert caches(module)[0] is first


def test_what_another_version_brings_is_added_to_what_is_there(tmp_path, module, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    made = write_plan(tmp_path)
    path = kernel_files.path_for(made.file.sha256, made.release, host())
    with TensorRTEngine(tmp_path, made, AFFINE, host=host(), runtime_cache=False) as first:
        first.predict({"x": rows(4)})
        kernel_files.write(path, b"kernels of an earlier process")
        with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as second:
            content = second.runtime_cache()
            assert b"earlier" in content
            assert b"(4, 3)" in content


def test_kernels_go_with_the_last_context_that_uses_them(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        engine.predict({"x": rows(4)})
        (shared,) = runtime_cache._networks.values()
        assert len(shared._caches) == 1
    gc.collect()
    assert not shared._caches
    del shared
    assert not runtime_cache._networks


def test_other_networks_and_devices_have_kernels_of_their_own(tmp_path, module):
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        loaded, profiles = engine._loaded(), engine.profiles
        same = network_of(loaded, AFFINE, profiles, 0)
        assert network_of(loaded, AFFINE, profiles, 0) == same
        others = [network_of(loaded, AFFINE, profiles, 1), network_of(loaded, AFFINE, (), 0)]
        face = interface([tensor("x", ("b", 3))], [tensor("y", ("b", 3), binding="output0")])
        others.append(network_of(loaded, face, profiles, 0))
        layers = SimpleNamespace(get_engine_information=lambda form: '{"Layers": ["a", "c"]}')
        loaded.engine.create_engine_inspector = lambda: layers
        others.append(network_of(loaded, AFFINE, profiles, 0))
        assert len({same, *others}) == 5


def test_a_refused_cache_is_as_if_it_were_not_there(tmp_path, module, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    shipped = b"kernels that came with the plan"
    (tmp_path / "plans/p").mkdir(parents=True)
    (tmp_path / "plans/p/runtime-cache.bin").write_bytes(shipped)
    file = File(path="plans/p/runtime-cache.bin", size=len(shipped), sha256=hashlib.sha256(shipped).hexdigest())
    made = write_plan(tmp_path, runtime_cache=file)
    kernel_files.write(kernel_files.path_for(made.file.sha256, made.release, host()), b"of another driver")
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        assert runtime_cache.unpacked(engine.runtime_cache()) == {True: shipped}
    (tmp_path / "plans/p/runtime-cache.bin").write_bytes(b"damaged")
    with TensorRTEngine(tmp_path, made, AFFINE, host=host()) as engine:
        assert engine.runtime_cache() is None
        engine.predict({"x": rows(1)})
        assert set(runtime_cache.unpacked(engine.runtime_cache())) == {False, True}


def test_a_cache_folder_that_cant_be_written_fails_no_call(tmp_path, module, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "file"))
    with TensorRTEngine(tmp_path, write_plan(tmp_path), AFFINE, host=host()) as engine:
        engine.predict({"x": rows(1)})
