"""What Prometheus reads."""

from __future__ import annotations

import json
import time

import grpc
import pytest

from mlflow_trt.serving.batching.queue import Answer
from mlflow_trt.serving.limits import CUTS
from mlflow_trt.serving.metrics import Metrics

from .light import until
from .registered import rows
from .running import AUTHORIZED, counted, request, whole

ONE = rows(1)["x"].tolist()
JSON = {"Content-Type": "application/json"}


class Told:
    """A model whose state a test sets."""

    def __init__(self, registered_model=None, **status):
        self.registered_model = registered_model
        self._status = {"version": "3", "uri": "models:/m/3", "swaps": 0, "failures": 0, "waiting": 0, **status}

    def status(self):
        return self._status


def figures(metrics):
    """What Prometheus reads of a server, but for its processes."""
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("mlflow_trt")]
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


# --- figures ---


def test_requests_are_counted_by_how_they_ended():
    metrics = Metrics({})
    for status, seconds in ((200, 0.003), (200, 0.3), (400, 0.003), ("OK", 0.003), (499, None)):
        metrics.request("m", "http", status, seconds)
    found = figures(metrics)
    key = 'mlflow_trt_requests_total{model="m",protocol="http",status="%s"}'
    assert [found[key % status] for status in (200, 400, "OK", 499)] == [2, 1, 1, 1]
    seconds = 'mlflow_trt_request_seconds_%s{%smodel="m",protocol="http"}'
    assert found[seconds % ("count", "")] == 4, "a body that never came has no time"
    assert found[seconds % ("bucket", 'le="0.005",')] == 3


def test_batches_are_counted():
    metrics = Metrics({})
    for many, queued in ((3, 0.0), (8, 0.03)):
        metrics.batch("m", Answer({}, None, many, many, queued, 0.004))
    found = figures(metrics)
    assert found['mlflow_trt_batch_rows_sum{model="m"}'] == 11
    assert found['mlflow_trt_queue_seconds_bucket{le="0.02",model="m"}'] == 1
    assert found['mlflow_trt_compute_seconds_sum{model="m"}'] == pytest.approx(0.008)


def test_every_limit_has_a_counter_before_it_is_met():
    metrics = Metrics({})
    metrics.cut("idle_time")
    found = figures(metrics)
    for limit in CUTS:
        assert found[f'mlflow_trt_cut_connections_total{{limit="{limit}"}}'] == (limit == "idle_time")


def test_what_is_under_way_is_asked_when_somebody_looks():
    metrics = Metrics({})
    running = [0]
    metrics.in_flight["http"] = lambda: running[0]
    running[0] = 5
    assert figures(metrics)['mlflow_trt_requests_in_flight{protocol="http"}'] == 5


def test_a_model_that_answers():
    found = figures(Metrics({"m": Told(state="ready", swaps=2, failures=1, waiting=7)}))
    assert found['mlflow_trt_model{model="m",uri="models:/m/3",version="3"}'] == 1
    assert found['mlflow_trt_model_ready{model="m"}'] == 1
    assert found['mlflow_trt_swaps_total{model="m"}'] == 2
    assert found['mlflow_trt_failed_loads_total{model="m"}'] == 1
    assert found['mlflow_trt_queue_depth{model="m"}'] == 7
    assert not any(key.startswith("mlflow_trt_registry") for key in found), "it follows none"


@pytest.mark.parametrize("state", ["loading", "failed", "closed"])
def test_a_model_that_does_not(state):
    found = figures(Metrics({"m": Told(state=state)}))
    assert found['mlflow_trt_model_ready{model="m"}'] == 0
    assert not any(key.startswith(("mlflow_trt_model{", "mlflow_trt_queue_depth")) for key in found)


@pytest.mark.parametrize(
    ("checked_at", "failure", "reachable"),
    [(None, None, 0), (None, "It is away.", 0), (1.7e9, None, 1), (1.7e9, "It is away.", 0)],
)
def test_a_registry_that_is_followed(checked_at, failure, reachable):
    model = Told("m", state="ready", checked_at=checked_at, registry_failure=failure)
    found = figures(Metrics({"m": model}))
    assert found['mlflow_trt_registry_reachable{model="m"}'] == reachable
    assert found.get('mlflow_trt_registry_checked_timestamp_seconds{model="m"}') == checked_at


def test_names_of_models_are_escaped():
    text = Metrics({'a"b\n': Told(state="ready")}).text().decode()
    assert r'mlflow_trt_model_ready{model="a\"b\n"} 1.0' in text.splitlines()


def test_the_memory_of_gpus_is_told_of_those_that_answer(monkeypatch):
    from mlflow_trt.engine import cuda
    from mlflow_trt.errors import DeviceError

    def enter(device):
        if device == 1:
            raise DeviceError("It is gone.")
        return 9

    left = []
    monkeypatch.setattr(cuda, "enter", enter)
    monkeypatch.setattr(cuda, "leave", left.append)
    monkeypatch.setattr(cuda, "memory", lambda: (30, 100))
    found = figures(Metrics({}, devices=(0, 1)))
    memory = {key: value for key, value in found.items() if "gpu" in key}
    assert memory == {
        'mlflow_trt_gpu_memory_used_bytes{device="0"}': 70,
        'mlflow_trt_gpu_memory_total_bytes{device="0"}': 100,
    }
    assert left == [9]


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
