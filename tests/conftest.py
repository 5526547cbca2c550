"""What every test gets: a quiet, private MLflow in a temporary folder, and real servers for those that ask."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import migrated
import pytest
import servers
import warm
from servers import BUCKET, Server

# PyTorch takes all cores in each of pytest-xdist's workers and their children, and idle threads of OpenMP spin.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // _workers, 1)))

pytest_plugins = ["classifier", "registries"]

SERVER_FIXTURES = {"tracking_server", "s3_server", "tracking_server_s3_proxied", "tracking_server_s3_direct"}


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips GPU tests where there is no GPU; keeps tests of servers in one worker, so that each is started once."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and (reason := _no_gpu()):
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=reason))
    for item in items:
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("servers"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        # What takes long comes first, so that at the end no worker is alone with it.
        items.sort(key=lambda item: not any(map(item.get_closest_marker, ("slow", "xdist_group"))))


def _no_gpu() -> str | None:
    """Why GPU tests can't run here; None if they can."""
    from mlflow_trt.plan import host

    found = host.probe()
    if found.gpu is None:
        return "needs an NVIDIA GPU"
    if not found.runtimes:
        return "needs TensorRT or TensorRT-RTX"
    return None


if importlib.util.find_spec("xdist") is None:

    @pytest.fixture(scope="session")
    def worker_id() -> str:
        """What pytest-xdist calls a session without workers."""
        return "master"


@pytest.fixture(scope="session", autouse=True)
def _quiet_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The environment of the whole session: nothing leaves this machine, nothing is written beside the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("DO_NOT_TRACK", "true")
        # Credentials, regions or profiles of whoever runs the tests must not decide their outcome.
        for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def _migrated_databases(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """New databases of MLflow need no migration."""
    own = tmp_path_factory.getbasetemp()
    with migrated.databases(own if worker_id == "master" else own.parent):
        yield


@pytest.fixture(scope="session", autouse=True)
def _warm_builders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[warm.Builders | None]:
    """Children of this process that build start warm; None: they do not.

    Where there is a GPU hardly any do, and what CUDA starts at import does not survive a fork.
    """
    from mlflow_trt.conversion import child_process

    if _no_gpu() is None:
        yield None
        return
    builders = warm.Builders(tmp_path_factory.mktemp("warm"), child_process._command)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child_process, "_command", builders.command)
            yield builders
    finally:
        builders.close()


@pytest.fixture
def fresh_builders(_warm_builders: warm.Builders | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building children import for themselves, as a user's do."""
    if _warm_builders is not None:
        monkeypatch.setattr("mlflow_trt.conversion.child_process._command", _warm_builders.fresh)


@pytest.fixture
def warm_programs(_warm_builders: warm.Builders | None) -> Mapping[str, str]:
    """Environment variables with which building children of a program that the test starts are warm too."""
    return {} if _warm_builders is None else _warm_builders.environment()


@pytest.fixture(scope="session")
def run_module(_warm_builders: warm.Builders | None) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a module of the tests, which builds in its own process as if there were no GPU, and says what it printed."""

    def run(module: str) -> subprocess.CompletedProcess[str]:
        fresh = [sys.executable, "-m", module]
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""}
        command = fresh if _warm_builders is None else _warm_builders.run(module)
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    return run


@pytest.fixture(autouse=True)
def _private_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives each test its own SQLite store, experiment and working folder (MLflow makes both on first use)."""
    import mlflow
    from mlflow.tracking import fluent

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")  # remembers what to restore, for MLflow sets these itself
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    fluent._active_experiment_id = None


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``mlflow server`` that takes artifacts into a local folder, ``tracking_server.files``."""
    with servers.tracking_server(tmp_path_factory.mktemp("tracking")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server; its bucket is ``servers.BUCKET``."""
    with servers.s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def tracking_server_s3_proxied(tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> Iterator[Server]:
    """``mlflow server`` before S3: clients know only the server."""
    folder = tmp_path_factory.mktemp("tracking-proxied")
    with servers.tracking_server(folder, artifacts=f"s3://{BUCKET}/proxied", env=s3_server.env) as server:
        yield server


@pytest.fixture(scope="session")
def tracking_server_s3_direct(tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> Iterator[Server]:
    """``mlflow server`` beside S3: clients read and write the artifacts there themselves."""
    folder = tmp_path_factory.mktemp("tracking-direct")
    artifacts = f"s3://{BUCKET}/direct"
    with servers.tracking_server(folder, artifacts=artifacts, proxied=False, env=s3_server.env) as server:
        yield server
