"""The runtime on a GPU: everything that the stand-in can't show."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from manifests import record

import mlflow_trt
from mlflow_trt import plan
from mlflow_trt.engine import TensorRTEngine, kernel_files, pinned, runtime_cache
from mlflow_trt.engine import load as load_engine
from mlflow_trt.engine.engine import describe_engine
from mlflow_trt.errors import CompatibilityError, DeviceError, InputError, PlanError
from mlflow_trt.evidence import measure
from mlflow_trt.plan import host, parity
from mlflow_trt.plan.api import Result
from mlflow_trt.plan.manifest import File

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("gpu")]

TOLERANCE = 5e-3
"""Relative L2 error of float32, TF32 allowed."""


def save(tmp_path_factory, name, model, inputs, **settings):
    folder = tmp_path_factory.mktemp(name)
    return folder, plan.write([mlflow_trt.convert(model, inputs, **settings)], folder), model


def near(actual, reference, tolerance=TOLERANCE):
    actual, reference = np.asarray(actual, np.float64), np.asarray(reference, np.float64)
    assert actual.shape == reference.shape
    assert np.linalg.norm(actual - reference) <= tolerance * max(np.linalg.norm(reference), 1e-6)


def images(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A dynamic batch; two outputs, one nested, one handed through."""
    import torch

    class Cnn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU()
            )
            self.head = torch.nn.Linear(16 * 12 * 12, 10)

        def forward(self, x):
            features = self.body(x)
            return {"scores": self.head(features.flatten(1)), "more": [x, features.mean((2, 3))]}

    return save(tmp_path_factory, "cnn", Cnn().eval(), [mlflow_trt.Input(((1, 8, 32), 3, 16, 16))])


@pytest.fixture
def engine(cnn):
    with load_engine(*cnn[:2]) as made:
        yield made


def answer(cnn, x):
    import torch

    with torch.no_grad():
        found = cnn[2].cpu()(torch.from_numpy(x))
    return found["scores"].numpy(), found["more"][1].numpy()


def contexts(engine):
    return [entry.bound for stream_slot in engine._pool._slots for entry in stream_slot.contexts.values()]


@pytest.mark.parametrize("n", [1, 2, 8, 31, 32])
def test_answers_are_pytorchs_at_every_stage(engine, cnn, n):
    """First call, graph capture, graph launches, each with other data."""
    for seed in range(5):
        x = images(n, seed)
        found = engine(x)
        scores, means = answer(cnn, x)
        near(found["scores"], scores)
        near(found["more"][1], means)
        assert found["more"][0] is x


def test_calls_run_as_cuda_graphs(engine):
    for _ in range(3):
        engine.predict(images(4))
    assert [bound.graph for bound in contexts(engine)] in (["graph"], ["runtime"])


def test_page_locked_rows_are_fetched_from_where_they_lie(tmp_path_factory):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    model(torch.zeros(1, 3, 96, 96))
    folder, manifest, _ = save(tmp_path_factory, "wide", model.eval(), [mlflow_trt.Input(((1, 4, 8), 3, 96, 96))])
    memory = mmap.mmap(-1, 12 * 3 * 96 * 96 * 4)  # shared, as what another process writes
    rows = np.frombuffer(memory, np.float32).reshape(12, 3, 96, 96)
    with load_engine(folder, manifest, max_contexts=1) as engine:
        rows[:] = np.random.default_rng(0).standard_normal(rows.shape, np.float32)
        copied = {n: engine.predict(rows[:n].copy()) for n in (4, 8)}
        assert pinned.lock(rows.ctypes.data, rows.nbytes, 0)
        try:
            for n in (4, 8):
                for _ in range(3):
                    engine.predict(rows[:n].copy())
                for shift in (0, 1, 2):  # what was written lately is what is fetched
                    rows[:] = np.roll(rows, shift, axis=0)
                    found = engine.predict_stacked([[rows[shift : shift + 1], rows[shift + 1 : shift + n - 1]]], n)
                    rows[:] = np.roll(rows, -shift, axis=0)
                    for name, array in found.items():
                        near(array[: n - 1], copied[n][name][: n - 1])
                        near(array[n - 1], array[n - 2])
            assert all(bound._graphs.keys() == {True, False} for bound in contexts(engine) if bound.graph == "graph")
        finally:
            pinned.unlock(rows.ctypes.data, 0)


