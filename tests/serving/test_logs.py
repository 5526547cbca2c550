"""The server's log: one JSON object per line, whoever wrote it."""

from __future__ import annotations

import json

import pytest

from .running import served, whole

# --- of a server ---


@whole
def test_every_line_is_json(half_loaded):
    client = pytest.importorskip("tritonclient.grpc").InferenceServerClient(f"127.0.0.1:{half_loaded.grpc_port}")
    assert client.is_server_live()
    client.close()
    half_loaded.post("/v2/models/m/infer", b"{\n}\r{")
    lines = [json.loads(line) for line in half_loaded.lines()]
    assert all(isinstance(line, dict) and line["message"] and line["level"] for line in lines)
    assert any(line["logger"] == "stderr" for line in lines), "gRPC's library wrote nothing"


@whole
def test_so_is_every_line_of_a_server_that_can_t_start(plus_one, tmp_path):
    with pytest.raises(AssertionError), served(tmp_path, str(plus_one.parent / "nothing")):
        pass
    (log,) = tmp_path.glob("serve-*.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "manifest.json can't be read" in lines[-1]["message"]
