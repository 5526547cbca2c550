"""All connections of a process together: how many there are, what waits to be sent, what is told of those cut off."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from mlflow_trt.serving.http.connection_guard import ConnectionGuard
from mlflow_trt.serving.limits import Limits
from mlflow_trt.serving.shutdown import Shutdown

from ..light import light, until
from .asgi import Counts
from .raw_client import BODY, connect, cuts, head, response

pytestmark = [pytest.mark.xdist_group("connections"), pytest.mark.timeout(180)]
WAYS = pytest.mark.parametrize("options", [(), ("--http-processes", "1")], ids=["one process", "HTTP workers"])


class Standing:
    """A connection that stands still."""

    def __init__(self, since=0.0, held=0):
        self.since = since
        self.held = held
        self.ended = []

    def look(self, now):
        return self.held

    def cut(self, limit):
        self.ended.append(limit)

    def refuse(self, status, message, limit=""):
        self.ended.append((status, limit))

    def close(self):
        self.ended.append("closed")

    def announce_end(self):
        self.ended.append("announced")


def guarded(*connections, **limits):
    """A guard of connections, and what it counts."""
    counts = Counts()
    guard = ConnectionGuard(Limits(**limits), Shutdown(), counts)
    guard.connections.update(connections)
    return guard, counts


# --- what is decided ---


def test_while_less_waits_than_the_limit_nobody_is_cut_off():
    connections = [Standing(held=512) for _ in range(4)]
    guard, _ = guarded(*connections, max_unsent=2048)
    guard._look(1.0)
    assert not any(connection.ended for connection in connections)


def test_of_those_who_take_nothing_the_longest_go_until_what_waits_is_little_enough():
    connections = [Standing(since, 1000) for since in (5.0, 1.0, 3.0, 2.0, 4.0)]
    idle = Standing(since=0.0)
    guard, _ = guarded(*connections, idle, max_unsent=3500)
    guard._look(10.0)
    assert [connection.since for connection in connections if connection.ended] == [1.0, 2.0]
    assert connections[1].ended == ["unsent_bytes"]
    assert not idle.ended, "nothing waits for it"


def test_of_connections_beyond_the_limit_the_newest_may_still_ask():
    connections = [Standing() for _ in range(34)]
    guard, _ = guarded(max_connections=7)
    for connection in connections:
        guard.take_spare(connection)
    assert [connection.ended for connection in connections[:2]] == [[(503, "connections"), "closed"]] * 2
    assert not any(connection.ended for connection in connections[2:])
    assert list(guard.spare) == connections[2:]
    assert guard.too_many() == (503, "7 connections are open, which is the limit.", "connections")


def test_what_was_cut_off_is_told_now_and_then_and_idle_connections_are_not(caplog):
    guard, counts = guarded()
    told = []

    def look(now, *limits):
        for limit in limits:
            guard.count(limit)
        caplog.clear()
        guard._look(now)
        told.append([record.limits for record in caplog.records if record.event == "connections_cut"])

    look(1.0)
    look(2.0, "idle_time")
    look(3.0, "header_time", "header_time", "connections")
    look(4.0, "write_time")
    look(12.9)
    look(13.0, "write_time")
    look(60.0)
    assert told == [[], [], [{"header_time": 2, "connections": 1}], [], [], [{"write_time": 2}], []]
    assert counts.cuts == ["idle_time", "header_time", "header_time", "connections", "write_time", "write_time"]


def test_a_server_that_drains_has_all_connections_say_so():
    connections = [Standing(), Standing()]
    guard, _ = guarded(*connections)
    guard.drain()
    assert [connection.ended for connection in connections] == [["announced"]] * 2


@pytest.mark.parametrize(
    ("limits", "looks"), [({}, 1.0), ({"header_timeout": 0.4}, 0.1), ({"write_timeout": 2.0}, 0.5)]
)
def test_it_looks_so_often_that_no_deadline_passes_by(monkeypatch, limits, looks):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) > 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    guard, _ = guarded(**limits)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(guard.run())
    assert pauses == [looks] * 3


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
