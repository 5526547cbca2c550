"""What operators see of a server: its log, its metrics, its health; with one model that can't be loaded."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

import mlflow_trt

from .registered import answer, plan, rows
from .running import Served, request, served

pytest.importorskip("torch", reason="the reference backend runs the program with PyTorch")
grpc = pytest.importorskip("grpc")
pytestmark = [pytest.mark.xdist_group("serve"), pytest.mark.slow]

ONE = rows(1)["x"].tolist()
JSON = {"Content-Type": "application/json"}
TOKEN = "a secret"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    found = tmp_path_factory.mktemp("observed")
    mlflow_trt.save_model(plan(1.0), found / "plus1")
    return found


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    """One model answers and one can't be loaded; gRPC's own library says all that it can."""
    models = [f"--model=m={folder / 'plus1'}", f"--model=bad={folder / 'nothing'}"]
    noisy = {"GRPC_VERBOSITY": "debug", "GRPC_TRACE": "http", "PYTHONWARNINGS": "always"}
    with served(folder, *models, "--exit-on-error", "false", grpc=True, env=noisy) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(folder) -> Iterator[Served]:
    """A token, HTTP in a process of its own, and no lines for what is answered well."""
    token = folder / "token"
    token.write_text(TOKEN)
    options = ["--token-file", str(token), "--http-processes", "1", "--no-access-log"]
    with served(folder, f"--model=m={folder / 'plus1'}", *options, grpc=True) as found:
        yield found


def counted(server: Served, **arguments) -> dict[str, float]:
    lines = server.get("/metrics", **arguments).text.splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)
    return found


def lines_of(server: Served, identifier: str) -> list[dict]:
    found = [json.loads(line) for line in server.lines()]
    return [line for line in found if line.get("request_id") == identifier]


# --- one model that can't be loaded ---


def test_a_model_that_can_t_be_loaded_leaves_the_others_alone(server):
    assert server.get("/v2/health/ready").status_code == 200
    assert server.get("/v2/models/m/ready").status_code == 200
    assert server.get("/v2/models/bad/ready").status_code == 503
    assert server.infer(request(ONE)).status_code == 200
    refused = server.infer(request(ONE), "bad")
    assert (refused.status_code, "bad" in refused.json()["error"]) == (503, True)
    assert any(json.loads(line).get("event") == "failed" for line in server.lines())


def test_it_is_served_once_it_can_be_loaded(folder, tmp_path):
    """A registered alias that is set later; the server runs all the time."""
    import mlflow

    store = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(store)
    mlflow_trt.log_model(plan(5.0), "m", registered_model_name="late")
    options = ["--model=late=models:/late@champion", f"--model=m={folder / 'plus1'}", "--exit-on-error", "false"]
    with served(tmp_path, *options, "--interval", "0.3", env={"MLFLOW_TRACKING_URI": store}) as server:
        assert server.get("/v2/models/late/ready").status_code == 503
        assert server.post("/invocations", b"{}", headers=JSON).status_code == 503
        mlflow.MlflowClient().set_registered_model_alias("late", "champion", "1")
        until(lambda: server.get("/v2/models/late/ready").status_code == 200, 60)
        assert server.infer(request(ONE), "late").status_code == 200
        assert all(isinstance(json.loads(line), dict) for line in server.lines())


# --- the log ---


def test_every_line_is_json(server):
    client = pytest.importorskip("tritonclient.grpc").InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    assert client.is_server_live()
    client.close()
    server.post("/v2/models/m/infer", b"{\n}\r{")
    lines = [json.loads(line) for line in server.lines()]
    assert all(isinstance(line, dict) and line["message"] and line["level"] for line in lines)
    assert any(line["logger"] == "stderr" for line in lines), "gRPC's library wrote nothing"


def test_so_is_every_line_of_a_server_that_can_t_start(folder, tmp_path):
    with pytest.raises(AssertionError), served(tmp_path, str(folder / "nothing")):
        pass
    (log,) = tmp_path.glob("serve-*.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "manifest.json can't be read" in lines[-1]["message"]


def test_each_request_leaves_a_line_with_its_id(server):
    given = server.infer(request(ONE), headers={"X-Request-ID": "order-66"})
    assert given.headers["x-request-id"] == "order-66"
    (line,) = until(lambda: lines_of(server, "order-66"))
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v2/models/m/infer", 200)
    assert (line["level"], line["client"]) == ("info", "127.0.0.1")
    assert 0 < line["seconds"] < 30
    made = [server.infer(request(ONE)).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(until(lambda i=i: lines_of(server, i)) for i in made)


@pytest.mark.parametrize("bad", ["x" * 129, "two words", "a\tb", ""])
def test_an_id_that_is_none_is_replaced(server, bad):
    found = server.get("/v2", headers={"X-Request-ID": bad}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", found)


def test_refused_requests_leave_a_line(server):
    for path, status in (("/v2/models/nobody", 404), ("/v2/nothing", 404), ("/nothing", 404), ("/v2/models/bad", 503)):
        identifier = f"refused{path.replace('/', '-')}"
        assert server.get(path, headers={"X-Request-ID": identifier}).status_code == status
        (line,) = until(lambda identifier=identifier: lines_of(server, identifier))
        assert (line["status"], line["level"]) == (status, "warning")
    server.post("/v2/models/m/infer", b"{", headers={"X-Request-ID": "broken"})
    assert until(lambda: lines_of(server, "broken"))[0]["status"] == 400


def test_grpc_has_ids_and_lines_too(server):
    from mlflow_trt.serving.protocol import protobuf

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        ask = channel.unary_unary(f"/{protobuf.SERVICE}/ServerMetadata")
        _, call = ask.with_call(b"", metadata=(("x-request-id", "call-7"),), timeout=30)
        assert dict(call.trailing_metadata())["x-request-id"] == "call-7"
        infer = channel.unary_unary(f"/{protobuf.SERVICE}/ModelInfer")
        message = protobuf.ModelInferRequest(model_name="nobody").SerializeToString()
        with pytest.raises(grpc.RpcError) as refused:
            infer(message, metadata=(("x-request-id", "call-8"),), timeout=30)
        assert dict(refused.value.trailing_metadata())["x-request-id"] == "call-8"
    (line,) = until(lambda: lines_of(server, "call-7"))
    assert (line["path"], line["status"]) == (f"/{protobuf.SERVICE}/ServerMetadata", "OK")
    (line,) = until(lambda: lines_of(server, "call-8"))
    assert (line["status"], line["level"]) == ("NOT_FOUND", "warning")


def test_lines_of_what_is_answered_well_can_be_left_out(guarded):
    headers = {**AUTHORIZED, "X-Request-ID": "well"}
    assert guarded.infer(request(ONE), headers=headers).headers["x-request-id"] == "well"
    assert guarded.infer(request(ONE), headers={"X-Request-ID": "stranger"}).status_code == 401
    assert until(lambda: lines_of(guarded, "stranger"))[0]["status"] == 401
    assert not lines_of(guarded, "well")


# --- metrics ---


def test_invocations_are_counted(server):
    key = 'mlflow_trt_requests_total{model="m",protocol="mlflow",status="%d"}'
    before = counted(server)
    assert server.post("/invocations", json.dumps({"inputs": {"x": ONE}}), headers=JSON).status_code == 200
    assert server.post("/invocations", b"{", headers=JSON).status_code == 400
    after = counted(server)
    for status in (200, 400):
        assert after[key % status] == before.get(key % status, 0) + 1
    assert after['mlflow_trt_request_seconds_count{model="m",protocol="mlflow"}'] >= 2


def test_whatever_else_is_answered_is_counted(server):
    before = counted(server)
    for path in ("/v2", "/v2/models/m", "/v2/models/nobody", "/v2/nothing", "/version", "/nothing"):
        server.get(path)
    after = counted(server)
    for route, status, more in (
        ("/v2", 200, 1),
        ("/v2/models/*", 200, 1),
        ("unknown_model", 404, 1),
        ("unknown_route", 404, 2),
        ("mlflow", 200, 1),
    ):
        key = f'mlflow_trt_other_requests_total{{protocol="http",route="{route}",status="{status}"}}'
        assert after[key] == before.get(key, 0) + more, key


def test_the_time_of_a_request_begins_with_its_last_byte(server):
    import http.client

    body = json.dumps(request(ONE)).encode()
    key = 'mlflow_trt_request_seconds_sum{model="m",protocol="http"}'
    before = counted(server).get(key, 0)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/v2/models/m/infer")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:10])
    time.sleep(1.5)
    connection.send(body[10:])
    assert connection.getresponse().status == 200
    connection.close()
    # And one that leaves before its body is there has no time at all.
    leaving = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    leaving.putrequest("POST", "/v2/models/m/infer")
    leaving.putheader("Content-Length", "100")
    leaving.endheaders(b"{")
    time.sleep(1.5)
    leaving.close()
    gone = 'mlflow_trt_requests_total{model="m",protocol="http",status="499"}'
    until(lambda: counted(server).get(gone, 0) >= 1)
    assert counted(server)[key] - before < 1.4


def test_strangers_processes_and_requests_under_way_are_seen(guarded):
    from mlflow_trt.serving.protocol import protobuf

    assert guarded.get("/v2").status_code == 401
    with grpc.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{protobuf.SERVICE}/ServerMetadata")(b"", timeout=30)
    strangers = 'mlflow_trt_other_requests_total{protocol="%s",route="unauthorized",status="%s"}'
    found = until(lambda: (c := counted(guarded, headers=AUTHORIZED)).get(strangers % ("http", 401)) and c)
    assert found[strangers % ("grpc", "UNAUTHENTICATED")] >= 1
    assert {f'mlflow_trt_requests_in_flight{{protocol="{p}"}}' for p in ("http", "grpc")} <= found.keys()
    for role in ("server", "http"):
        (memory,) = [v for k, v in found.items() if k.startswith("process_resident_memory_bytes") and f'"{role}"' in k]
        assert memory > 10e6
    assert any(key.startswith("process_cpu_seconds_total") for key in found)


# --- numbers that JSON has not ---


def test_nan_and_infinities_are_the_same_strings_everywhere(server):
    x = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}
    text = json.dumps(head).encode()
    found = server.post(
        "/v2/models/m/infer", text + x.tobytes(), headers={"Inference-Header-Content-Length": str(len(text))}
    )
    expected = ["NaN", "Infinity", "-Infinity"]
    assert found.status_code == 200, found.text
    assert found.json()["outputs"][0]["data"] == expected
    body = '{"inputs": {"x": [[NaN, Infinity, -Infinity, 1]]}}'
    found = server.post("/invocations", body, headers=JSON)
    assert found.status_code == 200, found.text
    assert json.loads(found.text, parse_constant=pytest.fail)["predictions"]["scores"] == [expected]
    np.testing.assert_array_equal(np.array(expected, np.float32), answer(x, 1)[0])


def test_tritons_client_reads_them(server):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}")
    x = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    given = http.InferInput("x", [1, 4], "FP32").set_data_from_numpy(x)
    found = client.infer("m", [given], outputs=[http.InferRequestedOutput("scores", binary_data=False)])
    np.testing.assert_array_equal(found.as_numpy("scores"), answer(x, 1))
    client.close()


# --- gRPC: what Kubernetes and grpcurl ask ---


def test_the_standard_health_service(server):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
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


def test_reflection(server):
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
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


def test_health_needs_no_token_and_reflection_does(guarded):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
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


def test_empty_contents_beside_raw_data_are_none(server):
    """As MLServer's client sends them."""
    from mlflow_trt.serving.protocol import protobuf

    message = protobuf.ModelInferRequest(model_name="m", raw_input_contents=[struct.pack("<4f", 1, 2, 3, 4)])
    entry = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    entry.contents.SetInParent()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        ask = channel.unary_unary(f"/{protobuf.SERVICE}/ModelInfer")
        found = protobuf.ModelInferResponse.FromString(ask(message.SerializeToString(), timeout=30))
    assert np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == [3, 5, 7]


def test_a_server_that_is_watched_ends_at_once(folder, tmp_path):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with (
        served(tmp_path, f"--model=m={folder / 'plus1'}", grpc=True) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        begin = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - begin < 20
        assert all(isinstance(json.loads(line), dict) for line in server.lines())