def test_predict(engine, cnn):
    result = engine.predict({"x": images(3)})
    assert isinstance(result, Result)
    assert (result.backend, result.plan) == ("tensorrt", cnn[1].plans[0].file.sha256)
    for array in result.values():
        assert array.flags.owndata
        assert array.flags.writeable


def test_reference_backend_and_parity(engine, cnn):
    golden = plan.read_golden(cnn[0], cnn[1].golden)
    found = measure.measure_parity(engine, golden, parity.default_tolerance("tf32"))
    assert found.status == "passed", parity.text(found)
    assert [p.identical_rows for p in found.points] == [None, True, True, True]
    with load_engine(*cnn[:2], backend="reference") as reference:
        near(engine.predict(images(5))["scores"], reference.predict(images(5))["scores"])


def test_latency(engine):
    found = measure.measure_latency(engine, runs=20)
    assert found.status == "measured"
    assert found.host.gpu
    rows = measure.latency_by_batch(engine, runs=20)
    assert [row["batch"] for row in rows] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    "change",
    [np.asfortranarray, lambda x: x[::2], lambda x: x.astype(">f4"), lambda x: np.broadcast_to(x[:1], x.shape)],
    ids=["fortran", "strided", "big-endian", "zero strides"],
)
def test_any_memory_layout(engine, cnn, change):
    x = change(images(8))
    near(engine(x)["scores"], answer(cnn, np.array(x, np.float32))[0])


def test_bad_input_is_refused_and_nan_is_not(engine):
    for bad in (images(0), images(33), images(1)[0], images(1).astype(np.float64)):
        with pytest.raises(InputError):
            engine(bad)
    assert np.isnan(engine(np.full((2, 3, 16, 16), np.nan, np.float32))["scores"]).all()


def test_threads_hammer_one_engine(engine, cnn):
    cases = [(n, seed) for seed in range(4) for n in (1, 2, 3, 8, 17)]
    wanted = {case: answer(cnn, images(*case))[0] for case in cases}

    def work(worker):
        order = np.random.default_rng(worker).permutation(len(cases) * 5) % len(cases)
        for index in order:
            near(engine(images(*cases[index]))["scores"], wanted[cases[index]])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert engine.memory["lanes"] <= 10


def test_rows_of_several_calls_run_as_one(engine, cnn):
    parts = [images(3), images(1, 1), images(2, 2)]
    for _ in range(3):
        found = engine.predict_stacked([parts], 8)
        near(found["scores"][:6], answer(cnn, np.concatenate(parts))[0])


@pytest.mark.alone
@pytest.mark.parametrize("memory_limit", [None, 1])
def test_a_batch_of_one_spoils_no_larger_one(cnn, memory_limit):
    """TensorRT-RTX 1.4 takes kernels that it specialized for one row for every batch, given the chance."""
    with load_engine(*cnn[:2], memory_limit=memory_limit) as engine:
        for n in (1, 8, 2, 1, 32):
            for seed in range(3):
                near(engine(images(n, seed))["scores"], answer(cnn, images(n, seed))[0])


def test_two_engines_at_once(cnn):
    with load_engine(*cnn[:2]) as first, load_engine(*cnn[:2], max_contexts=1) as second:
        near(first(images(2))["scores"], second(images(2))["scores"])


def test_an_engine_is_ready_at_once_beside_another_of_its_network(cnn):
    if not runtime_cache.shares(cnn[1].plans[0].release):
        pytest.skip("releases before 1.6 load kernels anew for every context")
    wanted = {n: answer(cnn, images(n))[0] for n in (1, 8, 2)}

    def seconds(engine):
        begin = time.perf_counter()
        for n, scores in wanted.items():
            near(engine(images(n))["scores"], scores)
        return time.perf_counter() - begin

    gc.collect()
    first = load_engine(*cnn[:2], runtime_cache=False)
    alone = seconds(first)
    with load_engine(*cnn[:2], runtime_cache=False) as second:
        beside = seconds(second)
        first.close()
        seconds(second)
        saved = second.runtime_cache()
    assert saved
    assert beside < alone / 4, (beside, alone)


