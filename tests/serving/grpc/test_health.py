"""What Kubernetes and grpcurl ask over gRPC: the standard health service, and reflection."""

from __future__ import annotations

import json
import time

import grpc
import pytest

from ..running import TOKEN, served, whole

# --- of a server ---


@whole
def test_the_standard_health_service(half_loaded):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{half_loaded.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def check(name):
            return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status

        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert check("") == check("inference.GRPCInferenceService") == check("m") == serving
        assert check("bad") == not_serving
        with pytest.raises(grpc.RpcError) as unknown:
            check("nobody")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="m"), timeout=30)
        assert next(watch).status == serving
        watch.cancel()
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=30)
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
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
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{locked.grpc_port}") as channel:
        found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
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
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with (
        served(tmp_path, f"--model=m={plus_one}", grpc=True) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        begin = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - begin < 20
        assert all(isinstance(json.loads(line), dict) for line in server.lines())
