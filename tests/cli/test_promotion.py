"""``mlflow-trt promote | rollback | history``: what they print, and their exit status."""

from __future__ import annotations

import json

import forged
import pytest

from .commands import run

pytestmark = pytest.mark.usefixtures("without_gpu")

ALLOWED = ("--allow-not-measured", "parity", "--allow-not-measured", "latency")


def test_promote_refuse_roll_back_and_look_at_the_history(registry, tmp_path):
    first, smaller = registry.log(forged.plan()), registry.log(forged.plan(batch=(1, 2, 4)))
    third = registry.again(first)

    done = run("promote", registry.name, first, *ALLOWED)
    refused = run("promote", registry.name, smaller, *ALLOWED, "--html", tmp_path / "report.html")
    run("promote", registry.name, third, *ALLOWED)
    back = run("rollback", registry.name)
    history = run("history", registry.name)
    nothing = run("rollback", registry.name)

    assert (done.exit_code, refused.exit_code, back.exit_code, nothing.exit_code) == (0, 1, 0, 1)
    assert f"{registry.name} version {first} is champion now." in done.stdout
    assert "not measured (allowed)" in done.stdout
    assert "x.shape[0] = 5 to 8 are accepted now and would be refused" in refused.stdout
    assert f"{registry.name} version {smaller} is refused as champion: contract." in refused.stdout
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert f"{registry.name}@champion is version {first} again" in back.stdout
    assert [line.split()[0] for line in history.stdout.splitlines() if line[:1].isdigit()] == ["1", "2", "3"]
    assert "Nobody held" in nothing.stderr


def test_promote_speaks_json(registry, versions):
    done = run("promote", registry.name, versions[0], *ALLOWED, "--json")
    back = run("promote", registry.name, versions[1], "--json")
    history = run("history", registry.name, "--json")

    report = json.loads(done.stdout)
    assert (report["outcome"], report["move"]["number"]) == ("promoted", 1)
    assert [v["gate"] for v in report["verdicts"]] == ["integrity", "contract", "parity", "latency"]
    assert json.loads(back.stdout)["outcome"] == "refused"
    assert [m["id"] for m in json.loads(history.stdout)] == [report["id"]]


def test_a_dry_run_and_a_target(registry, versions):
    arguments = ("promote", registry.name, versions[0], *ALLOWED, "--dry-run", "--target")

    loads, does_not = run(*arguments, forged.HERE), run(*arguments, "tensorrt_rtx==1.4.0.76,sm_89")

    assert (loads.exit_code, does_not.exit_code) == (0, 1)
    assert "passes every gate for champion; the alias has not moved yet" in loads.stdout
    assert "tensorrt_rtx 1.4.0.76 is installed" in does_not.stdout
    assert registry.holder() is None


def test_allowing_a_gate_that_does_not_exist_is_wrong_usage(registry, versions):
    assert run("promote", registry.name, versions[0], "--allow-not-measured", "paritty").exit_code == 2