def test_a_context_keeps_its_shape(engine):
    for _ in range(3):
        for n in (1, 8):
            engine.predict(images(n))
    assert engine.memory["lanes"] == 2


@pytest.mark.alone
def test_memory_limit_holds_over_many_shapes(cnn):
    with load_engine(*cnn[:2], max_contexts=1) as engine:
        engine.predict(images(32))
        one = engine.memory["contexts"]
    limit = max(3 * one, 1 << 20)
    with load_engine(*cnn[:2], max_contexts=1, memory_limit=limit) as engine:
        for n in [*range(1, 33), *range(1, 33)]:
            near(engine(images(n))["scores"], answer(cnn, images(n))[0])
            assert engine.memory["contexts"] <= limit or engine.memory["lanes"] == 1


def free_memory():
    from cuda.bindings import runtime as cudart

    gc.collect()
    _, free, _ = cudart.cudaMemGetInfo()
    return free


@pytest.mark.alone
def test_closing_gives_the_memory_back(cnn):
    def use():
        with load_engine(*cnn[:2]) as engine:
            for n in (1, 8, 32):
                for _ in range(3):
                    engine.predict(images(n))

    use()  # what CUDA and TensorRT load once and keep: 230 MB on an H100
    before = free_memory()
    for _ in range(3):
        use()
    assert before - free_memory() < 16 << 20


@pytest.mark.alone
def test_out_of_memory_is_an_error_and_the_engine_stays_usable(cnn):
    import torch

    with load_engine(*cnn[:2]) as engine:
        near(engine(images(1))["scores"], answer(cnn, images(1))[0])
        held = []
        try:
            for size in (1 << 30, 1 << 26, 1 << 22, 1 << 20):
                while True:
                    try:
                        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                    except torch.cuda.OutOfMemoryError:
                        break
            refused = []
            for n in range(2, 33):
                try:
                    near(engine(images(n))["scores"], answer(cnn, images(n))[0])
                except DeviceError as error:
                    refused.append(error)
            # Whether any call is refused depends on how small a context is; what is refused says how to help itself.
            assert all("free:" in str(error) and "max_contexts" in error.remedy for error in refused)
        finally:
            held.clear()
            torch.cuda.empty_cache()
        near(engine(images(5))["scores"], answer(cnn, images(5))[0])


# --- tensors on the GPU ---


def test_torch_tensors_on_the_gpu(engine, cnn):
    import torch

    for seed in range(3):
        for n in (1, 8):
            x = torch.from_numpy(images(n, seed)).cuda()
            found = engine(x)
            assert found["scores"].is_cuda
            assert found["more"][0] is x
            near(found["scores"].cpu(), answer(cnn, images(n, seed))[0])


def test_order_of_torchs_streams(engine, cnn):
    """Input made and output used on a stream that is busy: without an order between streams the numbers are wrong."""
    import torch

    x = torch.from_numpy(images(8)).cuda()
    engine(x)
    want = answer(cnn, images(8) * 2)[0]
    busy = torch.randn(4096, 4096, device="cuda")
    for stream in (torch.cuda.Stream(), torch.cuda.current_stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(10):
                given = torch.zeros_like(x)
                for _ in range(20):
                    busy = (busy @ busy).clamp(-1, 1)
                given.copy_(x).mul_(2)
                total = engine(given)["scores"] + 0
                del given
                near(total.cpu(), want)


def test_a_slice_of_a_tensor(engine, cnn):
    import torch

    x = torch.from_numpy(images(9)).cuda()
    flat = torch.zeros(x.numel() + 1, device="cuda")
    flat[1:] = x.flatten()
    near(engine(flat[1:].view(x.shape))["scores"].cpu(), answer(cnn, images(9))[0])
    near(engine(x[2:5])["scores"].cpu(), answer(cnn, images(9)[2:5])[0])
    with pytest.raises(InputError, match="not contiguous"):
        engine(x[::2])
    with pytest.raises(InputError, match="float16"):
        engine(x.half())


def test_other_libraries_tensors_by_dlpack(engine, cnn):
    import torch

    class Other:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **settings):
            return self.tensor.__dlpack__(**settings)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    found = engine(Other(torch.from_numpy(images(4)).cuda()))
    assert isinstance(found["scores"], np.ndarray)
    near(found["scores"], answer(cnn, images(4))[0])


