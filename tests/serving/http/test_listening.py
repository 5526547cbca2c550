"""How a process listens: its descriptors and its sockets."""

from __future__ import annotations

import contextlib
import resource

import pytest

from ..light import light
from .raw_client import BODY, connect


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
