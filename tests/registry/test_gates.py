"""Each gate lets pass what is right and refuses what is wrong, for a real reason: on a real server, with real files."""

from __future__ import annotations

import shutil

import forged
import numpy as np
import pytest

import mlflow_trt
from mlflow_trt import manifest, store
from mlflow_trt.manifest import Host, OutputParity, Parity, ParityPoint, Tolerance
from mlflow_trt.registry import gates
from mlflow_trt.registry.case import Case, Subject


def judged(registry, version, *chosen):
    """The verdict of the first gate on a version, against the champion."""
    return mlflow_trt.promote(registry.name, version, gates=chosen, dry_run=True).verdicts[0]


def crown(registry, version):
    assert mlflow_trt.promote(registry.name, version, gates=[]).promoted


# ---- integrity -----------------------------------------------------------------------------------------------------


def test_a_whole_version_passes(registry, versions):
    verdict = judged(registry, versions[0], gates.Integrity())

    assert verdict.status == "passed"
    assert [row[-1] for row in verdict.tables[0].rows] == ["as the manifest says"] * 3


@pytest.mark.parametrize("path", ["model.plan", "inputs.safetensors"])
def test_one_flipped_byte_is_refused(registry, path):
    version = registry.log(forged.plan())
    # The good file lies in the local cache: what counts is the store.
    model = store.open_model(f"models:/{registry.name}/{version}")
    model.fetch(model.manifest.files())
    forged.flip_one_byte(next(registry.stored(version).rglob(path)))

    verdict = judged(registry, version, gates.Integrity())

    assert verdict.status == "failed"
    assert "SHA-256" in verdict.reasons[0]
    assert path in verdict.reasons[0]


def test_a_missing_plan_and_a_short_one_are_refused(registry):
    version = registry.log(forged.plan())
    path = next(registry.stored(version).rglob("model.plan"))

    path.write_bytes(path.read_bytes()[:-1])
    short = judged(registry, version, gates.Integrity())

    assert short.status == "failed"
    assert "bytes" in short.reasons[0]


def test_another_plan_under_a_manifest_that_fits_is_refused_by_the_registrys_tag(registry):
    version = registry.log(forged.plan("mine"))
    other = registry.log(forged.plan("somebody else's"))
    mine, theirs = registry.stored(version), registry.stored(other)
    shutil.copyfile(theirs / "manifest.json", mine / "manifest.json")
    shutil.copyfile(next(theirs.rglob("model.plan")), next(mine.rglob("model.plan")))

    verdict = judged(registry, version, gates.Integrity())

    assert verdict.status == "failed"
    assert "mlflow_trt.digest" in verdict.reasons[0]


def test_a_version_registered_without_tags_is_known_by_its_logged_model(registry, versions):
    source = registry.client.get_model_version(registry.name, versions[0]).source
    made = registry.client.create_model_version(registry.name, source, model_id=source.removeprefix("models:/"))

    assert judged(registry, made.version, gates.Integrity()).status == "passed"


# ---- compatibility -------------------------------------------------------------------------------------------------


def test_every_named_machine_has_to_load_it(registry, versions, tmp_path):
    (tmp_path / "fleet.yaml").write_text(
        f"edge: {forged.HERE}\nold:\n  capability: 7.5\n  runtimes: {{tensorrt_rtx: {forged.RELEASE}}}\n"
    )

    passed = judged(registry, versions[0], gates.Compatibility([forged.HERE, Host(**_host("8.6"))]))
    failed = judged(registry, versions[0], gates.Compatibility([forged.HERE], fleet=tmp_path / "fleet.yaml"))

    assert passed.status == "passed"
    assert failed.status == "failed"
    assert [row[:2] for row in failed.tables[0].rows] == [
        (forged.HERE, "loads"),
        ("edge", "loads"),
        ("old", "DOES NOT LOAD"),
    ]
    [reason] = failed.reasons
    assert reason.startswith("old: The GPU has compute capability 7.5.")


def _host(capability):
    return {"capability": capability, "os": "linux", "runtimes": {"tensorrt_rtx": forged.RELEASE}}


def test_targets_join_the_default_gates():
    assert [g.name for g in gates.default(targets=[forged.HERE])] == [
        *("integrity", "compatibility", "contract", "parity", "latency")
    ]