def test_threads_with_tensors_on_both_sides(engine, cnn):
    import torch

    want = {n: answer(cnn, images(n))[0] for n in (1, 4)}

    def work(worker):
        for turn in range(30):
            n = (1, 4)[(worker + turn) % 2]
            x = images(n)
            if worker % 2:
                near(engine(torch.from_numpy(x).cuda())["scores"].cpu(), want[n])
            else:
                near(engine(x)["scores"], want[n])
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


# --- profiles, dtypes, structures ---


def test_all_profiles_are_used(tmp_path_factory):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
    spec = mlflow_trt.Input(profiles=[((1, 1, 2), 32), ((2, 32, 64), 32)])
    folder, described, _ = save(tmp_path_factory, "profiles", model, [spec])
    with load_engine(folder, described) as engine:
        for n, profile in ((1, 0), (2, 0), (3, 1), (64, 1), (1, 0), (33, 1)):
            x = np.random.default_rng(n).standard_normal((n, 32)).astype(np.float32)
            for _ in range(3):
                (found,) = (result := engine.predict(x)).values()
                assert result.profile == profile
                with torch.no_grad():
                    near(found, model.cpu()(torch.from_numpy(x)))


def test_integers_booleans_and_half_precision(tmp_path_factory):
    import torch

    class Pool(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = torch.nn.Embedding(100, 32)

        def forward(self, ids, mask):
            x = self.embed(ids) * mask[..., None]
            return x.sum(1), ids + 1, mask.logical_not(), x.sum()

    model = Pool().eval()
    shape = ((1, 2, 4), (4, 8, 16))
    specs = [mlflow_trt.Input(shape, "int64"), mlflow_trt.Input(shape, "bool")]
    folder, described, _ = save(tmp_path_factory, "integers", model, specs, precision="fp16")
    random = np.random.default_rng(0)
    with load_engine(folder, described) as engine:
        for n in (1, 4, 2):
            ids, mask = random.integers(0, 100, (n, 8)), random.random((n, 8)) > 0.5
            for _ in range(3):
                total, following, inverse, scalar = engine(ids, mask)
                with torch.no_grad():
                    want = model.cpu()(torch.from_numpy(ids), torch.from_numpy(mask))
                near(total, want[0], 1e-2)
                np.testing.assert_array_equal(following, ids + 1)
                np.testing.assert_array_equal(inverse, ~mask)
                assert following.dtype == np.int64
                assert inverse.dtype == np.bool_
                assert scalar.shape == ()
                assert abs(float(scalar) - float(want[3])) <= 1e-2 * float(want[0].abs().sum())


# --- engines that someone else built ---


def tensorrt():
    return pytest.importorskip("tensorrt_rtx")


def build(define):
    """Builds with TensorRT's own Python interface; skips where this release refuses the network."""
    trt = tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    profile = builder.create_optimization_profile()
    define(trt, network, profile)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    made = builder.build_serialized_network(network, config)
    if made is None:
        pytest.skip("this release of TensorRT-RTX does not build the network")
    return bytes(memoryview(made))


def describe(folder, serialized):
    """A record as the flavor makes it of a foreign engine."""
    header = plan.read_header(serialized)
    (folder / "model.plan").write_bytes(serialized)
    path = folder / "model.plan"
    file = File(path="model.plan", size=len(serialized), sha256=plan.digest(path))
    return record(file=file, runtime=header.runtime, release=header.release, capabilities=header.capabilities)


def test_a_foreign_engine_describes_itself(tmp_path):
    def define(trt, network, profile):
        x = network.add_input("images", trt.float32, (-1, 4))
        total = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM)
        total.get_output(0).name = "twice"
        network.mark_output(total.get_output(0))
        profile.set_shape("images", (1, 4), (2, 4), (8, 4))

    serialized = build(define)
    made = describe(tmp_path, serialized)
    face, profiles = describe_engine(serialized, made)
    assert [(t.name, t.dtype, len(t.shape), t.shape[1]) for t in face.inputs] == [("images", "float32", 2, 4)]
    assert profiles[0]["images"].max == (8, 4)
    with TensorRTEngine(tmp_path, made) as engine:
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        for _ in range(3):
            np.testing.assert_array_equal(engine(x), x * 2)
        np.testing.assert_array_equal(engine.predict({"images": x})["twice"], x * 2)
        with pytest.raises(InputError, match="above the maximum"):
            engine(np.ones((9, 4), np.float32))
        assert engine.layers()


