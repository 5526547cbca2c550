from __future__ import annotations

import io
import json

import numpy as np
import pytest
from manifests import MEASURED

from mlflow_trt.errors import SettingError
from mlflow_trt.plan import parity
from mlflow_trt.plan.manifest import Host, ParityPoint, ParityRecord, Tolerance

TIGHT = Tolerance(rel_l2=1e-3, cosine=0.999)


def one(reference, actual, tolerance=TIGHT):
    (found,) = parity.compare({"y": np.asarray(reference)}, {"y": np.asarray(actual)}, tolerance)
    json.loads(found.model_dump_json())
    for value in (found.max_abs, found.rel_l2, found.cosine):
        assert np.isfinite(value)
    return found


def f32(*values):
    return np.array(values, np.float32)


def test_tolerances_grow_with_fewer_bits():
    order = [parity.default_tolerance(p) for p in ("fp32", "tf32", "fp16", "bf16")]
    assert [t.rel_l2 for t in order] == sorted(t.rel_l2 for t in order)
    assert [t.cosine for t in order] == sorted((t.cosine for t in order), reverse=True)
    assert parity.default_tolerance(None) == parity.default_tolerance("fp16")
    with pytest.raises(SettingError, match="int3"):
        parity.default_tolerance("int3")


@pytest.mark.parametrize(("precision", "measured"), [("fp32", 2e-4), ("tf32", 1e-3), ("fp16", 1.3e-3), ("bf16", 1e-2)])
def test_tolerances_hold_what_was_measured_and_not_a_real_fault(precision, measured):
    random = np.random.default_rng(0)
    reference = random.standard_normal((8, 100))
    noise = random.standard_normal(reference.shape)
    noise *= np.linalg.norm(reference) / np.linalg.norm(noise)
    tolerance = parity.default_tolerance(precision)
    assert one(reference, reference + measured * noise, tolerance).passed
    assert not one(reference, reference + 0.07 * noise, tolerance).passed


def test_figures():
    found = one(f32(3, 4), f32(3, 4.005))
    assert found.max_abs == pytest.approx(0.005, rel=1e-3)
    assert found.rel_l2 == pytest.approx(0.001, rel=1e-3)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.top1 is None


@pytest.mark.parametrize(
    ("reference", "actual", "passed"),
    [
        (f32(1, 2, 3), f32(1, 2, 3), True),
        (f32(1, 2, 3), f32(1, 2, 3.1), False),
        (f32(1, 2, 3), -f32(1, 2, 3), False),
        (f32(1, 2, 3), f32(0, 0, 0), False),
        (f32(0, 0, 0), f32(0, 0, 0), True),
        (f32(0, 0, 0), f32(1e-4, 0, 0), True),
        (f32(0, 0, 0), f32(1, 0, 0), False),
        (f32(1, np.nan), f32(1, np.nan), True),
        (f32(1, np.nan), f32(1, 1), False),
        (f32(1, 1), f32(1, np.nan), False),
        (f32(1, np.inf), f32(1, np.inf), True),
        (f32(1, np.inf), f32(1, -np.inf), False),
        (f32(1, np.inf), f32(1, 1e38), False),
        (f32(np.nan, np.nan), f32(np.nan, np.nan), True),
        (f32(), f32(), True),
        (f32(1, 2), f32(1), False),
        (f32(1, 2), np.array([[1, 2]], np.float32), False),
        (np.array([1e200]), np.array([1e200]), True),
        (np.array([1e308]), np.array([-1e308]), False),
        (np.array(5.0), np.array(5.0), True),
    ],
)
def test_floats(reference, actual, passed):
    assert one(reference, actual).passed is passed


def test_missing_output_has_failed():
    (found,) = parity.compare({"y": f32(1)}, {"z": f32(1)}, TIGHT)
    assert (found.output, found.passed) == ("y", False)