# ---- contract ------------------------------------------------------------------------------------------------------


def test_a_smaller_maximum_batch_is_refused_and_a_larger_one_passes(registry):
    champion, smaller, larger = (registry.log(forged.plan(batch=(1, 2, n))) for n in (8, 4, 16))
    crown(registry, champion)

    refused = judged(registry, smaller, gates.Contract())

    assert refused.status == "failed"
    assert refused.reasons == ("Calls with x.shape[0] = 5 to 8 are accepted now and would be refused.",)
    assert judged(registry, larger, gates.Contract()).status == "passed"


def test_a_renamed_input_is_refused(registry):
    champion, renamed = registry.log(forged.plan()), registry.log(forged.plan(input_name="image"))
    crown(registry, champion)

    verdict = judged(registry, renamed, gates.Contract())

    assert verdict.status == "failed"
    assert "'x' is gone" in verdict.reasons[0]


# ---- parity --------------------------------------------------------------------------------------------------------

GPU = Host(gpu="NVIDIA L4", capability="8.9")


def figures(rel_l2, *, status="passed", identical_rows=True):
    output = OutputParity(output="scores", max_abs=rel_l2, rel_l2=rel_l2, cosine=1 - rel_l2, passed=rel_l2 <= 0.01)
    point = ParityPoint(profile=0, point="opt", outputs=(output,), identical_rows=identical_rows)
    return Parity(status=status, tolerance=Tolerance(rel_l2=0.01, cosine=0.99), points=(point,), host=GPU)


def test_figures_that_a_gpu_host_recorded_count(registry):
    good = registry.log(forged.plan(parity=figures(0.001)))
    wrong = registry.log(forged.plan(parity=figures(0.12, status="failed")))

    passed, failed = judged(registry, good, gates.Parity()), judged(registry, wrong, gates.Parity())

    assert passed.status == "passed"
    assert "on NVIDIA L4" in passed.reasons[0]
    assert failed.status == "failed"
    assert "relative L2 error 0.12" in failed.reasons[0]
    assert failed.blocks


def test_not_measured_is_not_passed(registry, versions):
    verdict = judged(registry, versions[0], gates.Parity(measure=False))

    assert verdict.status == "not_measured"
    assert verdict.blocks
    assert not judged(registry, versions[0], gates.Parity(measure=False, allow_not_measured=True)).blocks


def test_what_a_gpu_host_benchmarked_later_counts(registry):
    version = registry.log(forged.plan("measured later"))
    entity = registry.client.get_model_version(registry.name, version)
    model_id = entity.source.removeprefix("models:/")
    path = f"mlflow_trt/{model_id}/benchmark.json"
    text = f'{{"parity": {figures(0.3, status="failed").model_dump_json()}, "latency": {{}}}}'
    registry.client.log_text(entity.run_id, text, path)

    assert judged(registry, version, gates.Parity(measure=False)).status == "failed"


def test_a_stricter_tolerance_judges_the_same_figures():
    found = {"a plan": figures(0.005)}

    assert gates.judge_parity(found).status == "passed"
    assert gates.judge_parity(found, Tolerance(rel_l2=0.001, cosine=0.9)).status == "failed"
    assert gates.judge_parity(found, Tolerance(rel_l2=0.01, cosine=0.999)).status == "failed"


def test_rows_that_differ_within_a_batch_fail_whatever_the_tolerance():
    found = {"a plan": figures(0.001, status="failed", identical_rows=False)}

    assert "identical rows" in gates.judge_parity(found, Tolerance(rel_l2=1, cosine=-1)).reasons[0]


def test_one_plan_without_figures_leaves_the_version_not_measured():
    found = {"a": figures(0.001), "b": Parity(status="not_measured", reason="no GPU")}

    assert gates.judge_parity(found).status == "not_measured"
    assert gates.judge_parity({**found, "c": figures(0.5, status="failed")}).status == "failed"


# ---- latency, with engines that PyTorch runs -----------------------------------------------------------------------


def module(width, depth=1):
    import torch

    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(4, width),
        *(torch.nn.Linear(width, width) for _ in range(depth)),
        torch.nn.Linear(width, 3),
    ]
    return torch.nn.Sequential(*layers)


