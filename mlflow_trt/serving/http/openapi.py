"""The OpenAPI document of the server's own routes, for clients that are generated and for tests that are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..._version import __version__
from ..protocol.datatypes import DATATYPES


def document(models: Sequence[str]) -> dict[str, Any]:
    """Returns the document.

    Args:
        models: Names of the models that are served.
    """
    model = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": list(models)},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlflow-trt", "version": __version__, "description": "Open Inference Protocol v2"},
        "paths": {
            "/v2": {"get": _operation("The server", "Server")},
            "/v2/health/live": {"get": _operation("Whether the process answers", "Live")},
            "/v2/health/ready": {"get": _operation("Whether every model is loaded and warm", "Ready", 503)},
            "/v2/models/{model}": {
                "parameters": [model],
                "get": _operation("A model's inputs, outputs and state", "Metadata", 404, 503),
            },
            "/v2/models/{model}/ready": {
                "parameters": [model],
                "get": _operation("Whether a model is ready", "ModelReady", 404, 503),
            },
            "/v2/models/{model}/infer": {
                "parameters": [model],
                "post": {
                    **_operation("Inference, tensors as JSON", "Response", 400, 404, 408, 413, 415, 503, 504),
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}},
                    },
                },
            },
        },
        "components": {"schemas": _SCHEMAS},
    }


def _operation(summary: str, schema: str, *errors: int) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "OK", **_content(schema)}}
    for status in (401, 500, *errors):
        if status == 503 and schema in ("Ready", "ModelReady"):
            responses["503"] = {"description": "Not yet", **_content(schema)}
            continue
        responses[str(status)] = {"description": "Refused, with the reason", **_content("Error")}
    return {"summary": summary, "responses": responses}


def _content(schema: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _object(required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT = {"type": "string"}
_YES = {"type": "boolean"}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_DATATYPE = {"type": "string", "enum": sorted(DATATYPES)}
_TENSOR = _object(("name", "datatype", "shape"), name=_TEXT, datatype=_DATATYPE, shape={"type": "array"})


def _data(**more: Any) -> dict[str, Any]:
    """A tensor with its data in JSON."""
    required = ("name", "datatype", "shape", "data")
    return _object(required, name=_TEXT, datatype=_DATATYPE, shape=_SHAPE, data={"type": "array"}, **more)


_SCHEMAS: dict[str, Any] = {
    "Error": _object(("error",), error=_TEXT),
    "Server": _object(
        ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions={"type": "array", "items": _TEXT}
    ),
    "Live": _object(("live",), live=_YES),
    "Ready": _object(("ready",), ready=_YES),
    "ModelReady": _object(("name", "ready"), name=_TEXT, version=_TEXT, ready=_YES),
    "Metadata": _object(
        ("name", "versions", "platform", "inputs", "outputs"),
        name=_TEXT,
        versions={"type": "array", "items": _TEXT},
        platform=_TEXT,
        inputs={"type": "array", "items": _TENSOR},
        outputs={"type": "array", "items": _TENSOR},
        status={"type": "object"},
    ),
    "Request": _object(
        ("inputs",),
        id=_TEXT,
        parameters={"type": "object"},
        inputs={
            "type": "array",
            "items": _data(parameters={"type": "object"}),
        },
        outputs={"type": "array", "items": _object(("name",), name=_TEXT, parameters={"type": "object"})},
    ),
    "Response": _object(
        ("model_name", "model_version", "outputs"),
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs={
            "type": "array",
            "items": _data(),
        },
    ),
}
