"""The gate of parity: what figures pass, by whose tolerance, and what it says of both."""

from __future__ import annotations

import forged
import pytest
from interfaces import tensor
from registries import judged

from mlflow_trt import store
from mlflow_trt.flavor.load import load_stored
from mlflow_trt.plan import host
from mlflow_trt.plan.manifest import Host, OutputParity, ParityPoint, ParityRecord, Tolerance
from mlflow_trt.plan.parity import NOT_FINITE, default_tolerance
from mlflow_trt.registry import gates
from mlflow_trt.registry.gate_context import GateContext, Subject
from mlflow_trt.registry.parity import exact_outputs, limit, within
from mlflow_trt.registry.report import PromotionReport

GPU = Host(gpu="NVIDIA L4", capability="8.9")


LOGGED = Tolerance(rel_l2=0.01, cosine=0.99)


def figures(rel_l2, *, status="passed", identical_rows=None, tolerance=LOGGED, top1=None):
    """What a GPU host recorded of an engine that is off by this much in a direction of its own."""
    cosine = 1 / (1 + min(rel_l2, 1e9) ** 2) ** 0.5
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


def test_the_plan_that_this_gpu_loads_is_measured_and_the_host_asked_once(classifier_folder, monkeypatch):
    """The logged program answers in place of the engine, so that no GPU is needed."""
    model = store.open_model(classifier_folder)
    record = model.manifest.plans[0]
    here = GPU.model_copy(update={"capability": record.capabilities[-1], "runtimes": {record.runtime: record.release}})
    probed, loaded = [], []

    def load(self, **arguments):
        loaded.append(arguments["selected"])
        return load_stored(self.stored, backend="reference")

    monkeypatch.setattr(host, "probe", lambda device=0: probed.append(device) or here)
    monkeypatch.setattr(Subject, "load", load)
    verdict = gates.Parity()(GateContext("champion", Subject("m", "1", model=model), None))

    assert verdict.status == "passed"
    assert probed == [0]
    (selected,) = loaded
    assert selected.record is record
    assert selected.report.host is here


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
    outputs = [tensor(n, (), t) for n, t in (("a", "float32"), ("b", "int64"), ("c", "bool"), ("d", "uint8"))]
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


def of(**changes):
    fields = {"output": "y", "max_abs": 0.1, "rel_l2": 0.01, "cosine": 0.99, "passed": False}
    return OutputParity(**{**fields, **changes})


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        (of(), True),
        (of(rel_l2=0.0101), False),
        (of(cosine=0.9899), False),
        (of(top1=0.95), True),
        (of(top1=0.94), False),
        (of(rel_l2=NOT_FINITE, cosine=-1.0), False),
    ],
)
def test_an_output_on_the_limit_is_within_it(found, allowed):
    most = limit("fp32", Tolerance(rel_l2=0.01, cosine=0.99, top1=0.95), None)
    assert within(found, most, exact=False) is allowed


def test_whole_numbers_without_a_share_have_to_be_the_same():
    """As records of earlier versions are."""
    most = limit("fp32", None, None)
    assert within(of(max_abs=0.0), most, exact=True)
    assert not within(of(max_abs=1.0), most, exact=True)


def test_a_verdict_of_no_plans_is_that_nothing_failed():
    verdict = gates.judge_parity({})
    assert (verdict.status, verdict.tables, verdict.charts) == ("passed", (), ())


def test_what_is_not_finite_is_called_so():
    verdict = gates.judge_parity({"a": figures(NOT_FINITE, status="failed")})
    assert "relative L2 error not finite" in verdict.reasons[0]
    assert verdict.tables[0].rows[0][2] == "not finite"
