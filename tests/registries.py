"""Registries to promote in: MLflow's server on SQLite and on PostgreSQL, each started once for all of these tests."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forged
import mlflow
import pytest
import servers
from servers import Postgres, Server

import mlflow_trt
from mlflow_trt.registry import ledger

_numbers = itertools.count(1)
_shared: dict[str, tuple[str, str]] = {}


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps tests of one server in one worker, so that each server is started once."""
    for item in items:
        database = getattr(item, "callspec", None) and item.callspec.params.get("registry")
        if database and "registry" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(f"registry-{database}"))


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this machine one without a GPU, which would try to load plans that only look like some."""
    from mlflow_trt.plan import host
    from mlflow_trt.plan.manifest import Host

    monkeypatch.setattr(host, "probe", lambda device=0: Host(os="linux"))


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.tracking_server(tmp_path_factory.mktemp("on-sqlite")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as database:
        yield database


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Server]:
    with servers.tracking_server(tmp_path_factory.mktemp("on-postgres"), database=postgres.uri) as server:
        yield server


@dataclass
class Registry:
    """A server, and one registered model of this test's own."""

    server: Server
    name: str
    client: Any = field(default_factory=lambda: mlflow.MlflowClient())

    def log(self, plan: Any, name: str | None = None) -> str:
        """Logs a plan as the next version."""
        info = mlflow_trt.log_model(plan, "m", registered_model_name=name or self.name)
        return str(info.registered_model_version)

    def share(self, copies: int) -> list[str]:
        """Registers one model, logged once for this server, as several versions: they differ in nothing."""
        if self.server.uri not in _shared:
            _shared[self.server.uri] = self.log(forged.plan(), "shared"), "shared"
        version, name = _shared[self.server.uri]
        return [self.again(version, self.name, there=name) for _ in range(copies)]

    def again(self, version: str, name: str | None = None, *, there: str | None = None) -> str:
        """Registers the logged model of a version once more: a version that costs no upload."""
        origin = self.client.get_model_version(there or self.name, version)
        model_id = origin.source.removeprefix("models:/")
        made = self.client.create_model_version(
            name or self.name, origin.source, origin.run_id, tags=origin.tags, model_id=model_id
        )
        return str(made.version)

    def holder(self, alias: str = "champion", name: str | None = None) -> str | None:
        found = self.client.get_registered_model(name or self.name).aliases.get(alias)
        return None if found is None else str(found)

    def stored(self, version: str) -> Path:
        """Where the server keeps the files of a version."""
        model_id = self.client.get_model_version(self.name, version).source.removeprefix("models:/")
        assert self.server.files is not None
        return next(self.server.files.rglob(f"models/{model_id}/artifacts"))

    def state(self, alias: str = "champion") -> ledger.State:
        return ledger.Ledger(self.name, alias).read()

    def claims(self) -> list[str]:
        found = self.client.search_registered_models(f"name LIKE '{self.name}.%'")
        return [model.name for model in found]


@pytest.fixture(params=["sqlite"])
def registry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """A registered model with nothing in it; ``indirect=["sqlite", "postgres"]`` chooses the database."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    server.use(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRT_CACHE", str(tmp_path / "cache"))
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    made = Registry(server, f"classifier-{next(_numbers)}")
    made.client.create_registered_model(made.name)
    return made


on_both = pytest.mark.parametrize("registry", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def versions(registry: Registry) -> list[str]:
    """Three versions of one logged model, which differ in nothing."""
    return registry.share(3)


def judged(registry, version, *chosen):
    """The verdict of the first gate on a version, against the champion."""
    return mlflow_trt.promote(registry.name, version, gates=chosen, dry_run=True).verdicts[0]


def crown(registry, version):
    assert mlflow_trt.promote(registry.name, version, gates=[]).promoted
