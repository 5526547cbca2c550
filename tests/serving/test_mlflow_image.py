"""``mlflow models generate-dockerfile``: what the image installs holds no torch, and serves from that.

No Docker here: pip's resolver answers what the image's ``pip install`` would take, and an environment with exactly the
distributions that the model's requirements lead to starts the server.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import environments
import mlflow
import mlflow.models.cli
import pytest
import servers
from click.testing import CliRunner
from environments import clean

import mlflow_trt

from . import mixed
from .mixed import mixed_folder as mixed_folder

SOURCE = Path(mlflow_trt.__file__).parents[1]
FOREIGN = re.compile("torch|triton")


def test_the_dockerfile_takes_the_models_own_python_and_requirements(mixed_folder, tmp_path):
    command = ["generate-dockerfile", "--model-uri", str(mixed_folder), "--output-directory", "image"]

    assert CliRunner().invoke(mlflow.models.cli.commands, command, catch_exceptions=False).exit_code == 0

    text = (tmp_path / "image/Dockerfile").read_text()
    python = re.search(r"python_version: (\S+)", (mixed_folder / "MLmodel").read_text())
    assert python is not None
    assert f"\nFROM python:{python[1]}-slim\n" in text
    copied = re.search(r"COPY (\S+) /opt/ml/model", text)
    assert copied is not None
    requirements = (tmp_path / "image" / copied[1] / "requirements.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in requirements] == ["mlflow", "mlflow-trt", "numpy", "tensorrt-rtx"]
    installed = re.findall(r"pip install (\S+)", text)
    assert installed == [f"mlflow=={mlflow.__version__}"]
    assert "C._install_pyfunc_deps('/opt/ml/model', install_mlflow=False, env_manager='local')" in text


@pytest.mark.slow
def test_pip_would_install_no_torch(mixed_folder, tmp_path):
    pip = [sys.executable, "-m", "pip"]
    if not (SOURCE / "pyproject.toml").exists():
        pytest.skip("needs this package's source, to build its wheel")
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", SOURCE]
    subprocess.run(wheel, check=True, capture_output=True, timeout=120)
    # What the Dockerfile and MLflow's start-up in the image install.
    wanted = [f"mlflow=={mlflow.__version__}", "gunicorn[gevent]", "-r", mixed_folder / "requirements.txt"]
    resolve = [*pip, "install", "--dry-run", "--ignore-installed", "--retries=1", "--report=report.json", "--quiet"]

    done = subprocess.run(
        [*resolve, "--find-links=wheels", *wanted], capture_output=True, text=True, timeout=300, check=False
    )

    if done.returncode and re.search("connection|resolution|timed out", done.stderr, re.IGNORECASE):
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    found = {item["metadata"]["name"].lower(): item for item in json.loads(Path("report.json").read_text())["install"]}
    assert "mlflow-trt" in found
    assert "tensorrt_rtx_cu13_libs" in {name.replace("-", "_") for name in found}
    assert [name for name in found if FOREIGN.search(name)] == []


@pytest.fixture(scope="module")
def image_python(mixed_folder, tmp_path_factory) -> Path:
    """A Python that has what the model's requirements lead to, as it is installed here, and nothing else."""
    folder = tmp_path_factory.mktemp("image")
    python = environments.make(folder, (mixed_folder / "requirements.txt").read_text().splitlines())
    uvicorn = folder / "bin/uvicorn"  # MLflow starts it by name
    uvicorn.write_text(f"#!{python}\nfrom uvicorn.main import main\nmain()\n")
    uvicorn.chmod(0o755)
    return python


@pytest.mark.skipif(mixed.BACKEND == "tensorrt", reason="there is a GPU")
def test_without_a_gpu_the_image_says_what_is_missing(image_python, mixed_folder):
    command = [image_python, "-m", "mlflow", "models", "serve", "-m", mixed_folder, "--env-manager", "local"]

    done = subprocess.run(
        [*command, "--port", "0"],
        env={**clean(), **servers.programs_of(image_python)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode != 0
    assert "No plan of this model loads on this host." in done.stderr
    assert re.search(r"This host: no GPU, tensorrt_rtx [\d.]+, linux", done.stderr)
    assert "use a machine with an NVIDIA GPU" in done.stderr


@pytest.mark.skipif(mixed.BACKEND == "tensorrt", reason="there is a GPU")
def test_without_torch_the_reference_backend_says_so(image_python, mixed_folder):
    code = f"import mlflow; mlflow.pyfunc.load_model({str(mixed_folder)!r})"

    done = subprocess.run([image_python, "-c", code], env={**clean(), **mixed.ENV}, capture_output=True, text=True)

    assert "torch is not installed, and the reference backend runs the program with it." in done.stderr


@pytest.mark.gpu
def test_on_a_gpu_the_image_answers(image_python, mixed_folder, tmp_path):
    from .test_mlflow_serve import ask

    given = mixed.inputs()
    with servers.model_server(str(mixed_folder), tmp_path / "served", clean(), python=image_python) as server:
        status, answer = ask(server, {"inputs": mixed.lists(given)})

    assert status == 200
    mixed.assert_answers(answer["predictions"], given)
