"""What Kubernetes and grpcurl ask over gRPC: the standard health service, and reflection."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mlflow_trt.serving.config import ServerConfig
from mlflow_trt.serving.grpc import health
from mlflow_trt.serving.grpc.methods import Service
from mlflow_trt.serving.metrics import Metrics
from mlflow_trt.serving.shutdown import Shutdown

from .. import echo
from ..running import TOKEN, served, whole
from .calling import serving


class Stage(echo.Echo):
    """A model whose state a test sets."""

    def __init__(self) -> None:
        super().__init__("m", ("x", "float32", "float32"))
        self.state = "ready"

    def status(self):
        return {"state": self.state}


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def stage():
    return Stage()


@contextmanager
def asking(models, **more):
    """The health service's methods, of a server in this process."""
    with serving(models, **more) as address, grpc.insecure_channel(address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def named(name):
    return health_pb2.HealthCheckRequest(service=name)


# --- states ---


@pytest.mark.parametrize(("state", "expected"), [("ready", SERVING), ("loading", NOT_SERVING), ("failed", NOT_SERVING)])
def test_the_server_its_service_and_its_models_have_states(stage, state, expected):
    stage.state = state
    with asking({"m": stage, "other": echo.Echo("other")}) as stub:
        for name in ("", "inference.GRPCInferenceService", "m"):
            assert stub.Check(named(name), timeout=30).status == expected, name
        assert stub.Check(named("other"), timeout=30).status == SERVING


def test_a_server_that_drains_says_so_and_its_models_still_answer(stage):
    shutdown = Shutdown()
    service = Service({"m": stage}, ServerConfig(), metrics=None, shutdown=shutdown)
    assert (service.serving(""), service.serving("m"), service.serving("nobody")) == (True, True, None)
    shutdown.draining = True
    assert (service.serving(""), service.serving("m")) == (False, True)


def test_what_has_no_such_name_is_not_found(stage):
    metrics = Metrics({})
    with asking({"m": stage}, metrics=metrics) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(named("nobody"), timeout=30)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        stub.Check(named("m"), timeout=30)
    text = metrics.text().decode()
    for status in ("NOT_FOUND", "OK"):
        assert f'mlflow_trt_other_requests_total{{protocol="grpc",route="Check",status="{status}"}} 1.0' in text


def test_a_watch_tells_each_change_once(stage, monkeypatch):
    monkeypatch.setattr(health, "_LOOK", 0.01)
    with asking({"m": stage}) as stub:
        watch = stub.Watch(named("m"), timeout=30)
        for state, expected in (("ready", SERVING), ("loading", NOT_SERVING), ("ready", SERVING)):
            stage.state = state
            assert next(watch).status == expected
            time.sleep(0.05)  # some looks that find nothing new
        watch.cancel()


def test_a_watch_of_what_is_not_there_waits_for_it(stage, monkeypatch):
    monkeypatch.setattr(health, "_LOOK", 0.01)
    models = {"m": stage}
    with asking(models) as stub:
        watch = stub.Watch(named("late"), timeout=30)
        assert next(watch).status == UNKNOWN
        models["late"] = stage
        assert next(watch).status == SERVING
        watch.cancel()


def test_a_server_that_ends_tells_its_watches_and_ends_them(stage):
    ending = [False]

    async def arrived():
        pass

    async def main():
        made = health.Health(lambda name: True, lambda: ending[0], lambda method, code: None, arrived)
        told = []
        async for response in made._watch(named("m"), None):
            told.append(response.status)
            ending[0] = True
        return told

    assert asyncio.run(main()) == [SERVING, NOT_SERVING]


# --- of a server ---


@whole
def test_the_standard_health_service(half_loaded):
    with grpc.insecure_channel(f"127.0.0.1:{half_loaded.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def check(name):
            return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status

        assert check("") == check("inference.GRPCInferenceService") == check("m") == SERVING
        assert check("bad") == NOT_SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            check("nobody")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="m"), timeout=30)
        assert next(watch).status == SERVING
        watch.cancel()
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=30)
        assert next(unknown).status == UNKNOWN
        unknown.cancel()


@whole
def test_reflection(half_loaded):
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{half_loaded.grpc_port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        ]
        listed, ours, health = stub.ServerReflectionInfo(iter(ask), timeout=30)
    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    for found, package in ((ours, "inference"), (health, "grpc.health.v1")):
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(text)
            for text in found.file_descriptor_response.file_descriptor_proto
        ]
        assert package in {file.package for file in files}


@whole
def test_health_needs_no_token_and_reflection_does(locked):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{locked.grpc_port}") as channel:
        found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert found.status == SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(asked, timeout=30))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        allowed = stub.ServerReflectionInfo(asked, timeout=30, metadata=(("authorization", f"Bearer {TOKEN}"),))
        assert next(allowed).list_services_response.service


@whole
def test_a_server_that_is_watched_ends_at_once(plus_one, tmp_path):
    with (
        served(tmp_path, f"--model=m={plus_one}", grpc=True) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        begin = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - begin < 20
        assert all(isinstance(json.loads(line), dict) for line in server.lines())
