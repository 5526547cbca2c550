"""When a server is ready: what is decided, and a server one of whose models can't be loaded."""

from __future__ import annotations

import json

import pytest

import mlflow_trt
from mlflow_trt.serving.readiness import ready

from .light import until
from .registered import plan, rows
from .running import request, served, whole

ONE = rows(1)["x"].tolist()
JSON = {"Content-Type": "application/json"}


# --- what is decided ---


@pytest.mark.parametrize(
    ("states", "exit_on_error", "expected"),
    [
        ("ready ready", True, True),
        ("ready failed", True, False),
        ("ready failed", False, True),
        ("ready loading", False, False),
        ("ready again", False, True),
        ("failed failed", False, False),
    ],
)
def test_when_a_server_is_ready(states, exit_on_error, expected):
    """``again``: it failed, and is being loaded once more."""
    statuses = [
        {"state": "loading" if state == "again" else state, "attempted": state != "loading"} for state in states.split()
    ]
    assert ready(statuses, exit_on_error) is expected


def test_a_model_that_answers_needs_no_further_attempt():
    assert ready([{"state": "ready", "attempted": False}, {"state": "ready"}], exit_on_error=False)


@pytest.mark.parametrize(("exit_on_error", "expected"), [(True, True), (False, False)])
def test_a_server_of_no_models(exit_on_error, expected):
    assert ready([], exit_on_error) is expected


# --- one model that can't be loaded ---


@whole
def test_a_model_that_can_t_be_loaded_leaves_the_others_alone(half_loaded):
    assert half_loaded.get("/v2/health/ready").status_code == 200
    assert half_loaded.get("/v2/models/m/ready").status_code == 200
    assert half_loaded.get("/v2/models/bad/ready").status_code == 503
    assert half_loaded.infer(request(ONE)).status_code == 200
    refused = half_loaded.infer(request(ONE), "bad")
    assert (refused.status_code, "bad" in refused.json()["error"]) == (503, True)
    assert any(json.loads(line).get("event") == "failed" for line in half_loaded.lines())


@whole
def test_it_is_served_once_it_can_be_loaded(plus_one, tmp_path):
    """A registered alias that is set later; the server runs all the time."""
    import mlflow

    store = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(store)
    mlflow_trt.log_model(plan(5.0), "m", registered_model_name="late")
    options = ["--model=late=models:/late@champion", f"--model=m={plus_one}", "--exit-on-error", "false"]
    with served(tmp_path, *options, "--interval", "0.3", env={"MLFLOW_TRACKING_URI": store}) as server:
        assert server.get("/v2/models/late/ready").status_code == 503
        assert server.post("/invocations", b"{}", headers=JSON).status_code == 503
        mlflow.MlflowClient().set_registered_model_alias("late", "champion", "1")
        until(lambda: server.get("/v2/models/late/ready").status_code == 200, 60)
        assert server.infer(request(ONE), "late").status_code == 200
        assert all(isinstance(json.loads(line), dict) for line in server.lines())
