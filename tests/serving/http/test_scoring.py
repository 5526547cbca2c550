"""MLflow's own application before a served model: its formats, its words, and answers as nested lists."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from interfaces import interface, span, tensor
from mlflow.models import Model

from mlflow_trt.errors import BusyError, ManifestError
from mlflow_trt.flavor.mlmodel import signature_of
from mlflow_trt.serving.http import scoring
from mlflow_trt.serving.served_model import ServedVersion

from .asgi import Doubling, Face, until

pytest.importorskip("fastapi", reason="MLflow's application needs it")

FACE = interface(
    [tensor("x", ("n", 2)), tensor("ids", ("n",), "int64")], [tensor("y", ("n", 2)), tensor("sum", ("n",))]
)
PROFILES = ({"x": span((1, 2), (4, 2), (8, 2)), "ids": span((1,), (4,), (8,))},)
MLMODEL = Model(signature=signature_of(FACE), flavors={"python_function": {"loader_module": "none"}}).to_yaml()
VERSION = ServedVersion("models:/m/3", "3", "stand-in", FACE, PROFILES, MLMODEL)
X, IDS = [[1.0, 2.0], [3.0, 4.0]], [5, 6]
ANSWER = {"y": [[2.0, 4.0], [6.0, 8.0]], "sum": [5.0, 6.0]}


def doubled(inputs):
    assert {name: array.dtype.name for name, array in inputs.items()} == {"x": "float32", "ids": "int64"}
    return {"y": 2 * inputs["x"], "sum": inputs["ids"].astype(np.float32)}


@pytest.fixture(scope="module")
def app():
    return scoring.application(VERSION, doubled)


def ask(app, body, media="application/json", path="/invocations", method="POST"):
    headers = [(b"content-type", media.encode()), (b"content-length", str(len(body)).encode())]
    scope = {
        **{"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path},
        **{"raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers},
    }
    return asyncio.run(scoring.call(app, scope, body))


def content(response):
    return json.loads(b"".join(bytes(part) for part in response.parts))


# --- formats ---

BODIES = {
    "inputs": {"inputs": {"x": X, "ids": IDS}},
    "instances": {"instances": [{"x": x, "ids": n} for x, n in zip(X, IDS)]},
    "dataframe_split": {"dataframe_split": {"columns": ["x", "ids"], "data": [[x, n] for x, n in zip(X, IDS)]}},
    "dataframe_records": {"dataframe_records": [{"x": x, "ids": n} for x, n in zip(X, IDS)]},
}


@pytest.mark.parametrize("form", BODIES)
def test_json_in_each_of_mlflow_s_forms(app, form):
    found = ask(app, json.dumps(BODIES[form]).encode())
    assert found.status == 200, found.parts
    assert content(found) == {"predictions": ANSWER}


def test_parquet(app):
    table = io.BytesIO()
    pd.DataFrame({"x": [np.float32(x) for x in X], "ids": IDS}).to_parquet(table)
    found = ask(app, table.getvalue(), "application/vnd.apache.parquet")
    assert found.status == 200, found.parts
    assert content(found) == {"predictions": ANSWER}


def test_csv_is_none_of_them(app):
    """MLflow reads it for signatures of columns only."""
    assert ask(app, b"x,ids\n1,2\n", "text/csv").status == 400


@pytest.mark.parametrize(
    ("body", "media", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"inputs": {"x": [[1, 2]]}}', "application/json", 400),
        (b'{"inputs": {"x": [[1, 2, 3]], "ids": [1]}}', "application/json", 400),
        (b"x", "text/plain", 415),
    ],
)
def test_what_is_refused_is_the_client_s_fault(app, body, media, status):
    assert ask(app, body, media).status == status


def test_version_and_what_is_no_route(app):
    assert ask(app, b"", path="/version", method="GET").status == 200
    assert ask(app, b"", path="/nothing", method="GET").status == 404


def test_a_version_without_an_mlmodel_file_has_no_such_application():
    with pytest.raises(ManifestError, match=r"models:/m/3 has no MLmodel file"):
        scoring.application(dataclasses.replace(VERSION, mlmodel=None), doubled)


# --- before the model that is served ---


def test_a_request_goes_to_the_version_that_answers_and_its_application_is_made_once(monkeypatch):
    made = []

    def application(version, ask):
        made.append(version.version)
        return original(version, ask)

    original = scoring.application
    monkeypatch.setattr(scoring, "application", application)
    model = Doubling()
    face = Face(model)
    narrow = interface([tensor("x", ("n", 2))], [tensor("y", ("n", 2))])
    described = Model(signature=signature_of(narrow), flavors={"python_function": {"loader_module": "none"}}).to_yaml()
    model.version = dataclasses.replace(model.version, mlmodel=described)

    async def main():
        body = json.dumps({"inputs": {"x": X}}).encode()
        for version in ("3", "4"):
            model.version = dataclasses.replace(model.version, version=version)
            asks = [face.asking("POST", "/invocations", body, content_type="application/json") for _ in range(5)]
            for found in await asyncio.gather(*asks):
                assert found.json() == {"predictions": {"y": ANSWER["y"]}}

    asyncio.run(main())
    assert made == ["3", "4"]
    assert face.counts.requests == [("m", "mlflow", 200, True)] * 10


def test_while_no_version_answers_it_is_busy():
    model = Doubling()
    model.version = None
    face = Face(model)
    with pytest.raises(BusyError):
        asyncio.run(scoring.Scoring(model, 1.0, face.app.codec).answer({"headers": []}, b""))
    assert face.ask("POST", "/invocations", b"{}").status == 503
    assert face.counts.requests == [("m", "mlflow", 503, True)]


def test_a_model_without_an_mlmodel_file_has_none_of_mlflow_s_routes_and_whatever_else_is_not_found(caplog):
    face = Face()
    for path in ("/", "/favicon.ico", "/docs"):
        found = face.ask("GET", path)
        assert (found.status, found.json()) == (404, {"error": "There is no such route."})
    assert face.counts.others == [("unknown_route", "http", 404)] * 3
    assert not caplog.records
    for method, path in (("POST", "/invocations"), ("GET", "/version")):
        found = face.ask(method, path)
        assert (found.status, "has no MLmodel file" in found.json()["error"]) == (500, True)


# --- an ASGI application is called ---


def test_what_an_application_sends_is_collected():
    async def application(scope, receive, send):
        assert await receive() == {"type": "http.request", "body": b"asked", "more_body": False}
        headers = [(b"content-type", b"text/x"), (b"content-length", b"3"), (b"x", b"y")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body"})
        await send({"type": "http.response.body", "body": b"bc"})

    found = asyncio.run(scoring.call(application, {}, b"asked"))
    assert (found.status, found.headers, found.media, b"".join(found.parts)) == (201, {"x": "y"}, "text/x", b"abc")


def test_who_listens_for_the_end_of_the_connection_hears_of_it_once_the_answer_is_there():
    heard = []

    async def application(scope, receive, send):
        async def listen():
            await receive()
            heard.append((await receive())["type"])

        application.listening = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        assert heard == []
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def main():
        found = await scoring.call(application, {}, b"")
        await until(lambda: heard)
        return found

    assert asyncio.run(main()).media == "application/json"
    assert heard == ["http.disconnect"]


# --- answers as nested lists ---


@pytest.fixture(autouse=True, scope="module")
def _many():
    """What is many elements is so here after a few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MANY", 4)
        yield


@given(
    arrays.arrays(
        st.sampled_from([np.dtype("float32"), np.dtype("int64"), np.dtype("bool")]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    )
)
def test_an_array_as_nested_lists_whatever_its_size(array):
    def spelled(value):
        if isinstance(value, list):
            return [spelled(each) for each in value]
        if isinstance(value, float) and not np.isfinite(value):
            return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return value

    found = scoring.nested(array)
    assert found == spelled(array.tolist())
    assert json.dumps(found, allow_nan=False)
