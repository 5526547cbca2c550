"""What each request leaves in the log, and with which id."""

from __future__ import annotations

import asyncio
import json
import re

import grpc
import pytest

from mlflow_trt.serving import access_log, logs
from mlflow_trt.serving.access_log import AccessLog

from .light import until
from .registered import rows
from .running import AUTHORIZED, lines_of, request, whole

ONE = rows(1)["x"].tolist()


@pytest.fixture
def written(monkeypatch, caplog):
    """The lines, as members of JSON objects."""
    lines: list[dict] = []
    monkeypatch.setattr(
        logs, "write", lambda shared, fields: lines.append(json.loads(f"{{{shared}, {logs.members(fields)}}}"))
    )
    caplog.set_level("INFO", access_log.NAME)
    return lines


def answer(log, status=200, **more):
    known = {"protocol": "http", "method": "GET", "path": "/v2", "request_id": "1", "client": None, "seconds": 0.1}
    log.answered(**{**known, "status": status, "refused": status >= 400, **more})


# --- ids ---


@pytest.mark.parametrize("given", ["a", "order-66", "!~", "x" * 128, '"\\'])
def test_a_client_s_id_is_taken(given):
    assert access_log.request_id(given) == given


@pytest.mark.parametrize("given", [None, "", " ", "x" * 129, "two words", "a\n", "a\0", "\x7f", "é", "a\u2028"])
def test_or_a_new_one_is_made(given):
    made = {access_log.request_id(given) for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", each) for each in made)


# --- lines ---


def test_a_line_tells_of_the_request(written):
    answer(AccessLog(True), 404, method="POST", path='/v2/"x"\n', client="::1", seconds=0.123456789, bytes=7)
    assert written == [
        {
            "level": "warning",
            "logger": "mlflow_trt.access",
            "message": 'POST /v2/"x"\n 404',
            **{"protocol": "http", "method": "POST", "path": '/v2/"x"\n', "status": 404, "client": "::1"},
            **{"request_id": "1", "seconds": 0.123457, "bytes": 7},
        }
    ]


def test_a_long_path_is_cut(written):
    log = AccessLog(True)
    answer(log, path="/" + "a" * 199)
    answer(log, path="/" + "a" * 200)
    assert [line["path"] for line in written] == ["/" + "a" * 199, "/" + "a" * 199 + "…"]


def test_probes_leave_lines_only_where_every_detail_is_wanted_or_they_fail(written, caplog):
    log = AccessLog(True)
    answer(log, quiet=True)
    answer(log, 503, quiet=True)
    caplog.set_level("DEBUG", access_log.NAME)
    answer(log, quiet=True)
    assert [(line["status"], line["level"]) for line in written] == [(503, "warning"), (200, "debug")]


def test_where_only_refusals_leave_lines_a_flood_is_counted(written, monkeypatch, caplog):
    """The seconds are short here."""
    monkeypatch.setattr(access_log, "_SECOND", 0.05)

    async def main():
        log = AccessLog(False)
        answer(log)
        for _ in range(25):
            answer(log, 429)
        await asyncio.sleep(0.1)
        answer(log, 418)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert [line["status"] for line in written] == [429] * 20 + [418]
    assert [record.getMessage() for record in caplog.records] == ["5 more requests were refused within a second"]
    assert (caplog.records[0].event, caplog.records[0].count) == ("refusals_not_logged", 5)


# --- of a server ---


@whole
def test_each_request_leaves_a_line_with_its_id(half_loaded):
    given = half_loaded.infer(request(ONE), headers={"X-Request-ID": "order-66"})
    assert given.headers["x-request-id"] == "order-66"
    (line,) = until(lambda: lines_of(half_loaded, "order-66"))
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v2/models/m/infer", 200)
    assert (line["level"], line["client"]) == ("info", "127.0.0.1")
    assert 0 < line["seconds"] < 30
    made = [half_loaded.infer(request(ONE)).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(until(lambda i=i: lines_of(half_loaded, i)) for i in made)


@whole
@pytest.mark.parametrize("bad", ["x" * 129, "two words", "a\tb", ""])
def test_an_id_that_is_none_is_replaced(half_loaded, bad):
    found = half_loaded.get("/v2", headers={"X-Request-ID": bad}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", found)


@whole
def test_refused_requests_leave_a_line(half_loaded):
    for path, status in (("/v2/models/nobody", 404), ("/v2/nothing", 404), ("/nothing", 404), ("/v2/models/bad", 503)):
        identifier = f"refused{path.replace('/', '-')}"
        assert half_loaded.get(path, headers={"X-Request-ID": identifier}).status_code == status
        (line,) = until(lambda identifier=identifier: lines_of(half_loaded, identifier))
        assert (line["status"], line["level"]) == (status, "warning")
    half_loaded.post("/v2/models/m/infer", b"{", headers={"X-Request-ID": "broken"})
    assert until(lambda: lines_of(half_loaded, "broken"))[0]["status"] == 400


@whole
def test_grpc_has_ids_and_lines_too(half_loaded):
    from mlflow_trt.serving.protocol import protobuf

    with grpc.insecure_channel(f"127.0.0.1:{half_loaded.grpc_port}") as channel:
        ask = channel.unary_unary(f"/{protobuf.SERVICE}/ServerMetadata")
        _, call = ask.with_call(b"", metadata=(("x-request-id", "call-7"),), timeout=30)
        assert dict(call.trailing_metadata())["x-request-id"] == "call-7"
        infer = channel.unary_unary(f"/{protobuf.SERVICE}/ModelInfer")
        message = protobuf.ModelInferRequest(model_name="nobody").SerializeToString()
        with pytest.raises(grpc.RpcError) as refused:
            infer(message, metadata=(("x-request-id", "call-8"),), timeout=30)
        assert dict(refused.value.trailing_metadata())["x-request-id"] == "call-8"
    (line,) = until(lambda: lines_of(half_loaded, "call-7"))
    assert (line["path"], line["status"]) == (f"/{protobuf.SERVICE}/ServerMetadata", "OK")
    (line,) = until(lambda: lines_of(half_loaded, "call-8"))
    assert (line["status"], line["level"]) == ("NOT_FOUND", "warning")


@whole
def test_lines_of_what_is_answered_well_can_be_left_out(locked):
    headers = {**AUTHORIZED, "X-Request-ID": "well"}
    assert locked.infer(request(ONE), headers=headers).headers["x-request-id"] == "well"
    assert locked.infer(request(ONE), headers={"X-Request-ID": "stranger"}).status_code == 401
    assert until(lambda: lines_of(locked, "stranger"))[0]["status"] == 401
    assert not lines_of(locked, "well")