def test_a_shape_tensor_input(tmp_path):
    def define(trt, network, profile):
        x = network.add_input("x", trt.float32, (8,))
        size = network.add_input("size", trt.int64, (1,))
        part = network.add_slice(x, (0,), (1,), (1,))
        part.set_input(2, size)
        part.get_output(0).name = "part"
        network.mark_output(part.get_output(0))
        profile.set_shape_input("size", (1,), (4,), (8,))

    made = describe(tmp_path, build(define))
    with TensorRTEngine(tmp_path, made) as engine:
        x = np.arange(8, dtype=np.float32)
        for size in (1, 5, 8, 5, 1):
            found = engine.predict({"x": x, "size": np.array([size])})["part"]
            np.testing.assert_array_equal(found, x[:size])


def test_outputs_whose_shape_the_data_decide(tmp_path):
    def define(trt, network, profile):
        x = network.add_input("x", trt.float32, (-1,))
        zero = network.add_constant((1,), np.zeros(1, np.float32)).get_output(0)
        positive = network.add_elementwise(x, zero, trt.ElementWiseOperation.GREATER).get_output(0)
        found = network.add_non_zero(positive).get_output(0)
        found.name = "places"
        network.mark_output(found)
        profile.set_shape("x", (1,), (8,), (1000,))

    made = describe(tmp_path, build(define))
    with TensorRTEngine(tmp_path, made) as engine:
        for seed, n in enumerate((8, 1000, 8, 1)):
            x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
            found = engine.predict({"x": x})["places"]
            np.testing.assert_array_equal(found.ravel(), np.flatnonzero(x > 0))
        assert engine.predict({"x": -np.ones(5, np.float32)})["places"].size == 0


def test_boxes_kept_by_nms(tmp_path):
    """A second kind of data-dependent output, for releases that do not build the first."""

    def define(trt, network, profile):
        boxes = network.add_input("boxes", trt.float32, (1, 6, 1, 4))
        scores = network.add_input("scores", trt.float32, (1, 6, 1))
        keep = network.add_constant((), np.array(6, np.int32)).get_output(0)
        nms = network.add_nms(boxes, scores, keep)
        nms.set_input(3, network.add_constant((), np.array(0.5, np.float32)).get_output(0))
        nms.set_input(4, network.add_constant((), np.array(0.1, np.float32)).get_output(0))
        nms.get_output(0).name = "kept"
        network.mark_output(nms.get_output(0))

    made = describe(tmp_path, build(define))
    corners = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(6)], np.float32).reshape(1, 6, 1, 4)
    with TensorRTEngine(tmp_path, made) as engine:
        for count in (6, 2, 4, 0):
            scores = np.zeros((1, 6, 1), np.float32)
            scores[0, :count] = 0.9
            found = engine.predict({"boxes": corners, "scores": scores})["kept"]
            assert len(found) == count


# --- loading ---


def test_bytes_that_only_look_like_a_plan(tmp_path):
    release = host.runtime_release("tensorrt_rtx")
    head = bytearray(4096)
    head[:4] = b"vtrt"
    head[16:24] = len(head).to_bytes(8, "little")
    head[24:28] = bytes(int(n) for n in release.split("."))
    made = describe(tmp_path, bytes(head))
    with pytest.raises(PlanError, match="refused the plan"):
        TensorRTEngine(tmp_path, made)


