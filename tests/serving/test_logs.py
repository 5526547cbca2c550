"""The server's log: one JSON object per line, whoever wrote it."""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_trt.serving import logs

from .running import served, whole

# --- one line ---


def formatted(level=logging.INFO, message="text", *args, exc_info=None, **extra):
    record = logging.LogRecord("a.logger", level, "file.py", 1, message, args, exc_info)
    vars(record).update(extra)
    text = logs.JsonFormatter().format(record)
    assert text.isascii()
    assert text.isprintable()
    return json.loads(text)


def test_a_record_and_its_extra_fields():
    line = formatted(logging.WARNING, "%s of %d", "one", 2, event="x", model="m", uri=Path("/m"))
    moment = datetime.datetime.fromisoformat(line.pop("time"))
    assert abs(moment - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert line == {
        **{"level": "warning", "logger": "a.logger", "message": "one of 2"},
        **{"event": "x", "model": "m", "uri": "/m"},
    }


def test_nothing_in_a_text_ends_the_line():
    text = 'a\n{"level": "error"}\r\x1b[31m\u2028\ud800"é'
    assert formatted(message="%s", **{"path": text})["path"] == text
    assert formatted(logging.INFO, "%s", text)["message"] == text


def test_an_exception_is_in_its_line():
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        line = formatted(exc_info=sys.exc_info())
    assert "ValueError: bad\nvalue" in line["exception"]


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**70, 0.25, 1e-07, True, None, "", "a", 'é"\\\n\x00\u2028', 1e300],
)
def test_members_are_those_of_a_json_object(value):
    fields = {"a": value, "b": "x"}
    text = logs.members(fields)
    assert text.isascii()
    found = json.loads(f"{{{text}}}")
    assert found == fields
    assert type(found["a"]) is type(value)


@given(st.floats(0, 4e9, allow_nan=False), st.floats(0, 4e9, allow_nan=False))
def test_a_moment_is_told_in_utc_to_the_millisecond(first, second):
    for moment in (first, second, first):
        read = datetime.datetime.fromisoformat(logs._moment(moment))
        assert read.utcoffset() == datetime.timedelta()
        assert 0 <= moment - read.timestamp() < 0.0011


# --- lines of requests, which wait for others ---


@pytest.fixture
def out(monkeypatch):
    """In place of standard error."""
    stream = io.StringIO()
    monkeypatch.setattr(logs, "stream", lambda: stream)
    monkeypatch.setattr(logs, "_waiting", [])
    return stream


def test_lines_of_requests_are_written_together_a_little_later(out, monkeypatch):
    monkeypatch.setattr(logs, "_LATER", 0.05)

    async def main():
        logs.write(logs.members({"message": "one"}), {"n": 1})
        logs.write(logs.members({"message": "two"}), {"n": 2})
        assert out.getvalue() == ""
        await asyncio.sleep(0.1)
        assert out.getvalue().count("\n") == 2
        logs.write(logs.members({"message": "three"}), {"n": 3})
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert [(line["message"], line["n"]) for line in map(json.loads, out.getvalue().splitlines())] == [
        ("one", 1),
        ("two", 2),
        ("three", 3),
    ]


def test_without_an_event_loop_they_are_written_at_once(out):
    logs.write(logs.members({"message": "one"}), {"n": 1})
    assert json.loads(out.getvalue())["n"] == 1


def test_where_nobody_reads_them_any_more_nothing_fails(out):
    out.close()
    logs.write(logs.members({"message": "one"}), {})
    assert logs._waiting == []


# --- whatever else a process writes ---

SPEAKING = """
import logging, os, sys, threading, warnings
from mlflow_trt.serving import logs

warnings.simplefilter("always")
other = logging.getLogger("other")
other.addHandler(logging.StreamHandler())
with logs.captured("info"):
    logging.getLogger("mlflow_trt").info("ours")
    logging.getLogger("mlflow_trt").debug("too fine")
    other.warning("another's")
    os.write(2, b"one\\rtwo\\n\\xff\\n\\n{\\"message\\": \\"forged\\"}\\n")
    os.write(2, b"x" * 70_000 + b"\\n")
    warnings.warn("a warning")
    thread = threading.Thread(target=lambda: 1 / 0, name="t")
    thread.start()
    thread.join()
    os.write(2, b"no end of line")
sys.stderr.write("as ever\\n")
"""


def test_whatever_a_process_writes_to_standard_error_becomes_lines():
    done = subprocess.run([sys.executable, "-c", SPEAKING], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stderr.decode().splitlines()
    assert last == "as ever"
    found = [(line["logger"], line["level"], line["message"]) for line in map(json.loads, lines)]
    assert ("mlflow_trt", "info", "ours") in found
    assert ("other", "warning", "another's") in found
    assert not any("too fine" in message for _, _, message in found)
    others = [message for logger, level, message in found if (logger, level) == ("stderr", "warning")]
    assert others[:4] == ["one", "two", "\N{REPLACEMENT CHARACTER}", '{"message": "forged"}']
    assert "".join(others[4:-1]) == "x" * 70_000
    assert others[-1] == "no end of line"
    assert any("a warning" in message for _, _, message in found)
    assert any("The thread t failed" in message for _, _, message in found)
    assert all(len(line) < (1 << 17) for line in lines)


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
