"""All connections of a process together: how many there are, what waits to be sent, what is told of those cut off."""

from __future__ import annotations

import contextlib
import json

import pytest

from ..light import light, until
from .raw_client import BODY, connect, cuts, head, response

pytestmark = [pytest.mark.xdist_group("connections"), pytest.mark.timeout(180)]
WAYS = pytest.mark.parametrize("options", [(), ("--http-processes", "1")], ids=["one process", "HTTP workers"])


# --- of a server ---


def test_answers_that_nobody_takes_are_bounded_together(tmp_path):
    models = (f"--model=wide=/light/0/{4 << 20}",)
    with light(tmp_path, *models, "--max-unsent", "40", "--write-timeout", "60") as server:
        binary = BODY[:-1] + b',"parameters":{"binary_data_output":true}}'
        with contextlib.ExitStack() as clients:
            for _ in range(8):
                connection = clients.enter_context(connect(server))
                connection.sendall(head(path="/v2/models/wide/infer", length=len(binary)) + binary)
            until(lambda: cuts(server, "unsent_bytes") >= 5)
        assert server.alive()


@WAYS
def test_more_connections_than_the_limit_get_a_clear_answer_and_probes_still_theirs(tmp_path, options):
    with light(tmp_path, "--max-connections", "20", *options) as server, contextlib.ExitStack() as clients:
        for _ in range(120):
            clients.enter_context(connect(server))
        for _ in range(3):
            found = server.post("/v2/models/m/infer", BODY)
            assert (found.status_code, found.headers["retry-after"]) == (503, "1")
            assert "20 connections" in found.json()["error"]
            probe = server.get("/v2/health/live")
            assert (probe.status_code, probe.headers["connection"]) == (200, "close")
            assert server.get("/v2/health/ready").status_code == 200
        until(lambda: any("connections_cut" in line for line in server.lines()))
        clients.close()
        until(lambda: server.post("/v2/models/m/infer", BODY).status_code == 200)
        assert cuts(server, "connections") >= 3


@WAYS
def test_many_refused_requests_leave_few_lines_and_their_number(tmp_path, options):
    with light(tmp_path, *options) as server:
        for number in range(200):
            with connect(server) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nX-Request-ID: flood-%d\r\nA: b\r\nBroken\r\n\r\n" % number)
                assert response(connection)[0] == 400

        def found() -> tuple[int, int]:
            lines = list(map(json.loads, server.lines()))
            shown = sum(line.get("request_id", "").startswith("flood-") for line in lines)
            return shown, sum(line["count"] for line in lines if line.get("event") == "refusals_not_logged")

        until(lambda: sum(found()) == 200)
        assert 20 <= found()[0] < 200
