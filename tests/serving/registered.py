"""Versions to serve and a registry to promote them in; import the fixtures that a test needs.

A version multiplies by 2 and adds a number of its own. That is exact at every batch size, so that an answer tells which
version gave it, and an answer of two versions would be seen.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import forged
import mlflow
import numpy as np
import pytest
from proxy import proxy as proxy
from servers import Server

import mlflow_trt
from mlflow_trt.engine import load as load_engine
from mlflow_trt.plan import host
from mlflow_trt.plan.files import GoldenTensors, Plan
from mlflow_trt.plan.manifest import Host
from mlflow_trt.serving.config import LoadOptions
from mlflow_trt.serving.versions.served import Model

REFERENCE = LoadOptions(backend="reference")
BATCHES = (1, 2, 8)
SOON = 0.05
NEVER = 1e6

_numbers = itertools.count(1)
_logged: dict[tuple[Any, ...], str] = {}


def plan(shift: float, golden: Literal["right", "wrong", "none"] = "right", module: Any = None) -> Plan:
    """A plan that only looks like one, with a real program: (batch, 4) → (batch, 3)."""
    import torch

    class Shifted(torch.nn.Module):
        def forward(self, x):
            return x[:, :3] * 2 + shift

    made = forged.plan(str(shift), module=module or Shifted(), golden=False, batch=BATCHES)
    if golden == "none":
        return made
    random = np.random.default_rng(0)
    inputs, outputs = {}, {}
    for point, rows in zip(("min", "opt", "max"), BATCHES):
        x = random.standard_normal((rows, 4)).astype(np.float32)
        inputs[f"0.{point}/x"] = x
        outputs[f"0.{point}/scores"] = answer(x, shift) + (golden == "wrong")
    return dataclasses.replace(made, golden=GoldenTensors(inputs, outputs))


def answer(x: np.ndarray, shift: float) -> np.ndarray:
    return x[:, :3] * np.float32(2) + np.float32(shift)


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Whole numbers: nothing is rounded."""
    return {"x": np.random.default_rng(seed).integers(-100, 100, (count, 4)).astype(np.float32)}


@dataclasses.dataclass
class Registry:
    """A registered model of this test's own."""

    server: Server
    name: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}@champion"

    @property
    def client(self) -> Any:
        return mlflow.MlflowClient()

    def log(self, plan: Plan, **arguments: Any) -> str:
        """Logs a plan as the next version."""
        info = mlflow_trt.log_model(plan, "m", registered_model_name=self.name, **arguments)
        return str(info.registered_model_version)

    def add(self, shift: float, golden: Literal["right", "wrong", "none"] = "right", **arguments: Any) -> str:
        """The next version is one that this server may hold already: registered, not logged again."""
        key = (self.server.uri, shift, golden, *arguments.items())
        if key not in _logged:
            _logged[key] = mlflow_trt.log_model(plan(shift, golden), "m", **arguments).model_id
        model_id = _logged[key]
        found = self.client.create_model_version(self.name, f"models:/{model_id}", model_id=model_id)
        return str(found.version)

    def point(self, version: str, alias: str = "champion") -> None:
        self.client.set_registered_model_alias(self.name, alias, version)

    def stored(self, version: str) -> Path:
        """Where the server keeps the files of a version."""
        model_id = self.client.get_model_version(self.name, version).source.removeprefix("models:/")
        assert self.server.files is not None
        return next(self.server.files.rglob(f"models/{model_id}/artifacts"))


@pytest.fixture
def registry(tracking_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    return make_registry(tracking_server, monkeypatch, tmp_path)


def make_registry(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """A registered model with nothing in it, on a server that a client gives up soon."""
    server.use(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # Also on a machine with a GPU: it would try to load plans that only look like some.
    monkeypatch.setattr(host, "probe", lambda device=0: Host(os="linux"))
    made = Registry(server, f"served-{next(_numbers)}")
    made.client.create_registered_model(made.name)
    return made


class Counter:
    """Counts the engines that are open, by wrapping the real ones' ``close``."""

    def __init__(self) -> None:
        self.made = 0
        self.open: set[int] = set()
        self.most = 0
        self.before: Callable[[str], None] = lambda folder: None
        """Called with the model's folder before an engine is loaded; may raise."""

    def load(self, folder: Path, *args: Any, **kwargs: Any) -> Any:
        self.before(str(folder))
        engine = self._load(folder, *args, **kwargs)
        self.made += 1
        number, close = self.made, engine.close
        self.open.add(number)
        self.most = max(self.most, len(self.open))

        def counted() -> None:
            close()
            self.open.discard(number)

        engine.close = counted
        return engine

    _load = staticmethod(load_engine)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr("mlflow_trt.serving.versions.loading.load_engine", counter.load)
    return counter


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Fails a test that leaves threads of ours; a look at the registry that is under way may take a moment to end."""
    yield
    eventually(lambda: not our_threads(), "all threads end")


def our_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [n for n in names if n.startswith(("batcher-", "model-", "registry-", "warm-up"))]


def eventually(true: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not in {seconds} s: {what}; threads: {threading.enumerate()}"
        time.sleep(0.01)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server logged, in short."""
    return [record.event for record in caplog.records if record.name == "mlflow_trt.serving"]


@pytest.fixture
def serve(no_threads_left: None, engines: Counter) -> Iterator[Callable[..., Model]]:
    """Starts a model that ends with the test, and with it every engine."""
    started = []

    def start(uri, options=REFERENCE, interval=SOON, ready=True, **arguments):
        model = Model("m", str(uri), options, interval=interval, **arguments)
        started.append(model)
        model.start()
        if ready:
            model.wait(60)
        return model

    yield start
    for model in started:
        model.close()
    assert not engines.open


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "mlflow_trt.serving")
    return caplog


def ask(model, x=None):
    """The version that answered, and its answer."""
    answer = model.submit(x or rows(2)).result(20)
    return answer.version.version, answer.outputs["scores"]


def serves(model, version, seconds=30.0):
    eventually(lambda: model.current.version == version, f"version {version} is served", seconds)


def settled(model, what=lambda status: status["last_failure"] is not None):
    eventually(lambda: what(model.status()) and model.status()["preparing"] is None, "the model settles", 30)
    return model.status()


@pytest.fixture
def slow(engines):
    """Holds back the load of every version but the first, until it is let go."""

    class Slow:
        def __init__(self):
            self.begun = threading.Semaphore(0)
            self.go_on = threading.Event()

        def hold(self, folder):
            if engines.made:
                self.begun.release()
                assert self.go_on.wait(20)

    made = Slow()
    engines.before = made.hold
    yield made
    made.go_on.set()


def loading_the_second(registry, serve, slow):
    """A server of version 1 whose next version, 2, is being loaded until ``slow`` lets it go."""
    registry.point(registry.add(1.0))
    second = registry.add(2.0)
    model = serve(registry.uri)
    registry.point(second)
    assert slow.begun.acquire(timeout=20)
    return model
