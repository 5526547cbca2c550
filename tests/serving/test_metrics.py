"""What Prometheus reads."""

from __future__ import annotations

import json
import time

import grpc
import pytest

from .light import until
from .registered import rows
from .running import AUTHORIZED, counted, request, whole

ONE = rows(1)["x"].tolist()
JSON = {"Content-Type": "application/json"}


# --- of a server ---


@whole
def test_invocations_are_counted(half_loaded):
    key = 'mlflow_trt_requests_total{model="m",protocol="mlflow",status="%d"}'
    before = counted(half_loaded)
    assert half_loaded.post("/invocations", json.dumps({"inputs": {"x": ONE}}), headers=JSON).status_code == 200
    assert half_loaded.post("/invocations", b"{", headers=JSON).status_code == 400
    after = counted(half_loaded)
    for status in (200, 400):
        assert after[key % status] == before.get(key % status, 0) + 1
    assert after['mlflow_trt_request_seconds_count{model="m",protocol="mlflow"}'] >= 2


@whole
def test_whatever_else_is_answered_is_counted(half_loaded):
    before = counted(half_loaded)
    for path in ("/v2", "/v2/models/m", "/v2/models/nobody", "/v2/nothing", "/version", "/nothing"):
        half_loaded.get(path)
    after = counted(half_loaded)
    for route, status, more in (
        ("/v2", 200, 1),
        ("/v2/models/*", 200, 1),
        ("unknown_model", 404, 1),
        ("unknown_route", 404, 2),
        ("mlflow", 200, 1),
    ):
        key = f'mlflow_trt_other_requests_total{{protocol="http",route="{route}",status="{status}"}}'
        assert after[key] == before.get(key, 0) + more, key


@whole
def test_the_time_of_a_request_begins_with_its_last_byte(half_loaded):
    import http.client

    body = json.dumps(request(ONE)).encode()
    key = 'mlflow_trt_request_seconds_sum{model="m",protocol="http"}'
    before = counted(half_loaded).get(key, 0)
    connection = http.client.HTTPConnection("127.0.0.1", half_loaded.port, timeout=30)
    connection.putrequest("POST", "/v2/models/m/infer")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:10])
    time.sleep(1.5)
    connection.send(body[10:])
    assert connection.getresponse().status == 200
    connection.close()
    # And one that leaves before its body is there has no time at all.
    leaving = http.client.HTTPConnection("127.0.0.1", half_loaded.port, timeout=30)
    leaving.putrequest("POST", "/v2/models/m/infer")
    leaving.putheader("Content-Length", "100")
    leaving.endheaders(b"{")
    time.sleep(1.5)
    leaving.close()
    gone = 'mlflow_trt_requests_total{model="m",protocol="http",status="499"}'
    until(lambda: counted(half_loaded).get(gone, 0) >= 1)
    assert counted(half_loaded)[key] - before < 1.4


@whole
def test_strangers_processes_and_requests_under_way_are_seen(locked):
    from mlflow_trt.serving.protocol import protobuf

    assert locked.get("/v2").status_code == 401
    with grpc.insecure_channel(f"127.0.0.1:{locked.grpc_port}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{protobuf.SERVICE}/ServerMetadata")(b"", timeout=30)
    strangers = 'mlflow_trt_other_requests_total{protocol="%s",route="unauthorized",status="%s"}'
    found = until(lambda: (c := counted(locked, headers=AUTHORIZED)).get(strangers % ("http", 401)) and c)
    assert found[strangers % ("grpc", "UNAUTHENTICATED")] >= 1
    assert {f'mlflow_trt_requests_in_flight{{protocol="{p}"}}' for p in ("http", "grpc")} <= found.keys()
    for role in ("server", "http"):
        (memory,) = [v for k, v in found.items() if k.startswith("process_resident_memory_bytes") and f'"{role}"' in k]
        assert memory > 10e6
    assert any(key.startswith("process_cpu_seconds_total") for key in found)
