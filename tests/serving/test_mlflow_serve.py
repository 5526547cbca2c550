"""``mlflow models serve`` of a registered version: JSON by columns and by rows, parquet, and what it refuses."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import mlflow
import numpy as np
import pandas as pd
import pytest
import servers
from servers import Server

import mlflow_trt

from . import mixed
from .mixed import mixed_folder as mixed_folder

GIVEN = mixed.inputs()
JSON = "application/json"
PARQUET = "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def scorer(tracking_server: Server, mixed_folder, tmp_path_factory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        tracking_server.use(patch)
        mlflow_trt.log_model(mixed_folder, "mixed", registered_model_name="mixed")
        mlflow.MlflowClient().set_registered_model_alias("mixed", "champion", "1")
        env = {**tracking_server.env, **mixed.ENV}
        with servers.model_server("models:/mixed@champion", tmp_path_factory.mktemp("scorer"), env) as server:
            yield server


def ask(server: Server, body: bytes | dict, content_type: str = JSON) -> tuple[int, dict]:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(f"{server.uri}/invocations", data, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": mixed.lists(GIVEN)},
        {"instances": [mixed.lists({name: GIVEN[name][row] for name in GIVEN}) for row in range(3)]},
        {"dataframe_split": pd.DataFrame(mixed.lists(mixed.flat(GIVEN))).to_dict(orient="split")},
    ],
    ids=["inputs", "instances", "dataframe"],
)
def test_json(scorer, body):
    status, answer = ask(scorer, body)

    assert status == 200
    mixed.assert_answers(answer["predictions"], GIVEN)


def test_parquet(scorer):
    body = io.BytesIO()
    pd.DataFrame(mixed.columns(mixed.flat(GIVEN))).to_parquet(body)

    status, answer = ask(scorer, body.getvalue(), PARQUET)

    assert status == 200
    mixed.assert_answers(answer["predictions"], GIVEN)


def test_too_many_rows_are_refused_in_our_words(scorer):
    status, answer = ask(scorer, {"inputs": mixed.lists(mixed.inputs(9))})

    assert status == 400
    assert answer["error_code"] == "BAD_REQUEST"
    assert "size 9 in dimension 0 (batch) is above the maximum." in answer["message"]
    assert "Expected: 1 to 8" in answer["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "valid JSON"),
        ({"inputs": {"ids": [[1, 2, 3, 4]]}}, "missing inputs"),
        ({"inputs": mixed.lists({**GIVEN, "ids": np.ones((3, 5), int)})}, "does not match expected shape"),
        ({"inputs": {**mixed.lists(GIVEN), "ids": [["a"] * 4] * 3}}, "invalid literal"),
        (b"PAR1", "valid JSON"),
    ],
    ids=["half JSON", "missing", "shape", "text", "parquet as JSON"],
)
def test_what_does_not_fit_is_the_clients_fault_and_harms_nothing(scorer, body, message):
    status, answer = ask(scorer, body)

    assert status == 400
    assert message in answer["message"]
    assert ask(scorer, {"inputs": mixed.lists(GIVEN)})[0] == 200


@pytest.mark.skipif(mixed.BACKEND != "reference", reason="an engine answers here")
def test_the_servers_log_tells_that_no_engine_answers(scorer):
    assert mixed.LOG_LINE in (scorer.files / "server.log").read_text()