def test_a_slower_engine_is_refused_and_the_same_again_passes(registry):
    pytest.importorskip("torch")
    quick = registry.log(forged.plan("quick", module=module(8)))
    slow = registry.log(forged.plan("slow", module=module(256, depth=6)))
    crown(registry, quick)
    gate = gates.Latency(max_ratio=1.5, max_ratio_p99=20.0, seconds=2.0, backend="reference")

    refused, passed = judged(registry, slow, gate), judged(registry, registry.again(quick), gate)

    assert refused.status == "failed", refused.reasons
    assert refused.figures["comparisons"][0]["ratio"] > 1.5
    assert "PyTorch on the CPU" in refused.tables[0].title
    assert passed.status == "passed", passed.reasons


def test_without_a_champion_there_is_nothing_to_be_slower_than(registry, versions):
    assert judged(registry, versions[0], gates.Latency()).status == "passed"


def test_without_a_gpu_latency_is_not_measured(registry, versions):
    crown(registry, versions[0])

    verdict = judged(registry, versions[1], gates.Latency())

    assert verdict.status == "not_measured"
    assert verdict.blocks
    assert "no GPU" in verdict.reasons[0]


# ---- accuracy, on real digits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's handwritten digits 0, 1 and 2, and two classifiers: one that learned them, one that did not."""
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits(n_class=3)
    x, y = (data.data / 16).astype(np.float32), data.target
    torch.manual_seed(0)
    learned = torch.nn.Linear(64, 3)
    steps = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(60):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(learned(torch.from_numpy(x[:400])), torch.from_numpy(y[:400])).backward()
        steps.step()
    return x[400:], y[400:], learned, torch.nn.Linear(64, 3)


def test_a_version_that_knows_less_is_refused(registry, digits):
    pytest.importorskip("mlflow.models.evaluation")
    x, y, learned, ignorant = digits
    champion = registry.log(forged.plan("learned", module=learned, features=64, batch=(1, 8, 32)))
    worse = registry.log(forged.plan("ignorant", module=ignorant, features=64, batch=(1, 8, 32)))
    crown(registry, champion)
    gate = gates.Accuracy(x, y, max_drop=0.01, backend="reference")

    refused, passed = judged(registry, worse, gate), judged(registry, registry.again(champion), gate)

    assert refused.status == "failed"
    assert refused.figures["champion"] > 0.95
    assert refused.figures["candidate"] < 0.8
    assert passed.status == "passed"
    assert passed.figures["candidate"] == passed.figures["champion"]
    assert registry.client.search_runs(["0"], f"tags.mlflow_trt.evaluated LIKE '%{registry.name}%'") == [], "a dry run"


def test_a_metric_may_be_a_function_and_have_a_minimum(registry, digits):
    x, y, learned, _ = digits
    version = registry.log(forged.plan("learned", module=learned, features=64, batch=(4, 8, 32)))

    def errors(targets, predictions):
        return float(np.mean(targets != predictions))

    def gate(minimum):
        return gates.Accuracy(x, y, metric=errors, higher_is_better=False, minimum=minimum, backend="reference")

    assert judged(registry, version, gate(0.05)).status == "passed"
    assert judged(registry, version, gate(-0.01)).status == "failed"


@pytest.mark.parametrize(
    ("candidate", "champion", "drop", "higher", "expected"),
    [
        (0.90, 0.91, 0.01, True, "passed"),
        (0.89, 0.91, 0.01, True, "failed"),
        (0.95, 0.91, 0.0, True, "passed"),
        (0.12, 0.10, 0.01, False, "failed"),
        (0.11, 0.10, 0.01, False, "passed"),
        (float("nan"), 0.91, 0.01, True, "failed"),
        (0.5, None, 0.0, True, "passed"),
    ],
)
def test_at_most_so_much_worse(candidate, champion, drop, higher, expected):
    from mlflow_trt.registry.accuracy import judge

    assert judge(candidate, champion, drop, higher_is_better=higher).status == expected


# ---- asking --------------------------------------------------------------------------------------------------------


def test_an_expected_error_in_a_gate_is_its_reason():
    from mlflow_trt.registry.case import ask

    def reads(case):
        return manifest.parse("no JSON")

    case = Case("champion", Subject("m", "1"), None)

    assert ask(reads, case).status == "failed"
    assert "not JSON" in ask(reads, case).reasons[0]
