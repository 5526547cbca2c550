"""The manifest's file: what it holds, what older and newer readers make of it, and what is refused."""

import copy
import json
import math
from pathlib import Path

import pytest
from manifests import MANIFEST, file
from pydantic import ValidationError

from mlflow_trt.errors import ManifestError
from mlflow_trt.plan import manifest
from mlflow_trt.plan.manifest import ConstantLeaf, File, Manifest

FORMATS = Path(__file__).parents[1] / "formats"


def test_what_was_written_is_what_is_read(tmp_path):
    (tmp_path / "manifest.json").write_text(MANIFEST.to_json())

    assert manifest.read(tmp_path) == MANIFEST


def test_the_format_of_today_is_on_record():
    """A change of the format shows here first: see the rules in plan/manifest.py before changing the file."""
    kept = (FORMATS / str(manifest.FORMAT_VERSION) / "manifest.json").read_text()

    assert json.loads(MANIFEST.to_json()) == json.loads(kept)


@pytest.mark.parametrize("folder", sorted(FORMATS.iterdir()), ids=lambda f: f.name)
def test_every_format_ever_written_still_loads(folder):
    found = manifest.read(folder)

    assert [p.release for p in found.plans] == ["1.6.1.120", "11.1.0.23"]
    assert found.interface.inputs[0].shape == ("batch", 3, "height", 224)
    assert found.plans[0].precision.census.layers["float16"] == 122
    assert found.plans[1].parity.status == "not_measured"


def test_fields_of_a_later_release_are_passed_over():
    content = json.loads(MANIFEST.to_json())
    content["written_by"] = {"mlflow_trt": "9.9"}
    content["plans"][0]["power_watts"] = 300
    content["plans"][0]["precision"]["census"]["sparse"] = True

    assert manifest.parse(json.dumps(content)) == MANIFEST


def test_fields_with_a_default_may_be_missing():
    content = json.loads(MANIFEST.to_json())
    for name in ("settings", "runtime_cache", "build_seconds", "hardware_compatible", "converter"):
        del content["plans"][1][name]
    del content["program"], content["golden"]

    found = manifest.parse(json.dumps(content))

    assert found.plans[1] == MANIFEST.plans[1]
    assert (found.program, found.golden) == (None, None)


def test_every_file_is_listed():
    assert [f.path for f in MANIFEST.files()] == [
        "plans/tensorrt_rtx-1.6.1.120-sm80-sm86-sm89/model.plan",
        "plans/tensorrt-11.1.0.23-sm90/model.plan",
        "plans/tensorrt_rtx-1.6.1.120-sm80-sm86-sm89/runtime-cache.bin",
        "program/model.pt2",
        "golden/inputs.safetensors",
        "golden/outputs.safetensors",
    ]


def test_a_missing_manifest_names_the_path(tmp_path):
    with pytest.raises(ManifestError, match="No such file") as caught:
        manifest.read(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "manifest.json") in caught.value.found


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', "{}", '{"format_version": "1"}', "\x00\x01", '{"format_version": 1}']
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        manifest.parse(text)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ManifestError, match="not JSON"):
        manifest.parse(b"\xff\xfe\x00\xd8")


@pytest.mark.parametrize("version", [0, -1])
def test_a_format_that_never_was_is_refused(version):
    with pytest.raises(ManifestError):
        manifest.parse(json.dumps({**json.loads(MANIFEST.to_json()), "format_version": version}))


def test_a_newer_format_asks_for_an_upgrade_whatever_else_it_holds():
    with pytest.raises(ManifestError, match="format_version 2") as caught:
        manifest.parse('{"format_version": 2, "engines": []}')
    assert "upgrade mlflow-trt" in caught.value.remedy


def changed(path: str, value: object) -> str:
    content = copy.deepcopy(json.loads(MANIFEST.to_json()))
    *parents, last = (int(p) if p.isdigit() else p for p in path.split("."))
    place = content
    for step in parents:
        place = place[step]
    if value is DELETED:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


DELETED = object()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("plans", DELETED),
        ("plans", []),
        ("interface", DELETED),
        ("plans.0.file", DELETED),
        ("plans.0.file.size", -1),
        ("plans.0.file.size", "many"),
        ("plans.0.file.sha256", "abc"),
        ("plans.0.file.sha256", "G" * 64),
        ("plans.0.runtime", "onnxruntime"),
        ("plans.0.release", 1.6),
        ("plans.0.parity.status", "probably"),
        ("plans.0.parity.tolerance.rel_l2", 0),
        ("plans.0.profiles.0.image.min", "1x3"),
        ("interface.result.kind", "set"),
        ("interface.inputs.0.shape", None),
    ],
)
def test_a_malformed_field_is_named(path, value):
    with pytest.raises(ManifestError, match=r"malformed") as caught:
        manifest.parse(changed(path, value))
    assert path.split(".")[-1] in caught.value.found


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../model.plan",
        "plans/../../model.plan",
        "plans/..",
        "..",
        "plans\\..\\..\\model.plan",
        "C:/model.plan",
        "C:model.plan",
        "file:///etc/passwd",
        "plans/model.plan\0.txt",
    ],
)
@pytest.mark.parametrize(
    "where", ["plans.0.file.path", "plans.0.runtime_cache.path", "program.file.path", "golden.inputs.path"]
)
def test_a_path_that_leaves_the_folder_is_refused(where, path):
    with pytest.raises(ManifestError, match="leaves the model's folder"):
        manifest.parse(changed(where, path))


def test_a_manifest_does_not_change():
    with pytest.raises(ValidationError):
        MANIFEST.plans[0].release = "2.0"


@pytest.mark.parametrize("value", [True, 2, 2.0, -0.5, float("inf"), "two", None])
def test_a_constant_output_keeps_value_and_type(value):
    result = ConstantLeaf(value=value)
    found = manifest.parse(
        MANIFEST.model_copy(update={"interface": MANIFEST.interface.model_copy(update={"result": result})}).to_json()
    ).interface.result

    assert found.value == value
    assert type(found.value) is type(value)


def test_a_parity_figure_may_be_no_number():
    parity = MANIFEST.plans[0].parity
    output = parity.points[0].outputs[0].model_copy(update={"rel_l2": float("nan"), "max_abs": float("inf")})

    found = type(output).model_validate_json(output.model_dump_json())

    assert math.isnan(found.rel_l2)
    assert math.isinf(found.max_abs)


def test_plans_are_at_least_one():
    with pytest.raises(ValidationError):
        Manifest(interface=None, plans=())


def test_a_file_stays_where_it_is():
    assert file("a/b.plan", b"abc") == File(
        path="a/b.plan", size=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
