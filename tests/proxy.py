"""A proxy before MLflow's server, to do to a client what networks and operators do.

A rule sees each request before it is forwarded, by its number among those that write (reads have none), and may name
what happens to it.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlparse

Action = Literal["forward", "drop", "drop answer", "refuse"]
"""``"drop"``: the server never sees it; ``"drop answer"``: the client never hears of it; ``"refuse"``: 403."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    writes: int
    """How many requests that write came before it, itself included."""

    @property
    def is_write(self) -> bool:
        # MLflow searches by POST.
        return self.method != "GET" and not self.path.split("?")[0].endswith("/search")


@dataclass
class Proxy:
    uri: str = ""
    rule: Callable[[Request], Action] = lambda request: "forward"
    after: Callable[[Request], Any] = lambda request: None
    """Called once the server has answered, before the client hears of it."""
    writes: list[str] = field(default_factory=list)

    def reset(self) -> None:
        self.rule = lambda request: "forward"
        self.after = lambda request: None
        self.writes.clear()


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Runs a proxy before the server at ``upstream``."""
    made = Proxy()
    where = urlparse(upstream)
    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One packet for an answer: headers alone would wait for the client's delayed acknowledgement, 40 ms each.
        wbufsize = -1
        disable_nagle_algorithm = True

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with counting:
                request = Request(self.command, self.path, len(made.writes) + 1)
                if request.is_write:
                    made.writes.append(f"{self.command} {self.path.split('?')[0]}")
            action = made.rule(request)
            if action == "refuse":
                self.answer(403, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}', {})
                return
            if action == "drop":
                self.hang_up()
                return
            connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            kept = {k: v for k, v in response.getheaders() if k.lower() in ("content-type", "content-disposition")}
            connection.close()
            made.after(request)
            if action == "drop answer":
                self.hang_up()
                return
            self.answer(response.status, content, kept)

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            with contextlib.suppress(OSError):  # the client may be gone
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        made.uri = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield made
        finally:
            server.shutdown()
