"""What each request leaves in the log, and with which id."""

from __future__ import annotations

import re

import grpc
import pytest

from .light import until
from .registered import rows
from .running import AUTHORIZED, lines_of, request, whole

ONE = rows(1)["x"].tolist()


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
