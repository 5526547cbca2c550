"""Which plans a Triton gets, and the refusals: pure functions of the manifest."""

from __future__ import annotations

import pytest
from manifests import MANIFEST, MEASURED
from trt_plans import CLASSIFIER, ONE_PROFILE, record

from mlflow_trt.errors import CompatibilityError, SettingError
from mlflow_trt.export.selection import select
from mlflow_trt.plan.manifest import Manifest, ShapeRange


def of(*records) -> Manifest:
    return Manifest(interface=CLASSIFIER, plans=records)


def test_the_one_plan_of_the_full_tensorrt_is_taken():
    chosen = select(MANIFEST)

    assert chosen.files == {"model.plan": MANIFEST.plans[1]}
    assert chosen.by_capability == {}
    assert (chosen.release, chosen.version_compatible) == ("11.1.0.23", False)


def test_plans_of_tensorrt_rtx_are_refused():
    with pytest.raises(CompatibilityError) as caught:
        select(of(MEASURED))

    assert "It is a plan of tensorrt_rtx" in caught.value.found
    assert "tensorrt_rtx-1.6.1.120-sm80-sm86-sm89" in caught.value.found
    assert "convert the model with the full TensorRT" in caught.value.remedy
    assert "mlflow-trt serve" in caught.value.remedy


@pytest.mark.parametrize(
    ("built", "triton", "compatible", "loads"),
    [
        ("10.15.1.29", "10.15.1.29", False, True),
        ("10.15.1.29", "10.15.1", False, True),
        ("10.15.1.29", "10.15.1.30", False, False),
        ("10.15.1.29", "10.15.2", False, False),
        ("10.15.1.29", "10.16.0", False, False),
        ("10.15.1.29", "10.16.0", True, True),
        ("10.15.1.29", "11.1.0.23", True, True),
        ("10.15.1.29", "10.15.1", True, True),
        ("10.15.1.29", "10.15.1.28", True, False),
        ("10.15.1.29", "10.9.0", True, False),
        ("10.9.0.34", "10.15.1", True, True),
    ],
)
def test_the_release_that_triton_links(built, triton, compatible, loads):
    manifest = of(record(release=built, version_compatible=compatible))
    if loads:
        assert select(manifest, triton).version_compatible == compatible
        return
    with pytest.raises(CompatibilityError) as caught:
        select(manifest, triton)
    assert f"built by {built}, and Triton links {triton}" in caught.value.found
    assert f"use a Triton with TensorRT {built}" in caught.value.remedy


@pytest.mark.parametrize("release", ["", "10", "10.15", "10.15.1.29.1", "v10.15.1", "10.15.x", "10.15.1\n"])
def test_what_is_no_release_is_refused(release):
    with pytest.raises(SettingError, match="not a release"):
        select(of(record()), release)


def test_the_release_chooses_among_plans():
    old, new = record("old", release="10.15.1.29"), record("new", release="11.1.0.23")

    assert select(of(old, new), "11.1.0").files == {"model.plan": new}
    with pytest.raises(CompatibilityError, match="several releases") as caught:
        select(of(old, new))
    assert caught.value.remedy == "name the release of your Triton"


def test_a_plan_built_on_windows_is_refused():
    with pytest.raises(CompatibilityError, match="built on windows"):
        select(of(record(os="windows")))
    assert select(of(record(os=None))).files


def test_every_refused_plan_is_named_with_its_reason():
    with pytest.raises(CompatibilityError) as caught:
        select(of(MEASURED, record(os="windows"), record(release="10.9.0.34")), "10.15.1")

    for text in ("tensorrt_rtx-1.6.1.120", "built on windows", "built by 10.9.0.34, and Triton links 10.15.1"):
        assert text in caught.value.found


def test_several_plans_are_told_apart_by_compute_capability():
    a, b = record("a", capabilities=("8.0", "8.6")), record("b", capabilities=("8.6", "9.0"))
    chosen = select(of(a, MEASURED, b))

    assert chosen.files == {"sm80-sm86.plan": a, "sm86-sm90.plan": b}
    # The first that names a capability serves it, as the loader would choose.
    assert chosen.by_capability == {"8.0": "sm80-sm86.plan", "8.6": "sm80-sm86.plan", "9.0": "sm86-sm90.plan"}


def test_a_hardware_compatible_plan_serves_all_other_gpus():
    general, special = record("a", capabilities=("8.0",), hardware_compatible=True), record("b", capabilities=("9.0",))
    chosen = select(of(special, general))

    assert chosen.files == {"sm90.plan": special, "model.plan": general}
    assert chosen.by_capability == {"9.0": "sm90.plan", "8.0": "model.plan"}


def test_a_plan_that_can_not_be_told_apart_is_refused():
    with pytest.raises(CompatibilityError, match="does not say which GPU"):
        select(of(record("a"), record("b", capabilities=None)))
    assert select(of(record("b", capabilities=None))).files


def test_plans_with_different_profiles_are_refused():
    other = ({"x": ShapeRange(min=(1, 4), opt=(1, 4), max=(2, 4))},)
    with pytest.raises(CompatibilityError, match="differ in their optimization profiles"):
        select(of(record("a", profiles=ONE_PROFILE), record("b", profiles=other, capabilities=("8.0",))))
