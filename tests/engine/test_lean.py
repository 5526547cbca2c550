"""Full TensorRT's interface against NVIDIA's real lean runtime of it, and how that is used. No engine runs here.

The builder of full TensorRT can't be had from PyPI, so there is no plan to load; what is tested is every name and call
that the runtime uses, how the module is found and chosen, and that nothing reaches it where it would crash.
"""

from __future__ import annotations

import re

import forged
import lean
import pytest
import trt_api
from manifests import host, manifest, record

from mlflow_trt import plan
from mlflow_trt.plan.host import probe
from mlflow_trt.plan.manifest import File

RELEASES = pytest.mark.parametrize("release", lean.RELEASES)
NEWEST = lean.RELEASES[-1]


# --- what is used is there ---


def test_the_source_is_read():
    """The tests below are worth what this finds."""
    uses = trt_api.used(trt_api.RUNTIME)
    assert trt_api.Use("ICudaEngine.get_tensor_profile_shape", 2) in uses
    assert trt_api.Use("IExecutionContext.set_device_memory", 2) in uses
    assert trt_api.Use("Runtime.deserialize_cuda_engine", 1) in uses
    assert trt_api.Use("Runtime.engine_host_code_allowed", None) in uses
    assert trt_api.Use("ExecutionContextAllocationStrategy.USER_MANAGED", None) in uses
    assert trt_api.Use("ILogger.Severity.INTERNAL_ERROR", None) in uses
    assert len(uses) > 40
    assert {use.name for use in uses} >= trt_api.ONLY_RTX | trt_api.NOT_IN_LEAN


def test_tensorrt_rtx_has_all_that_is_used():
    assert trt_api.missing(pytest.importorskip("tensorrt_rtx"), trt_api.used(trt_api.RUNTIME)) == []


@RELEASES
def test_full_tensorrt_has_all_that_is_used(release):
    code = (
        "import tensorrt_lean_bindings as trt, trt_api\n"
        "print(trt.__version__)\n"
        "print(*trt_api.missing(trt, trt_api.used(trt_api.RUNTIME)), sep='\\n')\n"
    )
    version, *missing = lean.output(release, code).splitlines()
    assert version == release
    # Both are sets of what the source guards: a use without a guard shows here, and a guard that nothing needs.
    assert set(missing) == trt_api.ONLY_RTX | trt_api.NOT_IN_LEAN


def test_a_call_that_does_not_exist_is_noticed():
    trt = pytest.importorskip("tensorrt_rtx")
    wrong = {
        trt_api.Use("ICudaEngine.get_tensor_colour", 1),
        trt_api.Use("ICudaEngine.get_tensor_shape", 2),
        trt_api.Use("IExecutionContext.execute_async_v3", 0),
        trt_api.Use("TensorIOMode.BOTH", None),
    }
    assert trt_api.missing(trt, wrong) == sorted(use.name for use in wrong)


@RELEASES
def test_classes_of_ours_derive_from_the_real_ones(release):
    code = """
import inspect, logging
from mlflow_trt.engine.context import OutputMemory
from mlflow_trt.engine.trt import Log, import_runtime
from mlflow_trt.plan.dtypes import TENSORRT
trt = import_runtime("tensorrt_lean", None)
log = Log(trt)
log.logger.log(trt.ILogger.Severity.ERROR, "broken")
assert log.text() == "broken"
allocator = OutputMemory(trt).allocator
asked = " ".join(trt.IOutputAllocator.__doc__.split())
for name in ("reallocate_output_async", "reallocate_output", "notify_shape"):
    theirs = asked.split(f"{name}(self, ")[1].split(")")[0].split(", ")
    assert len(inspect.signature(getattr(allocator, name)).parameters) == len(theirs), name
print(*(set(trt.DataType.__members__) - set(TENSORRT)))
"""
    assert lean.output(release, code) == ""


# --- it is found, and chosen ---


@RELEASES
def test_it_is_found_without_importing_it(release):
    code = (
        "import sys; from mlflow_trt.plan.host import probe; found = probe().runtimes['tensorrt_lean']; "
        "print(found, [m for m in sys.modules if m.startswith('tensorrt_lean')])"
    )
    assert lean.output(release, code) == f"{release} []"


