"""What is promised of installing: the extras agree, every lower bound is tested, and a version's URI is enough."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import environments
import mlflow
import pytest
from manifests import MANIFEST, MEASURED
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import mlflow_trt
from mlflow_trt.plan import compatibility
from mlflow_trt.plan.manifest import Host

SOURCE = Path(mlflow_trt.__file__).parents[1]
OFFLINE = re.compile("connection|resolution|timed out|No matching distribution found", re.IGNORECASE)

needs_source = pytest.mark.skipif(not (SOURCE / "pyproject.toml").exists(), reason="needs this package's source")


def project() -> dict:
    return tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]


def promised() -> dict[str, SpecifierSet]:
    """Everything that users get, by name; the tests' own tools are not promised, but for MLflow as a whole."""
    extras = {
        name: lines for name, lines in project()["optional-dependencies"].items() if name not in ("test", "docs", "dev")
    }
    lines = [*project()["dependencies"], *(line for lines in extras.values() for line in lines)]
    lines += [line for line in project()["optional-dependencies"]["test"] if line.startswith("mlflow>")]
    found: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, lines):
        # Two extras that name one package must say the same of it.
        assert found.setdefault(requirement.name, requirement.specifier) == requirement.specifier, requirement
    return found


def lower_bound(specifiers: SpecifierSet) -> Version:
    (bound,) = [Version(s.version) for s in specifiers if s.operator == ">="]
    return bound


@needs_source
def test_the_oldest_releases_that_are_tested_are_the_lower_bounds():
    lines = [line.split("#")[0].strip() for line in (SOURCE / "tests/oldest.txt").read_text().splitlines()]
    pins = {r.name: r.specifier for r in map(Requirement, filter(None, lines))}
    del pins["starlette"]  # MLflow's

    bounds = promised()

    assert set(pins) == set(bounds)
    for name, specifiers in pins.items():
        (pin,) = specifiers
        assert pin.operator == "=="
        assert Version(pin.version) == lower_bound(bounds[name]), name


@needs_source
def test_the_oldest_and_newest_python_are_those_of_make():
    bounds = {s.operator: s.version for s in SpecifierSet(project()["requires-python"])}
    newest = f"3.{int(bounds['<'].split('.')[1]) - 1}"
    makefile = (SOURCE / "Makefile").read_text()

    assert re.search(r"^OLDEST_PYTHON := (\S+)$", makefile, re.MULTILINE)[1] == bounds[">="]
    assert re.search(r"^NEWEST_PYTHON := (\S+)$", makefile, re.MULTILINE)[1] == newest
    assert f"Python {bounds['>=']} to {newest}" in (SOURCE / "README.md").read_text()


def test_runtime_and_conversion_promise_the_same_releases_of_tensorrt_rtx():
    bounds = promised()["tensorrt-rtx"]  # one value: promised() compares the extras

    assert [str(s) for s in bounds if s.operator == "<"], "a plan of a newer release would be refused"


@needs_source
@pytest.mark.slow
def test_fresh_hosts_get_one_release_and_only_those_that_convert_pytorch_get_it(tmp_path):
    folders = [tmp_path / extra for extra in ("rtx", "convert-rtx", "convert-onnx-rtx")]
    with ThreadPoolExecutor(len(folders)) as pool:  # pip waits for the index most of the time
        runtime, of_torch, of_onnx = pool.map(lambda folder: resolve(lines_of(folder.name), folder), folders)

    assert runtime["tensorrt-rtx"] == of_torch["tensorrt-rtx"] == of_onnx["tensorrt-rtx"]
    assert "torch" in of_torch
    assert not {name for name in of_onnx if name.startswith(("torch", "onnxscript"))}


def lines_of(extra: str) -> list[str]:
    """What an extra asks for: the lines themselves, for pip would build the package first to read them."""
    return [*project()["dependencies"], *project()["optional-dependencies"][extra]]