def test_device_index_too_high(cnn):
    with pytest.raises(DeviceError, match="index 99"):
        load_engine(*cnn[:2], device=99)


def test_another_release_is_refused(cnn):
    folder, described, _ = cnn
    other = described.plans[0].model_copy(update={"release": "1.0.0.1"})
    with pytest.raises(CompatibilityError, match=r"1\.0\.0\.1"):
        load_engine(folder, described.model_copy(update={"plans": (other,)}))


def test_layers(engine):
    rows = engine.layers()
    assert rows
    assert all(row["name"] for row in rows)


CHILD = """
import json, logging, sys, time
from pathlib import Path
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
import numpy as np
from mlflow_trt.engine import TensorRTEngine
from mlflow_trt.engine import load as load_engine
from mlflow_trt.plan import manifest
folder = Path(sys.argv[1])
begin = time.perf_counter()
with load_engine(folder, manifest.read(folder)) as engine:
    x = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    answer = engine.predict({"x": x})["scores"]
    seconds = time.perf_counter() - begin
imported = [m for m in ("torch", "torch_tensorrt") if m in sys.modules]
print(json.dumps({"seconds": seconds, "sum": float(np.abs(answer).sum()), "imported": imported}))
"""


def child(cnn, cache):
    import json

    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(cnn[0])],
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_TRT_CACHE": str(cache)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def test_a_second_process_finds_the_compiled_kernels(cnn, tmp_path):
    made = cnn[1].plans[0]
    first, _ = child(cnn, tmp_path)
    path = kernel_files.path_for(made.file.sha256, made.release, host.probe())
    saved = tmp_path / path.relative_to(mlflow_trt.cache.folder())
    assert kernel_files.read(saved)
    second, log = child(cnn, tmp_path)
    assert "Took a runtime cache" in log
    assert first["sum"] == second["sum"]
    assert second["seconds"] < first["seconds"]
    assert first["imported"] == second["imported"] == []
    saved.write_bytes(saved.read_bytes()[:-7])
    third, log = child(cnn, tmp_path)
    assert "damaged" in log
    assert third["sum"] == first["sum"]


def test_the_runtime_cache_can_be_shipped(cnn, tmp_path):
    folder, described, _ = cnn
    with load_engine(folder, described) as engine:
        engine.predict(images(8))
        content = engine.runtime_cache()
    assert content
    file = plan.write_file(folder, "plans/shipped.bin", content)
    made = described.plans[0].model_copy(update={"runtime_cache": file})
    (folder / "manifest.json").write_text(described.model_copy(update={"plans": (made,)}).to_json())
    try:
        _, log = child(cnn, tmp_path)
    finally:
        (folder / "manifest.json").write_text(described.to_json())
    for part in runtime_cache.unpacked(content).values():
        assert f"Took a runtime cache of {len(part)} bytes" in log


PEAK = """
import sys
from pathlib import Path
from mlflow_trt.engine import TensorRTEngine
from mlflow_trt.engine import load as load_engine
from mlflow_trt.plan import manifest

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

small, large = map(Path, sys.argv[1:3])
load_engine(small, manifest.read(small), runtime_cache=False)  # CUDA, TensorRT and their libraries
before = peak()
load_engine(large, manifest.read(large), runtime_cache=False)
print(peak() - before)
"""


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_loading_takes_little_more_host_memory_than_the_plan(cnn, tmp_path_factory):
    import torch

    model = torch.nn.Sequential(*[torch.nn.Linear(8192, 8192) for _ in range(3)]).eval()
    folder, described, _ = save(tmp_path_factory, "large", model, [mlflow_trt.Input((1, 8192))])
    size = described.plans[0].file.size
    assert size > 700 << 20
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(cnn[0]), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1.15 * size, f"{int(done.stdout) / size:.2f} times the plan"


def test_closing_waits_for_running_calls(cnn):
    engine = load_engine(*cnn[:2])
    engine.predict(images(8))
    failed = []

    def work():
        try:
            while True:
                engine.predict(images(8))
        except DeviceError:
            pass
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed
