from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from interfaces import branch, interface, leaf, tensor
from manifests import manifest, record
from programs import nested, save

from mlflow_trt.engine import load as load_engine
from mlflow_trt.errors import DeviceError, InputError, ManifestError, PlanError, SettingError
from mlflow_trt.plan.manifest import ConstantLeaf

torch = pytest.importorskip("torch", reason="the reference backend runs with it")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested")
    return (folder, *nested(folder))


@pytest.fixture
def engine(model):
    folder, described, _ = model
    with load_engine(folder, described, backend="reference") as made:
        yield made


def inputs(n=3):
    random = np.random.default_rng(n)
    return random.standard_normal((n, 4)).astype(np.float32), random.standard_normal((n, 3)).astype(np.float32)


def test_native_call_is_the_models_own(engine, model):
    x, b = inputs()
    answer = engine(x, d={"b": b})
    with torch.no_grad():
        want = model[2](torch.from_numpy(x), d={"b": torch.from_numpy(b)})
    np.testing.assert_allclose(answer["y"], want["y"], rtol=1e-6)
    assert answer["n"][0] is x
    assert answer["n"][1] is None
    np.testing.assert_allclose(answer["n"][2], want["n"][2], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(answer["best"], want["best"])
    assert answer["best"].dtype == np.int64


def test_torch_in_torch_out(engine):
    x, b = (torch.from_numpy(a) for a in inputs())
    answer = engine(x.requires_grad_(), d={"b": b})
    assert isinstance(answer["y"], torch.Tensor)
    assert answer["n"][0] is x
    assert not answer["y"].requires_grad


def test_predict_says_which_backend_answered(engine):
    x, b = inputs()
    result = engine.predict({"x": x, "d_b": b})
    assert list(result) == ["y", "relu", "best"]
    assert (result.backend, result.plan, result.profile) == ("reference", None, 0)
    for made in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert made.backend == "reference"
        np.testing.assert_array_equal(made["y"], result["y"])
    assert isinstance(result, dict)


@pytest.mark.parametrize("layout", ["fortran", "big-endian", "read-only", "strided", "zero strides", "list"])
def test_takes_any_memory_layout(engine, layout):
    x, b = inputs(2)
    read_only = x.copy()
    read_only.flags.writeable = False
    given = {
        "fortran": np.asfortranarray(x),
        "big-endian": x.astype(">f4"),
        "read-only": read_only,
        "strided": np.repeat(x, 2, axis=0)[::2],
        "zero strides": np.broadcast_to(x[:1], (2, 4)),
        "list": x.tolist(),
    }[layout]
    want = engine.predict({"x": np.ascontiguousarray(np.asarray(given, np.float32)), "d_b": b})
    np.testing.assert_array_equal(engine.predict({"x": given, "d_b": b})["y"], want["y"])


def test_checks_calls_as_an_engine_does(engine):
    x, b = inputs(9)
    with pytest.raises(InputError, match="above the maximum"):
        engine.predict({"x": x, "d_b": b})
    with pytest.raises(InputError, match="below the minimum"):
        engine.predict({"x": x[:0], "d_b": b[:0]})
    with pytest.raises(InputError, match="float64"):
        engine.predict({"x": x[:2].astype(np.float64), "d_b": b[:2]})
    with pytest.raises(InputError, match="'d' is missing"):
        engine(x[:2])


def test_many_threads(engine):
    x, b = inputs(4)
    want = engine.predict({"x": x, "d_b": b})["y"]
    wrong = []

    def work():
        for _ in range(20):
            found = engine(x, d={"b": b})["y"]
            if not np.allclose(found, want, rtol=1e-6):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_closed(model):
    engine = load_engine(*model[:2], backend="reference")
    engine.close()
    with pytest.raises(DeviceError, match="closed"):
        engine.predict({"x": inputs()[0], "d_b": inputs()[1]})


def test_a_damaged_program_is_refused(tmp_path):
    described, _ = nested(tmp_path)
    path = tmp_path / described.program.file.path
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PlanError, match="bytes"):
        load_engine(tmp_path, described, backend="reference")


def test_a_version_without_its_program(tmp_path):
    with pytest.raises(SettingError, match="no program to run on the CPU"):
        load_engine(tmp_path, manifest(record()), backend="reference")


def test_a_program_that_is_not_the_manifests(tmp_path):
    described, _ = nested(tmp_path)
    other = interface([tensor("x", ("batch", 4))], [tensor("y", ("batch", 3))])
    with pytest.raises(ManifestError, match="takes 2 values"):
        load_engine(tmp_path, described.model_copy(update={"interface": other}), backend="reference")


def test_bfloat16_numbers_and_weights_as_outputs(tmp_path):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(3.0))

        def forward(self, x, scale):
            return x * scale, self.weight, x.shape[0], x.float().sum()

    program = save(
        tmp_path,
        Module(),
        (torch.ones(4, 2, dtype=torch.bfloat16), 2),
        dynamic_shapes={"x": {0: torch.export.Dim.AUTO}, "scale": None},
    )
    face = interface(
        [tensor("x", ("n", 2), "float32", "bfloat16")],
        [
            tensor("y", ("n", 2), "float32", "bfloat16"),
            tensor("w", (3,)),
            tensor("n", (1,), "int64"),
            tensor("sum", ()),
        ],
        arguments=branch("tuple", branch("tuple", leaf("x"), ConstantLeaf(value=2)), branch("dict", keys=())),
        result=branch("tuple", leaf("y"), leaf("w"), leaf("n"), leaf("sum")),
    )
    described = manifest(record(), interface=face, program=program)
    with load_engine(tmp_path, described, backend="reference") as engine:
        x = np.array([[1, 2], [3, 4.5], [5, 6]], np.float32)
        y, w, n, total = engine(x, 2)
        np.testing.assert_array_equal(y, x * 2)
        assert y.dtype == np.float32
        assert (n.tolist(), n.dtype) == ([3], np.int64)
        assert (total.shape, float(total)) == ((), 21.5)
        w[:] = 99  # the caller's own copy
        assert engine(x, 2)[1].tolist() == [0, 1, 2]
        engine(x)  # what is part of the program may be left out
        with pytest.raises(InputError, match="argument 1 is 3"):
            engine(x, 3)


def test_without_torch_the_error_says_what_to_install(model, tmp_path):
    folder, described, _ = model
    path = tmp_path / "manifest.json"
    path.write_text(described.to_json())
    code = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
from mlflow_trt.engine import load as load_engine
from mlflow_trt.plan import manifest
from mlflow_trt.errors import SettingError
try:
    load_engine(Path({str(folder)!r}), manifest.parse(Path({str(path)!r}).read_text()), backend="reference")
except SettingError as error:
    print(error.remedy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"torch>={torch.__version__.split('+')[0]}" in done.stdout, done.stderr


def test_sizes_that_the_program_was_not_exported_for(tmp_path):
    """A guard that the export left in the program is an error of the inputs, not a bare assertion."""

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 2)

        def forward(self, x, ids):
            return (x + 1 if x.shape[0] % 2 == 0 else x) + self.table(ids).sum()

    auto = torch.export.Dim.AUTO
    example = (torch.ones(4, 3), torch.zeros(2, dtype=torch.int64))
    program = save(tmp_path, Module(), example, dynamic_shapes={"x": {0: auto}, "ids": None})
    face = interface(
        [tensor("x", ("n", 3)), tensor("ids", (2,), "int64")],
        [tensor("y", ("n", 3))],
        arguments=branch("tuple", branch("tuple", leaf("x"), leaf("ids")), branch("dict", keys=())),
        result=leaf("y"),
    )
    with load_engine(tmp_path, manifest(record(), interface=face, program=program), backend="reference") as engine:
        ids = np.zeros(2, np.int64)
        assert engine(np.ones((6, 3), np.float32), ids).shape == (6, 3)
        with pytest.raises(InputError, match=r"does not hold for inputs of the shapes \[5, 3\].*% 2"):
            engine(np.ones((5, 3), np.float32), ids)
        with pytest.raises(InputError, match="index out of range"):
            engine(np.ones((6, 3), np.float32), ids + 9)
