"""How a server serves is said once: by the command line, by Python callers, and by the configuration's own defaults."""

from __future__ import annotations

import dataclasses

import pytest
from click.testing import CliRunner

from mlflow_trt import serve
from mlflow_trt.cli.serve import serve as command
from mlflow_trt.errors import SettingError
from mlflow_trt.serving import server
from mlflow_trt.serving.config import LoadOptions, ServerConfig
from mlflow_trt.serving.limits import RANGES, Limits


@pytest.fixture
def run(monkeypatch):
    """What the server was to run with, in place of running."""
    given = []
    monkeypatch.setattr(server, "run", lambda models, config: given.append((models, config)))
    return given


def test_the_command_line_s_defaults_are_the_configuration_s(run, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRT_TOKEN", raising=False)
    monkeypatch.delenv("MLFLOW_TRT_WEBHOOK_SECRET", raising=False)
    assert CliRunner().invoke(command, ["models:/m@champion"]).exit_code == 0
    assert run == [({"m": "models:/m@champion"}, ServerConfig())]


def test_so_are_those_of_python_callers(run):
    serve("models:/m@champion")
    assert run == [("models:/m@champion", ServerConfig())]


def test_the_command_line_s_units_become_the_configuration_s(run):
    options = ["--max-body=1", "--max-header=2", "--max-unsent=3", "--delay=4", "--device=1,0", "--idle-timeout=5"]
    assert CliRunner().invoke(command, ["/m", *options, "--grpc-port=0"]).exit_code == 0
    [(_, config)] = run
    assert (config.max_body, config.grpc_port) == (1 << 20, 0)
    assert config.limits == Limits(max_header=2 << 10, max_unsent=3 << 20, idle_timeout=5.0)
    assert config.options == LoadOptions(delay=0.004, devices=(1, 0))


@pytest.mark.parametrize("name", sorted(RANGES))
def test_every_range_is_checked_of_every_configuration(name):
    for place, kind in (("limits", Limits), ("options", LoadOptions), (None, ServerConfig)):
        if name in {field.name for field in dataclasses.fields(kind)}:
            for value in (-1, float("nan")):
                with pytest.raises(SettingError, match=f"{name} is"):
                    ServerConfig(**({place: kind(**{name: value})} if place else {name: value}))
            return
    raise AssertionError(f"{name} is a setting of nothing")


def test_it_stays_as_it_is():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerConfig().port = 1
