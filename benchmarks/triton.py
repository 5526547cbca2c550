"""NVIDIA's Triton Inference Server, the real one, on a machine with or without a GPU.

PyPI's nvidia-pytriton carries the ``tritonserver`` binary (2.51) and its Python backend, which needs numpy 1: with a
newer one its outputs come out empty, without an error. So both go into an environment of their own, beside this one:
75 MB to fetch, 230 MB on disk, once for a user. Python 3.13 has no numpy 1, and so no Triton.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import isolated_environments

PACKAGE = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"
READY_SECONDS = 120
END_SECONDS = 15

_ECHO_CONFIG = """\
name: "echo"
backend: "python"
max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [-1, 3, 224, 224] }
output { name: "y" data_type: TYPE_FP32 dims: [-1, 1000] }
instance_group { count: 1 kind: KIND_CPU }
"""
_ECHO_MODEL = '''\
import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """Reads no value of its input, and answers zeros that were made at the first call of that batch size."""

    def initialize(self, arguments):
        self.answers = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            rows = triton.get_input_tensor_by_name(request, "x").shape()[0]
            if rows not in self.answers:
                self.answers[rows] = np.zeros((rows, 1000), np.float32)
            responses.append(triton.InferenceResponse([triton.Tensor("y", self.answers[rows])]))
        return responses
'''


_PYTRITON_ECHO = """\
import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

answers = {}


@batch
def echo(x):
    rows = len(x)
    if rows not in answers:
        answers[rows] = np.zeros((rows, 1000), np.float32)
    return {"y": answers[rows]}


http, grpc = map(int, sys.argv[1:])
config = TritonConfig(http_address="127.0.0.1", http_port=http, grpc_port=grpc, allow_metrics=False)
with Triton(config=config) as triton:
    triton.bind(
        model_name="echo",
        infer_func=echo,
        inputs=[Tensor(name="x", dtype=np.float32, shape=(3, 224, 224))],
        outputs=[Tensor(name="y", dtype=np.float32, shape=(1000,))],
        config=ModelConfig(max_batch_size=32),
    )
    triton.serve()
"""


@dataclass(frozen=True)
class Triton:
    """A running server."""

    http: str
    """``127.0.0.1:PORT``, as tritonclient takes it."""
    grpc: str
    log: Path

    def get(self, path: str) -> Any:
        """Returns the JSON that a path answers."""
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=30) as response:
            return json.load(response)

    def models(self) -> dict[str, dict[str, str]]:
        """Returns what is in the repository: ``NAME/VERSION`` → state and reason, ``NAME/`` where none was loaded."""
        request = urllib.request.Request(f"http://{self.http}/v2/repository/index", b"{}")
        with urllib.request.urlopen(request, timeout=30) as response:
            return {f"{m['name']}/{m.get('version', '')}": m for m in json.load(response)}


def write_echo(repository: Path) -> str:
    """Writes the model ``echo`` for the Python backend: float32 [N, 3, 224, 224] in, float32 [N, 1000] out, no work.

    Returns:
        The model's name.
    """
    folder = repository / "echo"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(_ECHO_CONFIG)
    (folder / "1" / "model.py").write_text(_ECHO_MODEL)
    return folder.name


def installation() -> Path:
    """Returns the folder of ``bin/tritonserver`` and ``backends/``, fetched at the first call.

    Raises:
        RuntimeError: It can't be had here: another system than Linux on x86-64, or no package index.
    """
    packages = isolated_environments.packages_of(isolated_environments.environment(PACKAGE, NUMPY))
    triton = packages / "pytriton" / "tritonserver"
    stub = triton / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        # The Python backend starts this program for each model; the wheel has one for each Python.
        made = stub.with_name(f"{stub.name}.{os.getpid()}")
        shutil.copy(
            triton / "python_backend_stubs" / isolated_environments.PYTHON.removeprefix("python") / stub.name, made
        )
        for program in (made, triton / "bin" / "tritonserver"):
            program.chmod(0o755)
        made.replace(stub)
    return triton


@contextlib.contextmanager
def running(repository: Path, *arguments: str) -> Iterator[Triton]:
    """Runs Triton over a model repository until the block ends; yields once it answers, whatever became of the models.

    Args:
        repository: The model repository.
        arguments: More of ``tritonserver --help``.

    Raises:
        RuntimeError: It can't be had here, or does not answer.
    """
    triton = installation()
    with tempfile.TemporaryDirectory(prefix="triton-") as scratch:
        log = Path(scratch) / "log"
        for attempt in (1, 2, 3):  # Between choosing a free port and binding it, another process may take it.
            http, grpc = _free_ports(2)
            command = [
                str(triton / "bin" / "tritonserver"),
                *("--model-repository", str(repository), "--backend-directory", str(triton / "backends")),
                *("--http-address", "127.0.0.1", "--http-port", str(http)),
                *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc), "--allow-metrics", "false"),
                # What the configuration does not say is an error, and no process is started to ask the model for it.
                "--disable-auto-complete-config",
                *("--exit-on-error", "false", "--strict-readiness", "false", "--exit-timeout-secs", "5", *arguments),
            ]
            # The Python backend takes the packages of the first python3 on PATH.
            path = f"{triton.parents[4] / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
            server = _start(command, log, {"PATH": path})
            try:
                if _wait_until_ready(server, http):
                    yield Triton(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log)
                    return
                if server.poll() is None or attempt == 3:
                    raise RuntimeError(f"Triton does not answer; its log ends:\n{log.read_text()[-3000:]}")
            finally:
                _end(server)


@contextlib.contextmanager
def pytriton_echo() -> Iterator[int]:
    """Runs the same echo as PyTriton's documentation has it: a function that is bound; yields the HTTP port.

    Raises:
        RuntimeError: It can't be had here, or does not answer.
    """
    python = isolated_environments.environment(PACKAGE, NUMPY, dependencies=True) / "bin" / "python"
    http, grpc = _free_ports(2)
    # The program that Triton's Python backend starts must find this Python's own library, not the system's.
    libraries = os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))
    with tempfile.TemporaryDirectory(prefix="pytriton-") as scratch:
        log = Path(scratch) / "log"
        command = [str(python), "-c", _PYTRITON_ECHO, str(http), str(grpc)]
        server = _start(command, log, {"LD_LIBRARY_PATH": libraries}, scratch)
        try:
            if not _wait_until_ready(server, http, "/v2/models/echo/ready"):
                raise RuntimeError(f"PyTriton does not answer; its log ends:\n{log.read_text()[-3000:]}")
            yield http
        finally:
            _end(server)


def _start(command: list[str], log: Path, env: Mapping[str, str], folder: str | None = None) -> subprocess.Popen[bytes]:
    """Starts a server in a group of its own, with additional environment variables, perhaps in a folder of its own."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **env},
            cwd=folder,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Has the kernel end this process when its parent dies, even if that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, path: str = "/v2/health/ready") -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # The Python backend's processes are in the group too.
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