@pytest.mark.parametrize(
    ("changed", "tolerance", "passed"),
    [
        (0, TIGHT, True),
        (1, TIGHT, False),
        (1, Tolerance(rel_l2=0.02, cosine=0), True),
        (3, Tolerance(rel_l2=0.02, cosine=0), False),
        (3, Tolerance(rel_l2=1e-3, cosine=0, top1=0.95), True),
    ],
)
def test_integers_are_judged_by_the_share_that_is_equal(changed, tolerance, passed):
    reference = np.arange(100)
    actual = reference.copy()
    actual[:changed] += 1
    found = one(reference, actual, tolerance)
    assert found.top1 == pytest.approx(1 - changed / 100)
    assert found.passed is passed


def test_booleans():
    assert one(np.array([True, False]), np.array([True, False])).passed
    assert not one(np.array([True, False]), np.array([True, True])).passed
    assert one(np.zeros(3, bool), np.zeros(3, bool)).passed


def test_top1():
    reference = np.array([[1, 2, 3], [3, 2, 1], [5, 5, 1], [np.nan, 0, 1]])
    actual = np.array([[1, 2, 3], [1, 2, 3], [5, 5.1, 1], [np.nan, 0, 1]])
    assert one(reference, actual).top1 == pytest.approx(2 / 3)  # a tie counts, a row with NaN does not
    assert one(reference[:3], actual[:3], Tolerance(rel_l2=10, cosine=-1, top1=0.6)).passed
    assert not one(reference[:3], actual[:3], Tolerance(rel_l2=10, cosine=-1, top1=0.7)).passed
    assert one(np.ones((2, 3, 4)), np.ones((2, 3, 4))).top1 == 1.0
    for shape in ((3,), (3, 1), (1, 2, 3, 4), (0, 3)):
        assert one(np.ones(shape), np.ones(shape)).top1 is None


def points(*passed, identical=None):
    outputs = [one(f32(1, 2), f32(1, 2) if p else f32(2, 1)) for p in passed]
    return [ParityPoint(profile=0, point="opt", outputs=tuple(outputs), identical_rows=identical)]


def test_judge():
    assert parity.judge(points(True, True), TIGHT).status == "passed"
    assert parity.judge(points(True, False), TIGHT).status == "failed"
    assert parity.judge(points(True, identical=False), TIGHT).status == "failed"
    assert parity.judge(points(True, identical=True), TIGHT).status == "passed"
    assert parity.judge([], TIGHT).status == "not_measured"
    assert parity.judge(points(True), TIGHT, Host(gpu="L4")).host.gpu == "L4"


def test_text_and_table():
    from rich.console import Console

    made = parity.judge(
        [*points(True, identical=False), *points(False)], TIGHT, Host(gpu="NVIDIA L4", capability="8.9")
    )
    text = parity.text(made)
    assert "Parity with the model on NVIDIA L4: failed; allowed: rel L2 0.001, cosine 0.999" in text
    assert text.count("FAILED") == 2
    assert "identical rows" in text
    out = io.StringIO()
    Console(file=out, width=120).print(parity.table(made))
    assert out.getvalue().count("FAILED") == 2
    not_finite = parity.judge([ParityPoint(profile=0, point="min", outputs=(one(f32(1), f32(np.nan)),))], TIGHT)
    assert "not finite" in parity.text(not_finite)
    assert "not measured (no GPU)" in parity.text(ParityRecord(status="not_measured", reason="no GPU"))


def test_figures_survive_a_manifest():
    made = parity.judge([ParityPoint(profile=0, point="min", outputs=(one(f32(1), f32(np.nan)),))], TIGHT)
    assert ParityRecord.model_validate_json(made.model_dump_json()) == made


def test_a_plan_is_judged_by_what_it_was_logged_with_or_else_by_its_precision():
    own = Tolerance(rel_l2=0.2, cosine=0.5)
    logged = MEASURED.model_copy(update={"parity": ParityRecord(status="not_measured", tolerance=own)})
    assert parity.tolerance_of(logged) == own
    plain = MEASURED.model_copy(update={"parity": ParityRecord(status="not_measured")})
    assert parity.tolerance_of(plain) == parity.default_tolerance(MEASURED.precision.requested)
