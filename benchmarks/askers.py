"""Clients that ask a server rightly, look at every answer, and know what became of each request.

Each request has an id, which the server's log names too: a request that the server has answered and whose client has
no answer is lost, whatever the client got instead.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

X = np.arange(8, dtype=np.float32).reshape(2, 4)
WIDTH = 3
"""Numbers in each row of an answer."""
_SECONDS = 60
"""That a client waits for an answer."""
_BETWEEN = 0.01
"""Seconds between two requests of a client."""


@dataclass
class Asked:
    """What clients got; threads only add to it."""

    answered: Counter[str] = field(default_factory=Counter)
    """Right answers, by the kind of client."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that the server said that it does not take: a connection refused, or UNAVAILABLE; by kind."""
    failures: list[str] = field(default_factory=list)
    unanswered: dict[str, str] = field(default_factory=dict)
    """Id of each request that was not answered → what its client got."""

    def lost(self, lines: list[str]) -> list[str]:
        """Requests that failed, and those that were refused though the server's log says that it took them."""
        taken = {}
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("status") in (200, "OK"):
                    taken[entry.get("request_id")] = entry["path"]
        return self.failures + [
            f"{identifier}: {found}, and the server answered"
            for identifier, found in self.unanswered.items()
            if identifier in taken
        ]


class Askers:
    """Runs them in threads, until the server takes no more.

    Args:
        ports: Of HTTP and gRPC.
        model: Whom they ask.
        token: Their bearer token.
        shifts: Version → what it adds to twice its input. ``""``: whatever it is called.
        kinds: Which of :data:`KINDS`, and how many of each.
    """

    def __init__(
        self, ports: tuple[int, int], model: str, token: str, shifts: Mapping[str, float], kinds: Mapping[str, int]
    ) -> None:
        self.asked = Asked()
        self.ending = threading.Event()
        """Set once the server is told to end: from then on it may refuse."""
        self.ports, self.model, self.token, self.shifts = ports, model, token, shifts
        self._threads = [
            threading.Thread(
                target=self._run, args=(kind, re.sub(r"[^A-Za-z0-9]+", "-", f"{kind} {number}")), daemon=True
            )
            for kind, count in kinds.items()
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> None:
        """Waits until they have stopped; one that has not by then waits for an answer that does not come."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
            if thread.is_alive():
                self.asked.failures.append(f"{thread.name} still waits")

    def check(self, kind: str, version: str, scores: np.ndarray) -> None:
        """Looks at an answer; where its version is not known, that of any will do."""
        wanted = [self.shifts[version]] if version and "" not in self.shifts else self.shifts.values()
        if any(np.array_equal(scores.reshape(-1, WIDTH), X[:, :WIDTH] * 2 + shift) for shift in wanted):
            self.asked.answered[kind] += 1
        else:
            self.asked.failures.append(f"{kind}: version {version} answered {scores.tolist()}")

    def fail(self, kind: str, identifier: str, error: object) -> None:
        """Notes a request that failed."""
        self.asked.failures.append(f"{kind}, {identifier}: {error if isinstance(error, str) else repr(error)}"[:200])

    def refuse(self, kind: str, identifier: str, error: object) -> None:
        """Notes a request that the server did not take; while it does not end, that is a failure."""
        if not self.ending.is_set():
            self.fail(kind, identifier, error)
        self.asked.refused[kind] += 1
        self.asked.unanswered[identifier] = str(error)[:100]

    def _run(self, kind: str, name: str) -> None:
        try:
            for _ in KINDS[kind](self, kind, (f"{name}-{number}" for number in itertools.count())):
                time.sleep(_BETWEEN)
                if len(self.asked.failures) > 100:
                    break
        except Exception as error:
            self.fail(kind, name, error)


def _http(askers: Askers, kind: str, identifiers: Iterator[str], keep: bool = True) -> Iterator[str]:
    """Over one connection for as long as the server keeps it, or over a new one each time."""
    path, headers, body, read = _FORMS[kind](askers)
    connection = http.client.HTTPConnection("127.0.0.1", askers.ports[0], timeout=_SECONDS)
    connection.auto_open = 0
    for identifier in identifiers:
        if connection.sock is None:
            try:
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except ConnectionRefusedError as error:
                askers.refuse(kind, identifier, error)
                return
        try:
            sent = {**headers, "Authorization": f"Bearer {askers.token}", "X-Request-ID": identifier}
            connection.request("POST", path, body, sent)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            askers.fail(kind, identifier, error)
            connection.close()
        else:
            if response.status == 200:
                askers.check(kind, *read(response, content))
            else:
                askers.fail(kind, identifier, f"{response.status}: {content[:100]!r}")
            if not keep or response.will_close:
                connection.close()
        yield identifier


def _once(askers: Askers, kind: str, identifiers: Iterator[str]) -> Iterator[str]:
    return _http(askers, kind, identifiers, keep=False)


def _grpc(askers: Askers, kind: str, identifiers: Iterator[str]) -> Iterator[str]:
    """One call after the other."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{askers.ports[1]}") as channel:
        infer, data = _method(askers, channel)
        for identifier in identifiers:
            try:
                answer = infer(data, timeout=_SECONDS, metadata=_metadata(askers, identifier))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    askers.refuse(kind, identifier, error.details())
                    if askers.ending.is_set():
                        return
                else:
                    askers.fail(kind, identifier, f"{error.code().name}: {error.details()}")
            else:
                askers.check(kind, *_scores(answer))
            yield identifier


