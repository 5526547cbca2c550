"""The benchmarks' own arithmetic, verdicts and files, and that a quick run on this machine's CPU gives real numbers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import record, suite, timing
from benchmarks.machine import describe, label

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("q", "expected"), [(0, 1.0), (0.5, 3.0), (1, 5.0), (0.25, 2.0), (0.9, 4.6)])
def test_quantile(q, expected):
    assert timing.quantile([5.0, 1.0, 3.0, 2.0, 4.0], q) == pytest.approx(expected)


def test_quantile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        timing.quantile([], 0.5)


def test_ratio_and_difference_are_taken_within_rounds():
    # The clock halves after the first round: a ratio of overall medians would not see 2, nor a mean.
    mine, theirs = [[4.0, 4.0, 9.0], [2.0, 2.0, 2.0]], [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]
    assert timing.ratio(mine, theirs) == 2.0
    assert timing.difference(mine, theirs) == 1.5


def test_ratio_refuses_unequal_rounds():
    with pytest.raises(ValueError, match="argument"):
        timing.ratio([[1.0]], [[1.0], [1.0]])


def test_interleave_takes_turns_and_keeps_the_warm_up_out():
    calls = []
    found = timing.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, calls=3, warm_up=1
    )
    assert "".join(calls) == "aaaabbbb" + "bbbbaaaa"
    assert [[len(samples) for samples in rounds] for rounds in found.values()] == [[3, 3], [3, 3]]


def test_interleave_finishes_one_round_after_the_deadline():
    found = timing.interleave({"a": lambda: None}, rounds=50, calls=1, deadline=time.monotonic() - 1)
    assert len(found["a"]) == 1


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (record.Goal("x", 1.1, "×"), 1.1, "met"),
        (record.Goal("x", 1.1, "×"), 1.11, "missed"),
        (record.Goal("x", 1.25, "×", at_least=True), 1.25, "met"),
        (record.Goal("x", 1.25, "×", at_least=True), 1.2, "missed"),
        (record.Goal("x", 1.25, "×", at_least=True), float("nan"), "missed"),
        (record.Goal("x", 1.25, "×"), float("nan"), "missed"),
    ],
)
def test_verdict(goal, value, verdict):
    assert goal.verdict(value) == verdict


def test_a_goal_without_a_number_is_not_measured_and_says_why():
    goals = [record.Goal("a", 1, "s"), record.Goal("b", 1, "s"), record.Goal("c", 1, "s")]
    found = record.Measurement(values={"a": 0.5}, missing={"b": "no time left"})
    entry = record.result("n", "t", goals, "measured", measurement=found)
    assert [goal["verdict"] for goal in entry["goals"]] == [
        "met",
        "not measured: no time left",
        "not measured: the benchmark gave no number",
    ]


def test_figures_are_scaled_to_their_unit():
    found = record.Measurement()
    found.add("way", [[0.001, 0.002], [0.003]])
    found.add("rate", [[10.0, 20.0]], "images/s")
    assert (found.figures[0].median, found.figures[0].unit, found.figures[0].n) == (pytest.approx(2.0), "ms", 3)
    assert found.figures[1].median == 15.0


def test_results_are_written_as_json_and_as_a_table(tmp_path):
    found = record.Measurement(values={"a|b": 0.5}, notes=["as it was"])
    found.add("way", [[0.001]])
    found.figures.append(record.Figure("requests", "", 1_223_888.0))
    entries = [
        record.result("one", "One", [record.Goal("a|b", 1, "s")], "measured", measurement=found),
        record.result("two", "Two", [record.Goal("c", 1, "s")], "not measured", reason="no GPU"),
    ]
    report = {"schema_version": 1, "date": "2000-01-01", "quick": False, "machine": describe(), "benchmarks": entries}
    path = record.write(tmp_path / "new", "stem", report)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    table = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| one | a\\|b | 0.5 s | ≤ 1 s | met |" in table
    assert "| requests | 1,223,888 |" in table  # a count is not rounded
    assert "| two | c |  | ≤ 1 s | not measured: no GPU |" in table


def test_the_machine_is_described_without_naming_it():
    import socket

    machine = describe()
    assert machine["cores"] >= 1
    assert machine["versions"]["mlflow"] if "mlflow" in machine["versions"] else machine["versions"]["mlflow-skinny"]
    assert socket.gethostname() not in json.dumps(machine)
    assert label({"gpu": None, "cores": 2}) == "cpu-2core"
    assert label({"gpu": "NVIDIA H100 80GB HBM3", "cores": 2}) == "h100-80gb-hbm3"


def test_the_suite_is_whole():
    names = [benchmark.name for benchmark in suite.SUITE]
    assert len(set(names)) == len(names)
    for benchmark in suite.SUITE:
        assert callable(benchmark.load())
        assert len({goal.name for goal in benchmark.goals}) == len(benchmark.goals)


def run(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_unknown_name_is_refused(tmp_path):
    done = run("--out", str(tmp_path), "nonsense")
    assert done.returncode == 2
    assert "unknown: nonsense; there are prepare, " in done.stderr


@pytest.mark.slow
def test_quick_run(tmp_path, warm_programs):
    done = run("--quick", "--out", str(tmp_path), "imports", "wrapper", "threads", **warm_programs)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*-quick.json")
    entries = {entry["name"]: entry for entry in json.loads(path.read_text())["benchmarks"]}
    assert list(entries) == ["prepare", "threads", "imports", "wrapper"]
    for name in ("prepare", "imports", "wrapper"):
        assert entries[name]["status"] == "measured", entries[name]
        assert entries[name]["figures"]
    assert entries["wrapper"]["goals"][0]["verdict"] in ("met", "missed")
    if not describe()["gpu"]:
        assert entries["threads"]["status"] == "not measured"
        assert entries["threads"]["goals"][0]["verdict"] == "not measured: no GPU"


def test_a_benchmark_that_crashes_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    import benchmarks.__main__ as command

    broken = suite.Benchmark("broken", "Breaks", "nowhere:nothing", (record.Goal("x", 1, "s"),))
    monkeypatch.setattr(command, "SUITE", (broken,))
    # The child knows nothing of the patched suite: its process ends with an error and without a result.
    assert command.main(["--out", str(tmp_path), "--work", str(tmp_path / "work"), "broken"]) == 1
    (entry,) = json.loads(next(tmp_path.glob("*.json")).read_text())["benchmarks"]
    assert entry["status"] == "failed"
    assert "its process ended with" in entry["reason"]
    assert "StopIteration" in entry["traceback"]
    assert entry["goals"][0]["verdict"].startswith("not measured: its process ended")
