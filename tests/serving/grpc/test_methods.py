"""The methods of the protocol's service over gRPC, called by NVIDIA's own client.

A real model answers where its answers matter; ``Echo`` stands in for one of dtypes that no engine has.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import mlflow_trt
from mlflow_trt.errors import BusyError, DeviceError
from mlflow_trt.serving.config import LoadOptions
from mlflow_trt.serving.protocol import protobuf
from mlflow_trt.serving.versions.served import Model

from .. import echo
from .calling import aio_module, calling, client_module, raw_call, refused, rows, serving, tensor


@pytest.fixture(scope="module")
def classifier(_classifier_folder: Path) -> Iterator[Model]:
    """A real model, answered by the reference backend."""
    model = Model("classifier", str(_classifier_folder), LoadOptions(backend="reference"))
    model.start()
    model.wait(120)
    yield model
    model.close()


@pytest.fixture(scope="module")
def engine(_classifier_folder: Path) -> Iterator[Any]:
    with mlflow_trt.load_model(str(_classifier_folder), backend="reference") as engine:
        yield engine


@pytest.fixture(scope="module")
def address(classifier: Model) -> Iterator[str]:
    with serving({**echo.models(), "classifier": classifier}) as address:
        yield address


# --- what it is ---


def test_health(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("classifier") is True
    assert client.is_model_ready("nobody") is False


def test_server_metadata(client: Any) -> None:
    found = client.get_server_metadata()
    assert (found.name, found.version) == ("mlflow-trt", mlflow_trt.__version__)


def test_model_metadata(client: Any, classifier: Model) -> None:
    version = classifier.current.version
    found = client.get_model_metadata("classifier", as_json=True)
    assert found == {
        "name": "classifier",
        "versions": [version],
        "platform": "reference",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": ["-1", "3"]},
            {"name": "mean", "datatype": "FP32", "shape": ["-1"]},
        ],
    }
    assert client.get_model_metadata("classifier", version, as_json=True) == found
    assert client.is_model_ready("classifier", version) is True
    assert client.is_model_ready("classifier", "no such") is False


# --- inference ---


def test_a_real_model_answers(client: Any, classifier: Model, engine: Any) -> None:
    x = rows(3)
    found = client.infer("classifier", [tensor("x", x)], request_id="a request")
    expected = engine.predict({"x": x})
    for name in ("scores", "mean"):
        np.testing.assert_allclose(found.as_numpy(name), expected[name], rtol=1e-5)
    response = found.get_response()
    assert response.id == "a request"
    assert (response.model_name, response.model_version) == ("classifier", classifier.current.version)


def test_a_version_may_be_named(client: Any, classifier: Model) -> None:
    version = classifier.current.version
    assert client.infer("classifier", [tensor("x", rows(1))], version).get_response().model_version == version


def test_wanted_outputs(client: Any) -> None:
    wanted = [client_module.InferRequestedOutput(name) for name in ("mean", "scores")]
    for chosen in (wanted, wanted[:1]):
        response = client.infer("classifier", [tensor("x", rows(2))], outputs=chosen).get_response()
        assert [output.name for output in response.outputs] == [output.name() for output in chosen]


def test_sixteen_clients_get_their_own_answers(address: str, engine: Any) -> None:
    def call(seed: int) -> None:
        with calling(address) as client:
            for number in range(20):
                x = rows(1 + number % 2, seed * 1000 + number)
                found = client.infer("classifier", [tensor("x", x)], request_id=f"{seed}/{number}")
                np.testing.assert_allclose(found.as_numpy("mean"), x.mean(1), rtol=1e-4, atol=1e-6)
                assert found.get_response().id == f"{seed}/{number}"

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(16)))


def test_the_asyncio_client(address: str, engine: Any) -> None:
    async def call() -> None:
        async with aio_module.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("classifier")).name == "classifier"
            many = [rows(1, seed) for seed in range(16)]
            found = await asyncio.gather(*(client.infer("classifier", [tensor("x", x)]) for x in many))
            for x, answer in zip(many, found):
                np.testing.assert_allclose(answer.as_numpy("scores"), engine.predict({"x": x})["scores"], rtol=1e-4)

    asyncio.run(call())


def values(dtype: str) -> np.ndarray:
    if dtype == "object":
        return np.array([[b"", b"\xff\x00 \n"], ["ü".encode(), b"x" * 70_000]], object)
    if dtype == "bool":
        return np.array([[True, False], [False, False]])
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return np.array([[np.nan, np.inf], [-0.0, np.finfo(kind).max]], kind)
    return np.array([[np.iinfo(kind).min, np.iinfo(kind).max], [0, 1]], kind)


@pytest.mark.parametrize("dtype", echo.DTYPES)
def test_every_datatype(client: Any, dtype: str) -> None:
    array = values(dtype)
    found = client.infer(dtype, [tensor("x", array)]).as_numpy("x")
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes() if dtype != "object" else found.tolist() == array.tolist()


@pytest.mark.parametrize("shape", [(0, 4), (0,), ()])
def test_shapes_of_little(client: Any, shape: tuple[int, ...]) -> None:
    found = client.infer("float32", [tensor("x", np.ones(shape, np.float32))]).as_numpy("x")
    np.testing.assert_array_equal(found, np.ones(shape, np.float32))


def test_brain_floats(client: Any) -> None:
    brain = pytest.importorskip("ml_dtypes").bfloat16
    array = np.array([1.5, -3.0e38, np.inf], brain)
    found = client.infer("bfloat16", [tensor("x", array, "BF16")]).as_numpy("x")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype(np.float32))


def test_several_inputs(client: Any) -> None:
    a, b = np.float32([[1, 2]]), np.int64([3])
    found = client.infer("two", [tensor("b", b), tensor("a", a)])
    np.testing.assert_array_equal(found.as_numpy("a"), a)
    np.testing.assert_array_equal(found.as_numpy("b"), b)


def test_typed_contents_are_answered_raw(address: str) -> None:
    x = {"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}}
    request = protobuf.ModelInferRequest(model_name="float32", inputs=[x])
    answer, _ = raw_call(address, "ModelInfer", request.SerializeToString())
    response = protobuf.ModelInferResponse.FromString(answer)
    assert response.raw_output_contents == [np.float32([1, 2]).tobytes()]


def test_empty_contents_beside_raw_data_are_none(address: str) -> None:
    """As MLServer's client sends them."""
    message = protobuf.ModelInferRequest(model_name="float32", raw_input_contents=[np.float32([1, 2]).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[2]).contents.SetInParent()
    answer, _ = raw_call(address, "ModelInfer", message.SerializeToString())
    response = protobuf.ModelInferResponse.FromString(answer)
    assert response.raw_output_contents == [np.float32([1, 2]).tobytes()]


# --- errors ---


def test_errors_of_the_caller(client: Any) -> None:
    x = tensor("x", rows(1))
    assert "served are" in refused(lambda: client.infer("nobody", [x]), "NOT_FOUND")
    assert "Version '99' is not served" in refused(lambda: client.infer("classifier", [x], "99"), "NOT_FOUND")
    refused(lambda: client.get_model_metadata("nobody"), "NOT_FOUND")
    refused(lambda: client.get_model_metadata("classifier", "99"), "NOT_FOUND")
    text = refused(lambda: client.infer("classifier", [tensor("y", rows(1))]), "INVALID_ARGUMENT")
    assert "missing: x; not known: 'y'" in text
    text = refused(lambda: client.infer("classifier", [tensor("x", rows(1).astype(np.float64))]), "INVALID_ARGUMENT")
    assert "is sent as FP64" in text
    text = refused(lambda: client.infer("classifier", [tensor("x", rows(9))]), "INVALID_ARGUMENT")
    assert "(9, 4)" in text
    wanted = [client_module.InferRequestedOutput("nothing")]
    refused(lambda: client.infer("classifier", [x], outputs=wanted), "INVALID_ARGUMENT")
    refused(lambda: client.infer("classifier", [x], sequence_id=3, sequence_start=True), "INVALID_ARGUMENT")
    refused(lambda: client.get_model_config("classifier"), "UNIMPLEMENTED")
    assert client.infer("classifier", [x]).as_numpy("scores").shape == (1, 3)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata"])
def test_what_is_no_message(address: str, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(address, method, b"\x0a\xff\xff garbage")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a" in caught.value.details()


def test_names_that_clients_make_up(address: str) -> None:
    """In an error's text they are short and harmless."""
    request = protobuf.ModelInferRequest(model_name="\x1b[31m\n" + "ü" * 100_000)
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(address, "ModelInfer", request.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "\x1b" not in caught.value.details()
    assert len(caught.value.details()) < 1000


def failing(error: Exception) -> dict[str, Any]:
    model = echo.Echo("m", ("x", "float32", "float32"))
    model.error = error
    return {"m": model}


def test_an_error_of_the_server_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    x = tensor("x", rows(1))
    with (
        serving(failing(RuntimeError("a secret"))) as address,
        calling(address) as client,
        caplog.at_level(logging.ERROR),
    ):
        text = refused(lambda: client.infer("m", [x]), "INTERNAL")
        assert text == "The server failed; its log says more."
        assert client.infer("m", [x]) is not None
    assert "a secret" in caplog.text


def test_an_error_of_the_device_is_told() -> None:
    with serving(failing(DeviceError("The GPU is gone."))) as address, calling(address) as client:
        assert refused(lambda: client.infer("m", [tensor("x", rows(1))]), "INTERNAL") == "The GPU is gone."


def test_an_error_of_many_words_arrives() -> None:
    with serving(failing(DeviceError("ü" * 100_000))) as address, calling(address) as client:
        text = refused(lambda: client.infer("m", [tensor("x", rows(1))]), "INTERNAL")
    assert re.fullmatch("ü+…", text)


def test_busy_says_when_to_come_back() -> None:
    policy = {
        "maxAttempts": 2,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = {"methodConfig": [{"name": [{"service": protobuf.SERVICE}], "retryPolicy": policy}]}
    x = tensor("x", rows(1))
    models = failing(BusyError("The queue is full."))
    with serving(models) as address, calling(address) as client:
        assert refused(lambda: client.infer("m", [x]), "UNAVAILABLE") == "The queue is full."
        models["m"].error = BusyError("The queue is full.")
        options = [("grpc.service_config", json.dumps(config))]
        with calling(address, channel_args=options) as patient:
            begin = time.monotonic()
            assert patient.infer("m", [x]).as_numpy("x").shape == (1, 4)
            assert time.monotonic() - begin >= 0.9


def test_a_model_that_is_not_ready(tmp_path: Path) -> None:
    model = Model("m", str(tmp_path / "nothing"), LoadOptions(backend="reference"))  # never started
    with serving({"m": model}) as address, calling(address) as client:
        assert client.is_server_live() is True
        assert client.is_server_ready() is False
        assert client.is_model_ready("m") is False
        assert "is being loaded" in refused(lambda: client.get_model_metadata("m"), "UNAVAILABLE")
        assert "is being loaded" in refused(lambda: client.infer("m", [tensor("x", rows(1))]), "UNAVAILABLE")
    model.close()


# --- who may ---


def test_the_token() -> None:
    x = tensor("x", rows(1))
    wrong = ("", "a token", "Bearer", "Bearer ", "Bearer a toke", "Bearer a tokens", "Basic a token", "Bearer A token")
    with serving(echo.models(), token="a token") as address, calling(address) as client:
        assert client.is_server_live() is True
        assert client.is_server_ready() is True
        for headers in (None, *({"authorization": value} for value in wrong)):
            refused(partial(client.infer, "float32", [x], headers=headers), "UNAUTHENTICATED")
            refused(partial(client.get_model_metadata, "float32", headers=headers), "UNAUTHENTICATED")
            refused(partial(client.is_model_ready, "float32", headers=headers), "UNAUTHENTICATED")
            refused(partial(client.get_server_metadata, headers=headers), "UNAUTHENTICATED")
        for kind in ("Bearer", "bearer"):
            headers = {"authorization": f"{kind} a token"}
            assert client.infer("float32", [x], headers=headers).as_numpy("x").shape == (1, 4)
            assert client.get_model_metadata("float32", headers=headers).name == "float32"
