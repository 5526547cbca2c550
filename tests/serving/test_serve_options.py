"""What ``mlflow-trt serve`` takes, refuses, and says of itself; nothing is loaded here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_trt import serve
from mlflow_trt.cli.serve import serve as command
from mlflow_trt.errors import SettingError
from mlflow_trt.serving.config import LoadOptions
from mlflow_trt.serving.limits import CUTS, RANGES, Limits

from .light import light, until

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "server-limits.md"


def run(*arguments: str, **env: str | None):
    return CliRunner().invoke(command, ["/nothing", "--backend", "reference", *arguments], env=env)


def failed_with(found) -> str:
    """Why the server did not start, as the last line of its own in the log says."""
    assert found.exit_code == 1, found.output
    line = [line for line in map(json.loads, found.output.splitlines()) if "event" in line][-1]
    assert (line["event"], line["error_type"]) == ("failed", "SettingError")
    return line["message"]


# --- secrets ---


@pytest.mark.parametrize("content", ["", "\n", " \t\n"])
def test_an_empty_token_is_none_that_could_be_asked_for(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    for found in (run("--token-file", str(path)), run(MLFLOW_TRT_TOKEN=content)):
        assert "token is empty" in failed_with(found)


def test_an_empty_webhook_secret_is_refused():
    for content in ("", " "):
        found = run(MLFLOW_TRT_WEBHOOK_SECRET=content)
        assert "webhook's secret is empty" in failed_with(found)


def test_a_token_in_several_lines_or_in_no_text_is_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text("one\ntwo\n")
    found = run("--token-file", str(path))
    assert "more than one line" in failed_with(found)
    path.write_bytes(b"\xff\xfe\x00")
    found = run("--token-file", str(path))
    assert (found.exit_code, type(found.exception)) == (2, SystemExit)
    assert "can't be read" in found.output


def test_python_callers_meet_the_same():
    for secrets in ({"token": ""}, {"token": " "}, {"webhook_secret": ""}):
        with pytest.raises(SettingError, match="is empty"):
            serve("/nothing", **secrets)


def test_the_program_ends_and_says_why(tmp_path):
    (tmp_path / "token").touch()
    arguments = ["/nothing", "--backend", "reference", "--port", "0", "--token-file", str(tmp_path / "token")]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_trt", "serve", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "The bearer token is empty" in done.stderr
    assert "Traceback" not in done.stderr


# --- ranges ---


@pytest.mark.parametrize(
    "option",
    [
        *("--http-processes=-1", "--port=99999", "--port=-1", "--grpc-port=65536", "--timeout=-1", "--timeout=0"),
        *("--timeout=nan", "--timeout=inf", "--max-body=0", "--interval=0", "--interval=nan", "--drain=-1"),
        *("--delay=-1", "--delay=nan", "--max-queue=0", "--max-contexts=0", "--memory-limit=0", "--device=-1"),
        *("--device=0,0", "--device=", "--max-header=0", "--max-connections=0", "--max-unsent=0"),
        *("--header-timeout=0", "--body-timeout=nan", "--idle-timeout=-1", "--write-timeout=0", "--drain=nan"),
    ],
)
def test_what_is_out_of_range_is_wrong_usage(option):
    found = run(option)
    assert (found.exit_code, type(found.exception)) == (2, SystemExit), found.output
    assert option.partition("=")[0] in found.output


@pytest.mark.parametrize(
    "setting",
    [
        *({"port": 99999}, {"port": -1}, {"grpc_port": 70000}, {"timeout": -1.0}, {"timeout": float("nan")}),
        *({"interval": 0.0}, {"max_body": 0}, {"http_processes": -1}, {"drain": -0.1}, {"drain": float("inf")}),
        *({"options": LoadOptions(delay=float("nan"))}, {"options": LoadOptions(max_queue=0)}),
        {"options": LoadOptions(max_contexts=0)},
    ],
)
def test_python_callers_meet_the_same_ranges(setting):
    with pytest.raises(SettingError, match=r"is -?[\w.]+"):
        serve("/nothing", **setting)


def test_two_models_of_one_name_are_refused():
    for arguments in (("--model", "nothing=/other"), ("--model", "a=/x", "--model", "a=/y")):
        found = run(*arguments)
        assert found.exit_code == 2
        assert "Two models have the name" in found.output


def test_a_model_without_a_name_is_served_beside_one_with(tmp_path):
    with light(tmp_path, "/light/0/1", "--model=b=/light/0/2") as server:
        for name in ("1", "b"):
            assert server.get(f"/v2/models/{name}/ready").status_code == 200
        found = server.get("/v2/models/nobody").json()["error"]
        assert found.endswith("served are 1, b.")


def test_ports_that_the_system_chooses_are_in_the_log(tmp_path):
    log = tmp_path / "log"
    arguments = ["--model=m=/light/0/1", "--port", "0", "--grpc-port", "0", "--backend", "reference"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("light.py"), "serve", *arguments], stderr=output
        )
    try:

        def ports() -> dict[str, int]:
            lines = [json.loads(line) for line in log.read_text().splitlines() if '"Listening"' in line]
            return {line["protocol"]: line["port"] for line in lines}

        until(lambda: set(ports()) == {"http", "grpc"}, 120)
        assert all(0 < port < 65536 for port in ports().values())
    finally:
        process.kill()
        process.wait()


# --- what is said ---


def test_the_help_says_what_is_taken():
    text = CliRunner().invoke(command, ["--help"], terminal_width=110).output
    flat = " ".join(text.split())
    for word in ("models:/NAME@ALIAS", "runs:/", "local folder", "MLFLOW_TRACKING_URI", "MLFLOW_TRT_TOKEN"):
        assert word in flat
    for word in ("MLFLOW_TRT_WEBHOOK_SECRET", "MLFLOW_TRT_CACHE", "0<=x<=65535", "default: 60.0"):
        assert word in flat
    for parameter in command.params:
        if parameter.name in RANGES:
            assert re.search(re.escape(parameter.opts[0]) + r" (INTEGER|FLOAT) RANGE", flat), parameter.name


def test_asking_for_help_imports_nothing_heavy():
    code = "import sys, mlflow_trt.cli.serve; print([m for m in ('mlflow', 'numpy', 'uvicorn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr


def table() -> list[list[str]]:
    """The rows of the documentation's table of limits, the first of its page."""
    rows = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def test_the_documentation_s_table_of_limits_is_right():
    from mlflow_trt.serving.metrics import Metrics

    options = {option: parameter for parameter in command.params for option in parameter.opts}
    units = {"KiB": 1, "MiB": 1, "s": 1}
    metrics = Metrics({}).text().decode()
    named = set()
    for _, option, default, _, metric in table():
        flag = option.strip("`")
        named.add(flag)
        number, _, unit = default.partition(" ")
        assert float(number.replace(",", "")) == float(options[flag].default), flag
        assert unit in (*units, ""), flag
        if metric.startswith("`limit="):
            assert metric.strip("`").removeprefix("limit=").strip('"') in CUTS
        elif metric != "–":
            assert re.fullmatch(r"`status=\"\d{3}\"`", metric)
    assert "mlflow_trt_requests" in metrics
    assert all(f'mlflow_trt_cut_connections_total{{limit="{limit}"}}' in metrics for limit in CUTS)
    limits = {option for option, parameter in options.items() if parameter.name in vars(Limits())}
    assert limits | {"--max-body", "--timeout", "--max-queue", "--drain"} == named
    assert {row[4] for row in table()} >= {f'`limit="{limit}"`' for limit in CUTS}
