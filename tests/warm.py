"""Building children that start warm: forked off a process that has imported Torch-TensorRT once.

A fresh child spends four fifths of its time on imports, which is long where hundreds of tests convert. What the parent
starts instead is this file: a small process that hands its streams to the forked one, ends as that one ends, and takes
it along when it is killed. Between parent and child all is as ever. TensorRT is first used after the fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

BUILDER = "mlflow_trt.conversion.build_child"
ADDRESS = "MLFLOW_TRT_TESTS_BUILDERS"
"""Environment variable: where the warm process listens, for programs that a test starts."""
AT_START = Path(__file__).with_name("at_start")
"""Holds ``sitecustomize``, which has such a program use it."""
_MESSAGE = 1 << 20

Command = Callable[[str, Path], list[str]]


class Builders:
    """Building children that start warm, of this process and of programs that it starts.

    Args:
        folder: For the socket and for what Torch-TensorRT writes at import.
        fresh: The command line of a child that imports for itself: it stays that of all other children, and of building
            children that must import more.
    """

    def __init__(self, folder: Path, fresh: Command) -> None:
        self.fresh = fresh
        self._address = folder / "builders"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, module: str, job: Path) -> list[str]:
        """The command line of a child; the first building one starts the warm process."""
        return command(self._started, self.fresh, module, job)

    def environment(self) -> dict[str, str]:
        """Variables with which a program's building children start warm too."""
        path = [str(AT_START), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(path), ADDRESS: str(self._started())}

    def run(self, module: str) -> list[str]:
        """The command line of a module of the tests that builds in its own process, forked off the warm one."""
        return [sys.executable, "-I", "-S", __file__, str(self._started()), module, ""]

    def close(self) -> None:
        """Ends the warm process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()

    def _started(self) -> Path:
        if self._process is None:
            self._process = _start(self._address)
        return self._address


def command(address: Callable[[], Path], fresh: Command, module: str, job: Path) -> list[str]:
    """The command line of a child: what starts it warm, if that is possible."""
    if module != BUILDER:
        return fresh(module, job)
    content = json.loads((job / "job.json").read_text())
    if content["imports"] or content["job"]["converter"] == "onnx":  # which needs no torch
        return fresh(module, job)
    return [sys.executable, "-I", "-S", __file__, str(address()), module, str(job)]


def _start(address: Path) -> subprocess.Popen[bytes]:
    from mlflow_trt.conversion import child_process

    environment = {
        **child_process.package_on_path(os.environ),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # NumPy's BLAS starts its threads at import
        "TMPDIR": str(address.parent),
    }
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening,
        (address.parent / "builders.log").open("wb") as log,
    ):
        listening.bind(str(address))
        listening.listen()
        return subprocess.Popen(
            [sys.executable, __file__, str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[listening.fileno()],
            env=environment,
        )


def _launch(address: str, module: str, job: str) -> NoReturn:
    """What the parent starts: has a process forked for its own streams, and ends as that one does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        request = {"module": module, "job": job, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        answer = server.recv(_MESSAGE)
    if not answer:
        sys.exit("the warm process is gone")
    status = int(answer)
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


def _serve(listening: socket.socket) -> None:
    """The warm process: forks for each that connects, until the tests close its standard input."""
    import warnings

    from mlflow_trt.conversion import build_child

    sys.modules.setdefault("modelopt", None)  # type: ignore[arg-type]  # as the child itself does
    build_child._pretend_gpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_tensorrt  # noqa: F401

        import mlflow_trt.conversion.torch_tensorrt  # noqa: F401
    assert len(os.listdir("/proc/self/task")) == 1, "a fork takes no other thread along"
    while sys.stdin not in (ready := select.select([listening, sys.stdin], [], [])[0]):
        assert ready
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _keep(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    with contextlib.suppress(ChildProcessError):
        while os.wait():
            pass


def _keep(connection: socket.socket) -> NoReturn:
    """Forks the child, tells how it ended, and ends it when the launcher is gone."""
    message, streams, _, _ = socket.recv_fds(connection, _MESSAGE, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(json.loads(message), streams)
    for stream in streams:
        os.close(stream)

    def end_with_launcher() -> None:
        connection.recv(1)
        os.kill(child, signal.SIGKILL)

    threading.Thread(target=end_with_launcher, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(str(status).encode())
    os._exit(0)


def _become(request: dict, streams: list[int]) -> NoReturn:
    """Is the building child, as ``python -m`` would have started it."""
    import runpy
    import tempfile
    import traceback

    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    tempfile.tempdir = None
    sys.argv = [request["module"], request["job"]]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    sys.modules.pop(request["module"], None)
    sys.path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in sys.path]
    status = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _serve(socket.socket(fileno=int(sys.argv[1])))
    else:
        _launch(*sys.argv[1:])
