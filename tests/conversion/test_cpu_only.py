# ruff: noqa: E402
"""The building child: what it is asked for, and every way in which it can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")

import mlflow_trt
from mlflow_trt import Input
from mlflow_trt.conversion import cpu_only
from mlflow_trt.errors import ConversionError, SettingError

from .models import Cnn

pytestmark = pytest.mark.usefixtures("fresh_builders")

CONVERT = """
import mlflow_trt, torch
from mlflow_trt.errors import ConversionError
{before}
try:
    mlflow_trt.convert(torch.nn.Linear(4, {width}), [mlflow_trt.Input((1, 4))], compute_capabilities="8.6")
    print("converted")
except ConversionError as error:
    print("ConversionError", error)
"""


@pytest.fixture(autouse=True)
def _torchs_own_cache(tmp_path, monkeypatch):
    """torch makes it at a process's first export, by default among the temporary files that are counted here."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, which must be empty again afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def children_of(process):
    """Process ids of the children."""
    found = []
    for task in os.listdir(f"/proc/{process}/task"):
        try:
            with open(f"/proc/{process}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
        except OSError:
            continue
    return found


def is_builder(process):
    try:
        with open(f"/proc/{process}/cmdline") as file:
            return "mlflow_trt.conversion.build_child" in file.read()
    except OSError:
        return False


def wait_for_builder(parent, seconds=60):
    """The building child of a process, once there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for child in children_of(parent):
            if is_builder(child):
                return child
        time.sleep(0.05)
    raise AssertionError("no building child came up")


def ended(child, seconds=30):
    """Whether a building child ends; at the latest when it sees that its parent's end of the pipe is closed."""
    deadline = time.monotonic() + seconds
    while is_builder(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not is_builder(child)


def convert(**options):
    return mlflow_trt.convert(Cnn(), [Input((1, 3, 8, 8))], compute_capabilities="8.6", **options)


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        (["8.6", "sm89", (8, 0), 12.0], ("8.0", "8.6", "8.9", "12.0")),
        ("sm_120", ("12.0",)),
        (8.9, ("8.9",)),
        ((8, 6), ("8.6",)),
        (("8.6", "8.6"), ("8.6",)),
        ({"86", "75"}, ("7.5", "8.6")),
    ],
)
def test_capabilities(given, spelled):
    assert cpu_only.capabilities(given) == spelled


def test_all_capabilities():
    assert cpu_only.capabilities(None) == cpu_only.supported_capabilities()
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(cpu_only.supported_capabilities())


@pytest.mark.parametrize("given", ["9.0", ["8.6", "9.9"], "turing", [], (8, 6, 1), "8", None.__class__])
def test_capabilities_that_are_none(given):
    with pytest.raises(SettingError):
        cpu_only.capabilities(given)


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "SIGKILL: it probably ran out of memory"), (signal.SIGSEGV, "SIGSEGV")]
)
def test_killed(temporary, number, words):
    # The killer is the thread: torch 2.11 crashes where a second thread of a process exports.
    killer = threading.Thread(target=lambda: os.kill(wait_for_builder(os.getpid()), number))
    killer.start()
    with pytest.raises(ConversionError, match=words):
        convert()
    killer.join()


def test_hanging(temporary):
    started = time.monotonic()
    with pytest.raises(ConversionError, match=r"not finished after 1 seconds") as caught:
        convert(timeout=1.0)
    assert time.monotonic() - started < 30
    assert "timeout=" in caught.value.remedy
    assert not any(is_builder(child) for child in children_of(os.getpid()))


@pytest.mark.parametrize(("limit", "width"), [(100_000, 100_000), (100_000, 4)])
def test_full_disk(tmp_path, limit, width):
    """First the program does not fit, then only the plan, which the child writes."""
    before = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    folder = tmp_path / "full"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CONVERT.format(before=before, width=width)],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=120,
    )
    assert "ConversionError" in done.stdout, done.stderr[-2000:]
    assert f"could not be written to {folder}" in done.stdout
    assert "set TMPDIR" in done.stdout
    assert list(folder.iterdir()) == []


def test_interrupted(tmp_path):
    """Ctrl-C ends the child too, and leaves nothing behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", CONVERT.format(before="", width=4)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what it runs aside
    )
    child = wait_for_builder(parent.pid)
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    assert ended(child)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("mlflow-trt-")]


def test_child_ends_with_its_parent(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", CONVERT.format(before="", width=4)], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    child = wait_for_builder(parent.pid)
    parent.kill()
    parent.wait()
    assert ended(child)
