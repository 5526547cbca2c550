"""What the routes answer, and how a client's answer is waited for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from interfaces import interface, span, tensor
from mlflow.exceptions import MlflowException

from mlflow_trt import __version__
from mlflow_trt.errors import BusyError, DeadlineError, InputError, TrtError
from mlflow_trt.serving.http import routes
from mlflow_trt.serving.http.request import HttpError
from mlflow_trt.serving.http.routes import FIXED, OF_MODEL, status_of

from .asgi import ASKED, VERSION, Doubling, Face, until


@pytest.fixture
def face():
    return Face()


@pytest.fixture
def model(face):
    return face.models[0]


# --- what is told ---


def test_the_server(face):
    assert face.ask("GET", "/v2").json() == {
        **{"name": "mlflow-trt", "version": __version__, "extensions": ["binary_tensor_data"]}
    }


def test_health(face):
    assert face.ask("GET", "/v2/health/live").json() == {"live": True}
    assert face.ask("GET", "/v2/health/ready").json() == {"ready": True}
    assert face.ask("GET", "/ping").body == face.ask("GET", "/health").body == b"\n"


def test_figures_in_prometheus_own_form(face):
    found = face.ask("GET", "/metrics")
    assert found.body == b"figures 1\n"
    assert found.headers["content-type"].startswith("text/plain; version=")


def test_a_model_s_metadata_and_status():
    model = Doubling(waiting=7)
    model.version = dataclasses.replace(VERSION, profiles=({"x": span((1, 2), (4, 2), (8, 2))},))
    found = Face(model).ask("GET", "/v2/models/m").json()
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert (found["name"], found["versions"], found["platform"]) == ("m", ["3"], "stand-in")
    assert found["profiles"] == [{"x": {"min": [1, 2], "opt": [4, 2], "max": [8, 2]}}]
    assert found["status"] == {"name": "m", "state": "ready", "waiting": 7}


def test_whether_a_model_is_ready(face):
    assert face.ask("GET", "/v2/models/m/ready").json() == {"name": "m", "version": "3", "ready": True}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HttpError(418, "x"), 418),
        (InputError("x"), 400),
        (BusyError("x"), 503),
        (DeadlineError("x"), 504),
        (TrtError("x"), 500),
        (MlflowException.invalid_parameter_value("x"), 500),  # not of this package: what it means here is not known
        (ValueError("x"), 500),
    ],
)
def test_the_status_of_an_error(error, status):
    assert status_of(error) == status


def test_probes_may_be_asked_for_by_head():
    assert {path for path, methods in FIXED.items() if "HEAD" in methods} == {"/v2/health/live", "/v2/health/ready"}
    assert {method for methods in OF_MODEL.values() for method in methods} == {"GET", "POST"}


# --- inference ---


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_come_and_go_as_json_or_raw(face, binary_in, binary_out):
    x = np.array([[1.5, 2], [3, 4]], np.float32)
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 2]}
    entry |= {"parameters": {"binary_data_size": 16}} if binary_in else {"data": x.tolist()}
    text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": binary_out}}).encode()
    length = {"inference_header_content_length": str(len(text))} if binary_in else {}
    found = face.ask("POST", "/v2/models/m/infer", text + (x.tobytes() if binary_in else b""), **length)
    assert found.status == 200, found.body
    if binary_out:
        assert found.headers["content-type"] == "application/octet-stream"
        cut = int(found.headers["inference-header-content-length"])
        np.testing.assert_array_equal(np.frombuffer(found.body[cut:], np.float32).reshape(2, 2), 2 * x)
        found.body = found.body[:cut]
    else:
        assert "inference-header-content-length" not in found.headers
        assert found.json()["outputs"][0]["data"] == (2 * x).ravel().tolist()
    assert found.json()["outputs"][0]["shape"] == [2, 2]


def test_an_answer_of_a_version_that_took_over_meanwhile(face, model):
    """The request is compared with the interface that answered."""

    async def main(outputs):
        model.version, model.held = VERSION, True
        asked = {**ASKED, "outputs": [{"name": "y"}]}
        asking = asyncio.create_task(face.asking("POST", "/v2/models/m/infer", json.dumps(asked).encode()))
        await until(lambda: model.submitted)
        future, *_ = model.submitted.pop()
        model.version = dataclasses.replace(
            VERSION, version="4", interface=interface(VERSION.interface.inputs, outputs)
        )
        future.set_result(model.answer(np.ones((1, 2), np.float32)))
        return await asking

    same = asyncio.run(main([tensor("y", ("n", 2))]))
    assert (same.status, same.json()["model_version"]) == (200, "4")
    other = asyncio.run(main([tensor("z", ("n", 2))]))
    assert (other.status, "'y' is asked for" in other.json()["error"]) == (400, True)


# --- how an answer is waited for ---


def asked(face, gone=None):
    return asyncio.create_task(face.asking("POST", "/v2/models/m/infer", json.dumps(ASKED).encode(), gone=gone))


@pytest.mark.parametrize("pause", [0.0, 0.1], ids=["soon", "later than is worth watching the client"])
@pytest.mark.parametrize("thread", [True, False], ids=["from another thread", "from the event loop's"])
def test_an_answer_that_comes_later(face, model, pause, thread):
    async def main():
        asking = asked(face)
        await until(lambda: model.submitted)
        await asyncio.sleep(pause)
        future, *_ = model.submitted.pop()
        answer = model.answer(np.ones((1, 2), np.float32))
        if thread:
            threading.Thread(target=future.set_result, args=(answer,)).start()
        else:
            future.set_result(answer)
        return await asyncio.wait_for(asking, 20)

    model.held = True
    assert asyncio.run(main()).json()["outputs"][0]["data"] == [2, 2]


def test_what_a_client_that_is_gone_asked_for_is_dropped(face, model):
    async def main():
        gone = asyncio.Event()
        asking = asked(face, gone)
        await until(lambda: model.submitted)
        gone.set()
        assert await asyncio.wait_for(asking, 20) is None
        assert model.submitted[0][0].cancelled()

    model.held = True
    asyncio.run(main())
    assert face.counts.requests == [("m", "http", 499, True)]


def test_an_error_that_comes_later_is_told(face, model):
    async def main():
        asking = asked(face)
        await until(lambda: model.submitted)
        await asyncio.sleep(0.1)
        model.submitted[0][0].set_exception(DeadlineError("It is late."))
        return await asyncio.wait_for(asking, 20)

    model.held = True
    found = asyncio.run(main())
    assert (found.status, found.json()["error"]) == (504, "It is late.")


def test_waiting_has_an_end_if_one_is_given():
    async def main():
        begin = time.monotonic()
        await routes._settled(future, 0.05)
        return time.monotonic() - begin

    future: Future[None] = Future()
    assert 0.04 < asyncio.run(main()) < 5
    future.set_result(None)  # after its loop is closed: nobody is told, and nothing fails
    assert asyncio.run(main()) < 0.04
