"""The HTTP application: which route a request takes, who may take it, how it is counted, and what a failure tells."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import time

import pytest

from mlflow_trt.errors import BusyError, DeadlineError, DeviceError, InputError, TrtError
from mlflow_trt.serving.http.app import Application

from .asgi import ASKED, CLIENT, Doubling, Face


@pytest.fixture
def face():
    return Face(Doubling(), Doubling("a/b c"))


# --- routes ---


@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", "/v2", 200, "/v2"),
        ("GET", "/v2/", 200, "/v2/"),
        ("GET", "/v2/health/live", 200, "/v2/health/live"),
        ("HEAD", "/v2/health/ready", 200, "/v2/health/ready"),
        ("GET", "/ping", 200, "/ping"),
        ("GET", "/health", 200, "/health"),
        ("GET", "/metrics", 200, "/metrics"),
        ("GET", "/openapi.json", 200, "/openapi.json"),
        ("GET", "/v2/models/m", 200, "/v2/models/*"),
        ("GET", "/v2/models/m/", 200, "/v2/models/*"),
        ("GET", "/v2/models/m/ready", 200, "/v2/models/*/ready"),
        ("GET", "/v2/models/m/versions/3", 200, "/v2/models/*"),
        ("GET", "/v2/models/m/versions/3/ready", 200, "/v2/models/*/ready"),
        ("GET", "/v2/models/a%2Fb%20c/ready", 200, "/v2/models/*/ready"),
        ("GET", "/v2/models/a%2fb%20c", 200, "/v2/models/*"),
        ("GET", "/v2/models/m?verbose=1", 200, "/v2/models/*"),
        ("GET", "/v2/models/m/versions/4", 404, "/v2/models/*"),
        ("GET", "/v2/models/m/versions/", 404, "/v2/models/*"),
        ("GET", "/v2/models/a/b%20c/ready", 404, "unknown_model"),
        ("GET", "/v2/models/nobody", 404, "unknown_model"),
        ("GET", "/v2/models/", 404, "unknown_model"),
        ("GET", "/v2/models/M", 404, "unknown_model"),
        ("GET", "/v2/models", 404, "unknown_route"),
        ("GET", "/v2/models/m/versions", 404, "unknown_route"),
        ("GET", "/v2/models/m/nothing", 404, "unknown_route"),
        ("GET", "/v2/models/m/ready/", 404, "unknown_route"),
        ("GET", "/v2/models%2Fm", 404, "unknown_route"),
        ("GET", "/v2/repository/index", 404, "unknown_route"),
        ("POST", "/v2/webhook", 404, "unknown_route"),
        ("POST", "/v2/models/m/ready", 405, "/v2/models/*/ready"),
        ("PUT", "/v2", 405, "/v2"),
        ("GET", "/v2/models/m/infer", 405, "/v2/models/*/infer"),
    ],
)
def test_a_path_and_what_it_is_counted_as(face, method, path, status, route):
    assert face.ask(method, path).status == status
    assert face.counts.others == [(route, "http", status)]
    assert face.counts.requests == []


def test_what_is_allowed_is_told(face):
    assert face.ask("DELETE", "/v2/health/live").headers["allow"] == "GET, HEAD"
    assert face.ask("GET", "/v2/models/m/infer").headers["allow"] == "POST"


def test_a_model_that_is_not_served_and_those_that_are(face):
    error = face.ask("GET", "/v2/models/" + "%0a" * 300).json()["error"]
    assert error.endswith("is not served; served are m, a/b c.")
    assert len(error) < 1000
    assert error.isprintable()


def test_an_inference_is_counted_by_its_model_and_not_by_its_route(face):
    assert face.infer().json()["outputs"][0]["data"] == [2, 4]
    assert face.infer({}).status == 400
    assert face.counts.requests == [("m", "http", 200, True), ("m", "http", 400, True)]
    assert face.counts.others == []


def test_what_is_no_request_of_http_is_passed_over(face):
    assert asyncio.run(face.app({"type": "lifespan"}, None, None)) is None
    assert face.counts.others == []


# --- who may ---

OPEN = ("/v2/health/live", "/v2/health/ready", "/ping", "/health")
CLOSED = ("/v2", "/metrics", "/openapi.json", "/v2/models/m", "/v2/nothing", "/v2/models/nobody", "/invocations", "/")


def test_probes_need_no_token_and_all_else_does():
    face = Face(token="secret")
    for path in OPEN:
        assert face.ask("GET", path).status == 200
    face.counts.others.clear()
    for path in CLOSED:
        found = face.ask("GET", path)
        assert (found.status, found.headers["www-authenticate"]) == (401, "Bearer")
    assert face.counts.others == [("unauthorized", "http", 401)] * len(CLOSED)
    assert face.ask("GET", "/v2", authorization="Bearer secret").status == 200


def test_the_webhook_s_route_is_there_if_there_is_a_secret():
    model = Doubling()
    face = Face(model, token="secret", webhook_secret="signed")
    assert face.ask("POST", "/v2/webhook", b"{}").status == 401
    assert face.counts.others == [("/v2/webhook", "http", 401)], "by its signature, not for want of a token"
    assert face.ask("GET", "/v2/webhook").status == 405
    assert Face(model, token="secret").ask("POST", "/v2/webhook", authorization="Bearer secret").status == 404


# --- failures ---


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (InputError("It is wrong.", "right", "do it"), 400, "It is wrong."),
        (BusyError("It is full."), 503, "It is full."),
        (DeadlineError("It is late."), 504, "It is late."),
        (DeviceError("The GPU is gone."), 500, "The GPU is gone."),
        (TrtError("It is so."), 500, "It is so."),
        (RuntimeError("a secret"), 500, "The server failed; its log says more."),
    ],
)
def test_an_error_has_its_status_and_what_is_not_the_client_s_is_not_told(face, caplog, error, status, told):
    face.models[0].error = error
    with caplog.at_level(logging.ERROR):
        found = face.infer(x_request_id="seven")
    assert found.status == status
    assert found.json()["error"].startswith(told)
    assert "secret" not in found.body.decode()
    assert found.headers.get("retry-after") == ("1" if status == 503 else None)
    assert found.headers["x-request-id"] == "seven"
    logged = [record for record in caplog.records if record.getMessage() == "A request failed"]
    assert [record.request_id for record in logged] == (["seven"] if status == 500 else [])
    assert face.counts.requests == [("m", "http", status, True)]


def test_a_model_that_is_not_loaded_yet():
    model = Doubling()
    model.version = None
    face = Face(model)
    assert face.infer().status == 503
    assert face.ask("GET", "/v2/models/m").status == 503
    ready = face.ask("GET", "/v2/models/m/ready")
    assert (ready.status, ready.json()) == (503, {"name": "m", "ready": False})


# --- readiness ---


@pytest.mark.parametrize(
    ("loaded", "exit_on_error", "draining", "ready"),
    [
        ((True, True), True, False, True),
        ((True, False), True, False, False),
        ((True, False), False, False, True),
        ((False, False), False, False, False),
        ((True, True), True, True, False),
    ],
)
def test_probes_say_whether_it_is_ready(loaded, exit_on_error, draining, ready):
    models = [Doubling(name) for name in "ab"]
    for model, answers in zip(models, loaded):
        model.version = model.version if answers else None
    face = Face(*models, exit_on_error=exit_on_error)
    face.shutdown.draining = draining
    for path in ("/v2/health/ready", "/ping", "/health"):
        assert face.ask("GET", path).status == (200 if ready else 503)
    assert face.ask("GET", "/v2/health/live").status == 200


# --- what every response has ---


def test_every_response_has_the_request_s_id(face):
    for path in ("/v2", "/v2/nothing"):
        assert face.ask("GET", path, x_request_id="mine").headers["x-request-id"] == "mine"
        assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", face.ask("GET", path).headers["x-request-id"])


def test_a_response_is_compressed_if_the_client_takes_it(face):
    plain = face.ask("GET", "/openapi.json")
    packed = face.ask("GET", "/openapi.json", accept_encoding="gzip, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert "content-encoding" not in plain.headers
    assert int(packed.headers["content-length"]) == len(packed.body)


def test_a_body_beyond_the_limit(face):
    face = Face(max_body=1 << 10)
    found = face.infer({**ASKED, "id": "x" * 1024})
    assert (found.status, found.headers["connection"]) == (413, "close")
    assert face.counts.requests == [("m", "http", 413, False)], "a body that was not read has no time"


# --- a client that is alone ---


def test_who_asks_in_turn_over_one_connection_is_alone():
    face = Face()
    for _ in range(2):
        face.infer()
    assert [inline for _, _, inline in face.models[0].submitted] == [False, True]


@pytest.mark.parametrize(
    ("clients", "running", "alone"),
    [
        ([CLIENT, CLIENT], 1, True),
        ([CLIENT, CLIENT], 2, False),
        ([CLIENT], 1, False),
        ([CLIENT, ("192.0.2.1", 50_001)], 1, False),
        ([None, None], 1, False),
    ],
)
def test_when_a_client_is_alone(face, clients, running, alone):
    app: Application = face.app
    app._running = running
    assert [app.only(client) for client in clients][-1] is alone


def test_the_deadline_is_the_sooner_one_of_the_client_s_and_the_server_s():
    face = Face(timeout=5.0)
    begin = time.monotonic()
    for timeout in (None, 1_000_000, 60_000_000):
        face.infer({**ASKED, **({"parameters": {"timeout": timeout}} if timeout else {})})
    spans = [deadline - begin for _, deadline, _ in face.models[0].submitted]
    assert [round(span) for span in spans] == [5, 1, 5]


def test_json_that_is_asked_for_is_what_comes(face):
    content = face.infer({**ASKED, "id": "a"}).json()
    assert content == {
        **{"model_name": "m", "model_version": "3", "id": "a"},
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}],
    }