def _calls(askers: Askers, kind: str, identifiers: Iterator[str]) -> Iterator[str]:
    """A call every few milliseconds, whatever becomes of those before."""
    import grpc

    waiting: dict[str, Any] = {}

    def told(identifier: str, call: Any) -> None:
        code = call.code()
        if code is grpc.StatusCode.OK:
            askers.check(kind, *_scores(call.result()))
        elif code is grpc.StatusCode.UNAVAILABLE:
            askers.refuse(kind, identifier, call.details())
        else:
            askers.fail(kind, identifier, f"{code.name}: {call.details()}")
        del waiting[identifier]

    with grpc.insecure_channel(f"127.0.0.1:{askers.ports[1]}") as channel:
        infer, data = _method(askers, channel)
        for identifier in identifiers:
            call = waiting[identifier] = infer.future(data, timeout=_SECONDS, metadata=_metadata(askers, identifier))
            call.add_done_callback(lambda call, identifier=identifier: told(identifier, call))
            yield identifier
            if askers.ending.is_set() and askers.asked.refused[kind]:
                break
        end = time.monotonic() + _SECONDS
        while waiting and time.monotonic() < end:
            time.sleep(0.01)  # to close the channel would cancel them


def _method(askers: Askers, channel: Any) -> tuple[Any, bytes]:
    from mlflow_trt.serving.protocol import protobuf

    message = protobuf.ModelInferRequest(model_name=askers.model, raw_input_contents=[X.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=X.shape)
    return channel.unary_unary(f"/{protobuf.SERVICE}/ModelInfer"), message.SerializeToString()


def _metadata(askers: Askers, identifier: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {askers.token}"), ("x-request-id", identifier))


def _scores(answer: bytes) -> tuple[str, np.ndarray]:
    from mlflow_trt.serving.protocol import protobuf

    response = protobuf.ModelInferResponse.FromString(answer)
    return response.model_version, np.frombuffer(response.raw_output_contents[0], np.float32)


Read = Callable[[http.client.HTTPResponse, bytes], tuple[str, np.ndarray]]
Form = tuple[str, dict[str, str], bytes, Read]
"""Path, headers and body of a request, and what reads its answer."""


def _json(askers: Askers) -> Form:
    def read(response: http.client.HTTPResponse, content: bytes) -> tuple[str, np.ndarray]:
        found = json.loads(content)
        return found["model_version"], np.array(found["outputs"][0]["data"], np.float32)

    entry = {"name": "x", "datatype": "FP32", "shape": X.shape, "data": X.ravel().tolist()}
    return f"/v2/models/{askers.model}/infer", {}, json.dumps({"inputs": [entry]}).encode(), read


def _binary(askers: Askers) -> Form:
    def read(response: http.client.HTTPResponse, content: bytes) -> tuple[str, np.ndarray]:
        length = int(response.headers["Inference-Header-Content-Length"])
        return json.loads(content[:length])["model_version"], np.frombuffer(content, np.float32, offset=length)

    entry = {"name": "x", "datatype": "FP32", "shape": X.shape, "parameters": {"binary_data_size": X.nbytes}}
    output = {"name": "y", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [entry], "outputs": [output]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return f"/v2/models/{askers.model}/infer", headers, head + X.tobytes(), read


def _invocations(askers: Askers) -> Form:
    def read(response: http.client.HTTPResponse, content: bytes) -> tuple[str, np.ndarray]:
        return "", np.array(json.loads(content)["predictions"]["y"], np.float32)

    body = json.dumps({"inputs": {"x": X.tolist()}}).encode()
    return "/invocations", {"Content-Type": "application/json"}, body, read


_FORMS = {
    "HTTP, JSON": _json,
    "HTTP, binary": _binary,
    "HTTP, a connection each": _json,
    "/invocations": _invocations,
}
KINDS: dict[str, Callable[[Askers, str, Iterator[str]], Iterator[str]]] = {
    "HTTP, JSON": _http,
    "HTTP, binary": _http,
    "HTTP, a connection each": _once,
    "/invocations": _http,
    "gRPC": _grpc,
    "gRPC, calls in flight": _calls,
}
"""What a client may be: it asks with one id after the other, and yields after each."""
