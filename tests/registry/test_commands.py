"""``mlflow-trt promote | rollback | history | check``: what they print, and their exit status."""

from __future__ import annotations

import json

import forged
from click.testing import CliRunner

import mlflow_trt
from mlflow_trt.cli.main import main

ALLOWED = ("--allow-not-measured", "parity", "--allow-not-measured", "latency")


def run(*arguments, columns=160):
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, [str(a) for a in arguments])


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


def test_check_a_fleet(registry, versions, tmp_path):
    (tmp_path / "fleet.yaml").write_text(f"edge: {forged.HERE}\nold: tensorrt_rtx=={forged.RELEASE},sm_75\n")
    mlflow_trt.promote(registry.name, versions[0], gates=[])
    arguments = ("check", f"models:/{registry.name}@champion", "--fleet", tmp_path / "fleet.yaml")

    shown, parsed = run(*arguments), run(*arguments, "--json")

    assert shown.exit_code == parsed.exit_code == 1
    assert [line.split()[:2] for line in shown.stdout.splitlines() if line.startswith(("edge", "old"))] == [
        ["edge", "loads"],
        ["old", "does"],
    ]
    hosts = json.loads(parsed.stdout)["hosts"]
    assert [bool(h["accepted"]) for h in hosts.values()] == [True, False]


def test_check_an_upgrade_over_all_models(registry, versions):
    mlflow_trt.promote(registry.name, versions[0], gates=[])

    breaks, stays = run("check", "--upgrade", "tensorrt_rtx==1.7"), run("check", "--upgrade", "tensorrt_rtx==1.6")

    assert breaks.exit_code == 1
    assert registry.name in breaks.stdout
    assert "breaks" in breaks.stdout
    mine = [line for line in stays.stdout.splitlines() if line.startswith(registry.name + " ")]
    assert mine
    assert all("loads" in line for line in mine)


def test_check_wants_a_model_or_an_upgrade():
    assert run("check").exit_code == 2
    assert run("check", "m", "--upgrade", "tensorrt_rtx==1.7").exit_code == 2
    assert run("check", "m", "--host", "sm_89", "--fleet", "f.yaml").exit_code == 2
