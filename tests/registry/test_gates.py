"""Each gate lets pass what is right and refuses what is wrong, for a real reason: on a real server, with real files."""

from __future__ import annotations

import dataclasses
import shutil

import forged
import numpy as np
import pytest

import mlflow_trt
from mlflow_trt import store
from mlflow_trt.plan import manifest
from mlflow_trt.plan.manifest import Host, OutputParity, ParityPoint, ParityRecord, Tolerance
from mlflow_trt.plan.parity import default_tolerance
from mlflow_trt.registry import gates
from mlflow_trt.registry.gate_context import Case, Subject
from mlflow_trt.registry.parity import exact_outputs, limit
from mlflow_trt.registry.report import PromotionReport


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


def test_another_number_of_classes_is_refused_and_what_was_compared_is_in_the_report(registry):
    champion = registry.log(forged.plan())
    made = forged.plan("more classes")
    interface = made.manifest.interface
    outputs = (interface.outputs[0].model_copy(update={"shape": ("batch", 4)}),)
    wider = dataclasses.replace(
        made,
        manifest=made.manifest.model_copy(
            update={"interface": interface.model_copy(update={"outputs": outputs})},
        ),
    )
    crown(registry, champion)

    verdict = judged(registry, registry.log(wider), gates.Contract())

    assert verdict.status == "failed"
    assert verdict.reasons == ("The output 'scores' has the size 4 in dimension 1, and had 3.",)
    assert ("output scores", "float32 (batch, 3)", "float32 (batch, 4)") in verdict.tables[0].rows


# ---- parity --------------------------------------------------------------------------------------------------------

GPU = Host(gpu="NVIDIA L4", capability="8.9")


LOGGED = Tolerance(rel_l2=0.01, cosine=0.99)


def figures(rel_l2, *, status="passed", identical_rows=None, tolerance=LOGGED, top1=None):
    """What a GPU host recorded of an engine that is off by this much in a direction of its own."""
    cosine = 1 / (1 + rel_l2**2) ** 0.5
    passed = status == "passed"
    output = OutputParity(output="scores", max_abs=rel_l2, rel_l2=rel_l2, cosine=cosine, top1=top1, passed=passed)
    point = ParityPoint(profile=0, point="opt", outputs=(output,), identical_rows=identical_rows)
    return ParityRecord(status=status, tolerance=tolerance, points=(point,), host=GPU)


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


ANYTHING = Tolerance(rel_l2=100, cosine=-1)
FP32 = default_tolerance("fp32")


def test_whoever_logs_a_version_does_not_loosen_the_gate(registry):
    """Another network's engine, logged with a tolerance that lets anything pass: on record it has passed."""
    version = registry.log(forged.plan(parity=figures(1.4, tolerance=ANYTHING)))

    verdict = judged(registry, version, gates.Parity())

    assert verdict.status == "failed"
    assert "relative L2 error 1.4" in verdict.reasons[0]
    assert verdict.reasons[-1] == (
        "Judged by relative L2 0.005, cosine 0.9999 (the default of fp32); logged with relative L2 100, cosine -1."
    )
    [shown] = verdict.figures.values()
    assert (shown["judged_by"]["rel_l2"], shown["logged_with"]["rel_l2"]) == (0.005, 100)
    page = PromotionReport("i", "m", "1", "champion", None, "me", "now", "refused", verdicts=(verdict,)).to_html()
    assert "<td>logged with</td><td>100</td><td>-1</td>" in page


@pytest.mark.parametrize(
    ("precision", "own", "logged", "expected"),
    [
        ("fp32", None, None, FP32),
        ("fp32", None, FP32, FP32),
        ("fp32", None, ANYTHING, FP32),
        ("fp32", None, Tolerance(rel_l2=1e-4, cosine=0.5, top1=0.9), Tolerance(rel_l2=1e-4, cosine=0.9999, top1=0.9)),
        ("tf32", None, ANYTHING, default_tolerance("tf32")),
        ("bf16", None, Tolerance(rel_l2=1, cosine=0.999), Tolerance(rel_l2=0.05, cosine=0.999)),
        (None, None, ANYTHING, default_tolerance(None)),
        (None, None, Tolerance(rel_l2=1e-3, cosine=0.9), Tolerance(rel_l2=1e-3, cosine=0.9995)),
        # The gate's own, of whoever promotes.
        ("fp32", Tolerance(rel_l2=1e-4, cosine=0), None, Tolerance(rel_l2=1e-4, cosine=0)),
        ("fp32", Tolerance(rel_l2=0.5, cosine=0), FP32, Tolerance(rel_l2=0.5, cosine=0)),
        ("fp32", Tolerance(rel_l2=0.5, cosine=0), ANYTHING, Tolerance(rel_l2=0.5, cosine=0)),
        ("fp32", Tolerance(rel_l2=0.5, cosine=0), Tolerance(rel_l2=0.1, cosine=0.9), Tolerance(rel_l2=0.1, cosine=0.9)),
    ],
)
def test_the_limit_is_the_gates_and_a_logged_tolerance_only_makes_it_stricter(precision, own, logged, expected):
    assert limit(precision, own, logged).tolerance == expected