def resolve(wanted: list[str], folder: Path) -> dict[str, str]:
    """What pip would install into an empty environment, by name; skips the test where no package index is reached."""
    folder.mkdir()
    # fast-deps: the names of a wheel's requirements are fetched, not the gigabytes behind them.
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps"]
    done = subprocess.run(
        [*pip, "--retries=1", "--quiet", "--report=report.json", *wanted],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    items = json.loads((folder / "report.json").read_text())["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in items}


HERE = Host(gpu="NVIDIA L4", capability="8.9", os="linux", machine="x86_64", runtimes={"tensorrt_rtx": "1.7.1.116"})


def test_a_refusal_for_its_release_names_the_command_with_the_models_own_uri():
    with pytest.raises(mlflow_trt.CompatibilityError) as caught:
        compatibility.select(MANIFEST, HERE, "models:/resnet/3")

    assert caught.value.remedy.startswith("pip install $(mlflow-trt inspect models:/resnet/3 --requirements)")
    assert "pip install tensorrt" not in caught.value.remedy
    assert "tensorrt_rtx 1.7.1.116 is installed, and the plan was built by 1.6.1.120." in caught.value.found


def test_the_command_takes_a_folder_with_spaces(tmp_path):
    assert "'a folder'" in compatibility.install_command(Path("a folder"))


def test_a_refusal_for_the_gpu_alone_names_no_release():
    other_gpu = HERE.model_copy(update={"capability": "7.5", "runtimes": {"tensorrt_rtx": MEASURED.release}})

    with pytest.raises(mlflow_trt.CompatibilityError) as caught:
        compatibility.select(MANIFEST, other_gpu, "models:/resnet/3")

    assert "--requirements" not in caught.value.remedy


@pytest.mark.parametrize(
    ("capability", "needed"),
    [("8.9", "tensorrt-rtx==1.6.1.120"), ("9.0", "tensorrt-rtx==1.6.1.120"), (None, "tensorrt-rtx==1.6.1.120")],
)
def test_the_release_is_that_of_the_first_plan_that_the_gpu_takes(capability, needed):
    assert compatibility.requirements(MANIFEST, HERE.model_copy(update={"capability": capability})) == [needed]


def test_another_gpu_needs_another_plans_release():
    rtx, full = MANIFEST.plans
    only_86 = MANIFEST.model_copy(update={"plans": (rtx.model_copy(update={"capabilities": ("12.0",)}), full)})
    h100 = HERE.model_copy(update={"capability": "9.0"})

    assert compatibility.requirements(only_86, h100) == ["tensorrt==11.1.0.23"]


def test_where_no_release_helps_the_reasons_are_told():
    with pytest.raises(mlflow_trt.CompatibilityError, match=r"The GPU has compute capability 7\.5"):
        compatibility.requirements(MANIFEST, HERE.model_copy(update={"capability": "7.5"}))


@pytest.fixture(scope="module")
def base_python(tmp_path_factory) -> Path:
    """A Python that has this package's base install, and nothing else."""
    python = environments.make(tmp_path_factory.mktemp("base"), ["mlflow-trt"])
    command = python.parent / "mlflow-trt"
    command.write_text(f"#!{python}\nfrom mlflow_trt.cli.main import main\nmain()\n")
    command.chmod(0o755)
    return python


def test_the_command_works_with_the_base_install_and_fetches_no_plan(
    monkeypatch, tracking_server, base_python, tmp_path
):
    tracking_server.use(monkeypatch)
    with mlflow.start_run() as run:
        mlflow.log_text(MANIFEST.to_json(), "model/manifest.json")
        mlflow.log_text("name: a model", "model/MLmodel")
    uri = f"runs:/{run.info.run_id}/model"
    told = compatibility.install_command(uri)
    env = {
        **environments.clean(),
        "PATH": f"{base_python.parent}:/usr/bin:/bin",
        "MLFLOW_TRT_CACHE": str(tmp_path / "c"),
    }

    # The shell's own reading of the command, with a stand-in for pip that shows what it is given.
    done = subprocess.run(
        ["sh", "-c", told.replace("pip install", "echo", 1)], env=env, capture_output=True, text=True, timeout=60
    )

    assert done.stdout == "tensorrt-rtx==1.6.1.120\n", done.stderr
    assert [p.name for p in (tmp_path / "c").rglob("*") if p.is_file()] == ["manifest.json"]
    assert shutil.which("nvidia-smi") or subprocess.run([base_python, "-c", "import tensorrt_rtx"]).returncode != 0
