"""The OpenAPI document, against the routes that there are."""

from __future__ import annotations

import json
import re

import pytest

from mlflow_trt.serving.http.openapi import document
from mlflow_trt.serving.http.routes import FIXED, OF_MODEL
from mlflow_trt.serving.protocol.datatypes import DATATYPES

from .asgi import Face

DOCUMENT = document(["m", "a/b"])
OPERATIONS = [
    (path, method, item[method])
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if method in ("get", "post")
]


def test_every_operation_is_a_route_s():
    for path, method, _ in OPERATIONS:
        action = re.fullmatch(r"/v2/models/\{model\}(?:/(.*))?", path)
        methods = OF_MODEL[action[1] or ""] if action else FIXED[path]
        assert method.upper() in methods, path


def test_every_route_of_the_protocol_is_there():
    told = {(path, method.upper()) for path, method, _ in OPERATIONS}
    own = {(path, "GET") for path in FIXED if path.startswith("/v2") and path != "/v2/"}
    for action, methods in OF_MODEL.items():
        own |= {(f"/v2/models/{{model}}/{action}".rstrip("/"), method) for method in methods}
    assert told == own


def test_references_lead_somewhere_and_all_schemas_are_used():
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert names == set(DOCUMENT["components"]["schemas"])


def test_models_are_those_that_are_served():
    for path, item in DOCUMENT["paths"].items():
        if "{model}" in path:
            (parameter,) = item["parameters"]
            assert parameter["schema"]["enum"] == ["m", "a/b"]


def test_every_operation_may_be_refused_for_its_token_or_fail():
    for path, _, operation in OPERATIONS:
        assert {"200", "401", "500"} <= set(operation["responses"]), path


def test_datatypes_are_the_protocol_s():
    schema = DOCUMENT["components"]["schemas"]["Request"]["properties"]["inputs"]["items"]
    assert schema["properties"]["datatype"]["enum"] == sorted(DATATYPES)


@pytest.mark.parametrize("path", [path for path, method, _ in OPERATIONS if method == "get"])
def test_answers_have_what_their_schema_requires(path):
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    content = Face().ask("GET", path.replace("{model}", "m")).json()
    schema = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    validator({**schema, "components": DOCUMENT["components"]}).validate(content)
