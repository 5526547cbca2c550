"""What the wire alone costs: an echo of an image's shape through this server, Triton, and MLflow's own server.

Float32 (N, 3, 224, 224) goes in and float32 (N, 1000) comes out, with next to no work between. This server's echo is a
logged model that the reference backend runs; Triton's answers zeros, once as a function that PyTriton serves and once
as a model file of the Python backend, which is the least that Triton can do in Python. One client on one connection,
its requests written beforehand and its answers not looked at. Needs no GPU.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import mlflow_trt

from . import triton
from .context import Context
from .record import Measurement
from .served import Connection, answer_of, end, free_port, http_request, infer_request, serving, wait_until
from .timing import interleave, ratio

BATCHES = (1, 8)
PYTRITON, BACKEND = "Triton, PyTriton", "Triton, Python backend"
SLOWER = ("MLflow, parquet", "MLflow, JSON")


def goal(baseline: str, batch: int) -> str:
    """The name of a goal."""
    return f"p50 ÷ {baseline}, batch {batch}"


def echo(context: Context) -> Measurement:
    """Times the same payload through all of them, in turn."""
    from mlflow_trt.serving.http.listening import tune_process

    tune_process()  # the client's own: mapping and unmapping its buffers would be most of what is seen
    measurement = Measurement(notes=["One client on one connection; requests prepared, answers read and dropped."])
    folder = model(context)
    with contextlib.ExitStack() as servers:
        ours = servers.enter_context(serving(folder, "echo", context.work, "--backend", "reference"))
        theirs = servers.enter_context(_mlflow(folder, context.work))
        ports = {"this server": ours.port, "MLflow": theirs}
        repository = context.work / "triton"
        if not repository.exists():
            triton.write_echo(repository)
        for name, server in ((PYTRITON, triton.pytriton_echo()), (BACKEND, _triton(repository))):
            try:
                ports[name] = servers.enter_context(server)
            except RuntimeError as error:
                for batch in BATCHES:
                    measurement.missing[goal(name, batch)] = str(error).splitlines()[0]
        for batch in BATCHES:
            ways = {name: _asking(ports, name, batch) for name in _ways(ports)}
            quick = {name: way for name, way in ways.items() if name not in SLOWER}
            slow = {name: way for name, way in ways.items() if name in ("this server", *SLOWER)}
            deadline = context.deadline(0.3 if batch == 1 else 0.7)
            rounds = interleave(quick, rounds=context.several(40, 5), calls=10, deadline=deadline)
            for name, times in rounds.items():
                measurement.add(f"batch {batch}: {name}", times)
                if name != "this server":
                    measurement.values[goal(name, batch)] = ratio(rounds["this server"], times)
            deadline = context.deadline(0.5 if batch == 1 else 1.0)
            rounds = interleave(
                slow, rounds=context.several(15, 2), calls=3 if batch == 1 else 1, warm_up=1, deadline=deadline
            )
            for name in SLOWER:
                measurement.add(f"batch {batch}: {name}", rounds[name])
                measurement.values[goal(name, batch)] = ratio(rounds["this server"], rounds[name])
    return measurement


def model(context: Context) -> Path:
    """Logs the echo, once; returns its folder."""
    folder = context.work / "models" / "echo"
    if not folder.exists():
        import torch

        class Echo(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.flatten(1)[:, :1000] + 0

        inputs = [mlflow_trt.Input(((1, 8, 32), 3, 224, 224), name="x")]
        mlflow_trt.save_model(Echo().eval(), folder, inputs, output_names=["y"])
    return folder


@contextlib.contextmanager
def _triton(repository: Path) -> Iterator[int]:
    """Runs Triton over a repository; yields its HTTP port."""
    with triton.running(repository) as found:
        yield int(found.http.rpartition(":")[2])


@contextlib.contextmanager
def _mlflow(folder: Path, work: Path) -> Iterator[int]:
    """Runs ``mlflow models serve``; yields its port."""
    port = free_port()
    log = work / "mlflow-serve.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--port", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_PYFUNC_INFERENCE_CONFIG": '{"backend": "reference"}',
        "UVICORN_TIMEOUT_KEEP_ALIVE": "300",  # a connection waits here for its turn
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it starts uvicorn by name
    }
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--env-manager", "local"], stdout=output, stderr=output, env=environment)
    try:
        wait_until(f"http://127.0.0.1:{port}/ping", process, log)
        yield port
    finally:
        end(process)


def _ways(ports: dict[str, int]) -> list[str]:
    return [name for name in ports if name != "MLflow"] + list(SLOWER)


def _asking(ports: dict[str, int], name: str, batch: int) -> Callable[[], object]:
    """Returns a call that asks once; the first time it looks at the answer."""
    x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    if name == "MLflow, JSON":
        body = json.dumps({"inputs": {"x": x.tolist()}}).encode()
        request = http_request("/invocations", {"Content-Type": "application/json"}, body)
    elif name == "MLflow, parquet":
        import pandas

        # One row per image: a column of a table holds no tensors, so each is a flat list.
        frame = pandas.DataFrame({"x": list(x.reshape(batch, -1))})
        table = io.BytesIO()
        frame.to_parquet(table)
        request = http_request("/invocations", {"Content-Type": "application/vnd.apache.parquet"}, table.getvalue())
    else:
        request = infer_request("echo", {"x": x}, "y")
    connection = Connection(ports[name.partition(",")[0] if name in SLOWER else name])

    def ask() -> bytes:
        status, _, body = connection.ask(request)
        assert status == 200, body[:300]
        return body

    if name == "this server":
        _, answer = answer_of(*connection.ask(request)[1:])
        np.testing.assert_array_equal(answer.reshape(batch, 1000), x.reshape(batch, -1)[:, :1000])
    ask()
    return ask
