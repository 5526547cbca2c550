"""What the processes of a server use; here the test's own stands for a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mlflow_trt.serving import processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

WAITING = "import sys; print(flush=True); sys.stdin.read()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITING!r}, 'x.codec_process', '7'])"


def child(stack: ExitStack, code: str, *arguments: str) -> int:
    """A process that waits until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.callback(process.wait, 30)
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    stack.callback(process.stdin.close)
    assert process.stdout.readline() == "\n"
    return process.pid


@pytest.fixture
def started() -> Iterator[dict[int, str]]:
    """Three children, by pid, and their roles; the last one has a child of its own."""
    with ExitStack() as stack:
        yield {
            child(stack, WAITING, "mlflow_trt.serving.workers.worker", "3"): "http",
            child(stack, WAITING, "mlflow_trt.serving.workers.workers"): "other",
            child(stack, PARENT): "other",
        }


def test_each_process_has_its_role(started):
    found = processes.processes()
    roles = {pid: role for role, pid in found}
    assert found[0] == ("server", os.getpid())
    assert {pid: roles[pid] for pid in started} == started
    assert sum(role == "codec" for role in roles.values()) == 1, "the child of a child is missing"
    assert len(roles) == len(found)


def test_their_figures_are_told_apart(started):
    samples = [sample for metric in processes.collect() for sample in metric.samples]
    memory = {
        int(sample.labels["pid"]): (sample.labels["process"], sample.value)
        for sample in samples
        if sample.name == "process_resident_memory_bytes"
    }
    assert memory[os.getpid()][0] == "server"
    assert {pid: memory[pid][0] for pid in started} == started
    # Another test's child that has just ended has none.
    assert all(memory[pid][1] > 1e6 for pid in (os.getpid(), *started))
    assert {"process_cpu_seconds_total", "process_open_fds"} <= {sample.name for sample in samples}


def test_a_process_that_has_just_ended_is_none(monkeypatch):
    with ExitStack() as stack:
        gone = child(stack, WAITING)
    monkeypatch.setattr(processes, "_children", lambda pid: [gone] if pid == os.getpid() else [])
    assert processes.processes() == [("server", os.getpid()), ("other", gone)]
    metrics = [sample for metric in processes.collect() for sample in metric.samples]
    assert {sample.labels["pid"] for sample in metrics} == {str(os.getpid())}


def test_where_there_is_no_proc_there_is_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert processes.processes() == []
    assert list(processes.collect()) == []