def test_the_remedy_installs_what_was_installed_here(monkeypatch):
    from mlflow_trt.plan import host as probing

    command = probing.pip_install("tensorrt_lean", NEWEST)
    assert command == f"pip install tensorrt-lean-cu13-bindings=={NEWEST} tensorrt-lean-cu13-libs=={NEWEST}"
    assert {d.name for d in lean.folder(NEWEST).glob("*.dist-info")} == {
        f"{package.replace('-', '_').replace('==', '-')}.dist-info" for package in command.split()[2:]
    }


# --- nothing reaches it where it would crash ---


def stored(folder, release: str, **changes):
    """A plan of full TensorRT with nothing behind its header, and its manifest."""
    content = forged.full(release)
    file = plan.write_file(folder, "plans/p/model.plan", content)
    return record(
        file=File.model_validate(file.model_dump()),
        runtime="tensorrt",
        release=release,
        capabilities=None,
        version_compatible=True,
        **changes,
    )


@pytest.mark.skipif(probe().gpu is not None, reason="is about machines without a GPU")
@RELEASES
def test_without_a_gpu_it_crashes_on_any_bytes_and_is_not_asked(release, tmp_path):
    content = tmp_path / "bytes"
    content.write_bytes(b"no plan" * 100)
    code = (
        "import tensorrt_lean_bindings as trt; runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)); "
        f"print(runtime.deserialize_cuda_engine(open({str(content)!r}, 'rb').read()))"
    )
    assert lean.run(release, code).returncode < 0  # a signal: there is no exception to catch

    made = stored(tmp_path, release)
    (tmp_path / "manifest.json").write_text(manifest(made).to_json())
    code = f"""
from pathlib import Path
import mlflow_trt
from mlflow_trt.plan import manifest
from mlflow_trt.engine import TensorRTEngine
from mlflow_trt.engine.engine import describe_engine
from mlflow_trt.plan.host import probe
folder = Path({str(tmp_path)!r})
made = manifest.read(folder).plans[0]
for load in (
    lambda: mlflow_trt.load_model(folder),
    lambda: TensorRTEngine(folder, made),
    lambda: describe_engine((folder / made.file.path).read_bytes(), made),
    lambda: mlflow_trt.save_model(folder / made.file.path, folder / "saved"),
):
    try:
        print("done", load())
    except mlflow_trt.TrtError as error:
        print(type(error).__name__, error.found.splitlines()[0])
"""
    answers = lean.output(release, code).splitlines()
    assert [answer.split(" ", 1)[0] for answer in answers] == [
        "CompatibilityError",
        "DeviceError",
        "DeviceError",
        "done",
    ]


@pytest.mark.gpu
@RELEASES
def test_on_a_gpu_it_refuses_bytes_that_only_look_like_a_plan(release, tmp_path):
    made = stored(tmp_path, release)
    (tmp_path / "manifest.json").write_text(manifest(made).to_json())
    code = f"""
from pathlib import Path
from mlflow_trt import PlanError
from mlflow_trt.plan import manifest
from mlflow_trt.engine import TensorRTEngine
folder = Path({str(tmp_path)!r})
try:
    TensorRTEngine(folder, manifest.read(folder).plans[0])
except PlanError as error:
    print(error.found)
"""
    assert re.search(rf"^tensorrt_lean {release} refused the plan: \S", lean.output(release, code))


def test_on_a_machine_with_a_gpu_the_lean_module_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    """A stand-in for the GPU: which module the engine asks for."""
    from mlflow_trt.engine import engine

    asked = []

    class Stop(Exception):
        pass

    def deserialized(name, release, content):
        asked.append((name, release))
        raise Stop

    monkeypatch.setattr(engine, "Deserialized", deserialized)
    monkeypatch.setattr(engine.cuda, "require_device", lambda device: None)
    monkeypatch.setattr(engine.cuda, "enter", lambda device: None)
    made = stored(tmp_path, "10.15.1.29")
    for runtimes in ({"tensorrt_lean": NEWEST}, {"tensorrt_lean": NEWEST, "tensorrt": "10.15.1.29"}):
        with pytest.raises(Stop):
            engine.TensorRTEngine(tmp_path, made, host=host(runtimes=runtimes))
    assert asked == [("tensorrt_lean", "10.15.1.29"), ("tensorrt", "10.15.1.29")]
