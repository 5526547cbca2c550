"""A child process that answers, fails, hangs, crashes and outlives its parent."""

import os
import subprocess
import sys
import time

import pytest

from mlflow_trt.conversion import child_process
from mlflow_trt.errors import SettingError

WORK = """
import os, signal, sys, time
from mlflow_trt.conversion.child_process import serve

def work(folder, say):
    what = (folder / "what").read_text()
    print("noise on standard output")
    say({"doing": what})
    if what == "refuse":
        from mlflow_trt.errors import SettingError  # it brings MLflow, so no other case waits for it
        raise SettingError("found", "expected", "remedy")
    if what == "fail":
        raise ValueError("a reason")
    if what == "disk":
        raise OSError(28, "No space left on device", "/somewhere")
    if what == "hang":
        print("about to hang", file=sys.stderr)
        time.sleep(60)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "leave":
        os._exit(3)
    return {"sum": 3}

serve(work)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    environment = child_process.package_on_path({**os.environ, "PYTHONPATH": str(tmp_path)})

    def run(what, timeout=30.0):
        folder = tmp_path / "job"
        folder.mkdir()
        (folder / "what").write_text(what)
        said = []
        try:
            found = child_process.run(
                "work_of_a_test", folder, timeout=timeout, environment=environment, heard=said.append
            )
            return found, said
        finally:
            assert said == [{"doing": what}]
            assert [p.name for p in folder.iterdir()] == ["what"], "its messages stay behind"

    return run


def test_its_result_and_what_it_said(run):
    assert run("add") == ({"sum": 3}, [{"doing": "add"}])


def test_our_own_error_comes_as_it_was(run):
    with pytest.raises(SettingError) as caught:
        run("refuse")
    assert (caught.value.found, caught.value.expected, caught.value.remedy) == ("found", "expected", "remedy")


@pytest.mark.parametrize(
    ("what", "text", "signal", "os_error"),
    [
        ("fail", "failed: ValueError: a reason", None, None),
        ("disk", "No space left on device (/somewhere)", None, "No space left on device (/somewhere)"),
        ("crash", "was ended by SIGSEGV", "SIGSEGV", None),
        ("leave", "ended with status 3 and no result", None, None),
    ],
)
def test_other_ends(run, what, text, signal, os_error):
    with pytest.raises(child_process.DiedError) as caught:
        run(what)
    assert (str(caught.value), caught.value.signal, caught.value.os_error) == (text, signal, os_error)


def test_one_that_hangs_is_stopped_in_time(run):
    begin = time.monotonic()
    with pytest.raises(child_process.TookTooLongError, match="about to hang"):
        run("hang", timeout=4.0)
    assert time.monotonic() - begin < 20


def test_it_ends_with_its_parent(tmp_path):
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    (tmp_path / "what").write_text("hang")
    script = (
        "import os, pathlib, sys; from mlflow_trt.conversion import child_process\n"
        f"child_process.run('work_of_a_test', pathlib.Path({str(tmp_path)!r}), timeout=None,"
        " environment=dict(os.environ), heard=lambda said: (print('up', flush=True), os.kill(os.getpid(), 9)))"
    )
    environment = child_process.package_on_path({**os.environ, "PYTHONPATH": str(tmp_path)})
    subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        alive = subprocess.run(["pgrep", "-f", f"work_of_a_test {tmp_path}"], capture_output=True, check=False).stdout
        if not alive:
            return
        time.sleep(0.2)
    raise AssertionError("the child outlives its parent")