def test_a_limit_that_is_looser_than_the_default_says_so():
    loosened = limit("fp32", Tolerance(rel_l2=0.5, cosine=0), FP32)

    assert "the gate's setting, LOOSER than the default of fp32, relative L2 0.005, cosine 0.9999" in loosened.text()
    assert "LOOSER" not in limit("fp32", Tolerance(rel_l2=1e-4, cosine=0.99999), None).text()
    assert "LOOSER" in gates.judge_parity({"a": figures(0.3)}, Tolerance(rel_l2=0.5, cosine=0)).reasons[-1]


def test_a_version_logged_with_a_stricter_tolerance_is_held_to_it():
    strict = Tolerance(rel_l2=1e-4, cosine=0.9)

    assert gates.judge_parity({"a": figures(0.001)}).status == "passed"
    assert gates.judge_parity({"a": figures(0.001, tolerance=strict)}).status == "failed"


def test_a_stricter_tolerance_judges_the_same_figures():
    found = {"a plan": figures(0.005)}

    assert gates.judge_parity(found).status == "passed"
    assert gates.judge_parity(found, Tolerance(rel_l2=0.001, cosine=0.9)).status == "failed"
    assert gates.judge_parity(found, Tolerance(rel_l2=0.01, cosine=0.999999)).status == "failed"


def test_top1_is_judged_where_it_applies():
    strict = Tolerance(rel_l2=0.1, cosine=0.9, top1=0.99)

    assert gates.judge_parity({"a": figures(0.005, top1=0.95)}).status == "passed"
    assert gates.judge_parity({"a": figures(0.005, top1=0.95)}, strict).status == "failed"
    assert gates.judge_parity({"a": figures(0.005, tolerance=strict, top1=0.95)}).status == "failed"
    assert gates.judge_parity({"a": figures(0.005)}, strict).status == "passed"


@pytest.mark.parametrize(
    ("rel_l2", "share", "own", "logged", "expected"),
    [
        (0.5, 1.0, None, None, "passed"),  # a relative error of indices says nothing
        (0.5, 0.995, None, None, "passed"),
        (1e-5, 0.0, None, None, "failed"),  # every index is off by one
        (0.5, 0.9, None, Tolerance(rel_l2=100, cosine=-1, top1=0.5), "failed"),
        (0.5, 0.9, Tolerance(rel_l2=0.01, cosine=0.9, top1=0.8), None, "passed"),
        (0.5, 0.9, Tolerance(rel_l2=0.2, cosine=0.9), Tolerance(rel_l2=1, cosine=0, top1=0.95), "failed"),
    ],
)
def test_whole_numbers_are_judged_by_the_share_that_is_equal(rel_l2, share, own, logged, expected):
    found = {"a": figures(rel_l2, tolerance=logged, top1=share)}

    assert gates.judge_parity(found, own, exact={"scores"}).status == expected


def test_which_outputs_hold_whole_numbers_is_in_the_interface():
    made = forged.plan().manifest
    outputs = [forged.tensor(n, t, ()) for n, t in (("a", "float32"), ("b", "int64"), ("c", "bool"), ("d", "uint8"))]
    interface = made.interface.model_copy(update={"outputs": tuple(outputs)})

    assert exact_outputs(made.model_copy(update={"interface": interface})) == {"b", "c", "d"}
    assert exact_outputs(made.model_copy(update={"interface": None})) == set()


def test_rows_that_differ_within_a_batch_fail_whatever_the_tolerance():
    found = {"a plan": figures(0.001, status="failed", identical_rows=False)}

    assert "identical rows" in gates.judge_parity(found, Tolerance(rel_l2=1, cosine=-1)).reasons[0]


def test_rows_that_were_compared_by_a_looser_tolerance_are_not_measured():
    """How far they differ is not on record: under a tolerance of 100 rows of anything are identical."""
    anything = {"a plan": figures(0.001, identical_rows=True, tolerance=ANYTHING)}

    verdict = gates.judge_parity(anything)

    assert verdict.status == "not_measured"
    assert "identical rows" in verdict.reasons[0]
    assert gates.judge_parity({"a plan": figures(0.001, identical_rows=True)}).status == "passed"
    assert gates.judge_parity(anything, ANYTHING).status == "passed", "knowingly"


def test_a_verdict_without_figures_is_none():
    empty = ParityRecord(status="passed", tolerance=ANYTHING)

    assert gates.judge_parity({"a": empty}).status == "not_measured"
    assert gates.judge_parity({"a": empty.model_copy(update={"status": "failed"})}).status == "failed"


def test_each_plan_is_judged_by_its_own_precision():
    found = {"exact": figures(0.008), "half": figures(0.008)}
    limits = {"exact": limit("fp32", None, None), "half": limit("fp16", None, None)}

    verdict = gates.judge_parity(found, limits=limits)

    assert [r.partition(":")[0] for r in verdict.reasons] == ["exact", "exact", "half"]
    assert verdict.status == "failed"


def test_one_plan_without_figures_leaves_the_version_not_measured():
    found = {"a": figures(0.001), "b": ParityRecord(status="not_measured", reason="no GPU")}

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
    slow = registry.log(forged.plan("slow", module=module(512, depth=12)))
    crown(registry, quick)
    # Much slower, and time enough: other tests want the same cores. It ends as soon as it is decided.
    gate = gates.Latency(max_ratio=1.5, max_ratio_p99=20.0, seconds=15.0, backend="reference")

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
    from mlflow_trt.registry.gate_context import ask

    def reads(case):
        return manifest.parse("no JSON")

    case = Case("champion", Subject("m", "1"), None)

    assert ask(reads, case).status == "failed"
    assert "not JSON" in ask(reads, case).reasons[0]
