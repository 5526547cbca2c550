"""How a process listens: its descriptors and its sockets."""

from __future__ import annotations

import contextlib
import gc
import resource
import socket
import sys
import time

import pytest

from mlflow_trt.errors import StoreError
from mlflow_trt.serving.http import listening

from ..light import light
from .raw_client import BODY, connect

# --- addresses ---


def test_a_port_that_the_system_chooses():
    with listening.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert port > 0
        assert listening.is_listening(bound)
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_that_is_taken_leaves_nothing_open(recwarn):
    with listening.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(StoreError, match=rf"^127\.0\.0\.1:{port} can't be listened on: Address already in use"):
            listening.bind("127.0.0.1", port)
        gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "..", "a" * 64, "é" * 70])
def test_an_address_that_is_not_this_machine_s(host):
    with pytest.raises(StoreError, match="can't be listened on") as caught:
        listening.bind(host, 0)
    assert caught.value.remedy


# --- descriptors ---


@pytest.fixture
def descriptors(monkeypatch):
    """How many there may be, in place of this process's own limits; the soft one can be set."""
    limits = [1024, 4096]

    def limit(_, pair):
        assert pair[0] <= pair[1] or pair[1] == resource.RLIM_INFINITY
        limits[:] = pair

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", limit)
    return limits


UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "possible", "after"),
    [
        (1024, 4096, 100, 100, 1024),  # enough
        (1024, 4096, 896, 896, 1024),
        (1024, 4096, 897, 897, 1025),  # as many as are needed
        (1024, 4096, 3968, 3968, 4096),
        (1024, 4096, 3969, 3968, 4096),  # one too few
        (1024, UNLIMITED, 10_000, 10_000, 10_128),
        (UNLIMITED, UNLIMITED, 10**6, 10**6, UNLIMITED),
        (200, 200, 1000, 72, 200),
        (140, 140, 1000, 35, 140),  # a quarter at least
        (2, 2, 1000, 1, 2),
    ],
)
def test_how_many_connections_there_can_be(descriptors, caplog, soft, hard, wanted, possible, after):
    descriptors[:] = soft, hard
    assert listening.affordable(wanted) == possible
    assert descriptors == [after, hard]
    warned = [record for record in caplog.records if getattr(record, "event", None) == "few_descriptors"]
    assert len(warned) == (possible < wanted)


# --- sockets that a library does not show ---


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_sockets_of_a_port():
    with listening.bind("127.0.0.1", 0) as bound, listening.bind("127.0.0.1", 0):
        port = bound.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, bound.accept()[0] as accepted:
            found = [(listening.is_listening(each), each.fileno()) for each in listening.sockets_at(port)]
            assert sorted(listens for listens, _ in found) == [False, True]
            assert not {bound.fileno(), accepted.fileno()} & {number for _, number in found}, (
                "they are not ours to close"
            )
            own = client.getsockname()[1]
            assert [listening.is_listening(each) for each in listening.sockets_at(own)] == [False]
        assert accepted.fileno() == -1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_who_was_heard_lately():
    with (
        listening.bind("127.0.0.1", 0) as bound,
        socket.create_connection(bound.getsockname()) as client,
        bound.accept()[0] as accepted,
    ):
        client.sendall(b"x")
        accepted.recv(1)
        assert listening.heard_within(accepted, 10)
        time.sleep(0.1)
        assert not listening.heard_within(accepted, 0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_what_has_connected_is_accepted_and_nothing_new_comes():
    with listening.bind("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()) as client:
        listening.refuse_new(bound)
        with socket.socket() as late:
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.connect(bound.getsockname())
        with bound.accept()[0] as accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"


# --- of a server ---


@pytest.mark.xdist_group("connections")
@pytest.mark.timeout(180)
def test_few_descriptors_lower_the_limit(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = tmp_path / "few.sh"
    script.write_text('ulimit -n 200\nexec "$@"\n')
    with light(tmp_path, through=("sh", str(script))) as server, contextlib.ExitStack() as clients:
        assert any("few_descriptors" in line for line in server.lines())
        for _ in range(300):
            clients.enter_context(connect(server))
        for _ in range(3):
            assert server.get("/v2/health/live").status_code == 200
            assert server.post("/v2/models/m/infer", BODY).status_code == 503
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)
