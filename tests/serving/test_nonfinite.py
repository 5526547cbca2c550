"""NaN and infinities, which JSON has not: the same strings whichever way they are asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from .registered import answer
from .running import whole

JSON = {"Content-Type": "application/json"}


@whole
def test_nan_and_infinities_are_the_same_strings_everywhere(half_loaded):
    x = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}
    text = json.dumps(head).encode()
    found = half_loaded.post(
        "/v2/models/m/infer", text + x.tobytes(), headers={"Inference-Header-Content-Length": str(len(text))}
    )
    expected = ["NaN", "Infinity", "-Infinity"]
    assert found.status_code == 200, found.text
    assert found.json()["outputs"][0]["data"] == expected
    body = '{"inputs": {"x": [[NaN, Infinity, -Infinity, 1]]}}'
    found = half_loaded.post("/invocations", body, headers=JSON)
    assert found.status_code == 200, found.text
    assert json.loads(found.text, parse_constant=pytest.fail)["predictions"]["scores"] == [expected]
    np.testing.assert_array_equal(np.array(expected, np.float32), answer(x, 1)[0])


@whole
def test_tritons_client_reads_them(half_loaded):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{half_loaded.port}")
    x = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    given = http.InferInput("x", [1, 4], "FP32").set_data_from_numpy(x)
    found = client.infer("m", [given], outputs=[http.InferRequestedOutput("scores", binary_data=False)])
    np.testing.assert_array_equal(found.as_numpy("scores"), answer(x, 1))
    client.close()
