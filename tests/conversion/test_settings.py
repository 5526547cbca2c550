# ruff: noqa: E402
"""Which settings pass, and what precision means."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt.conversion import settings
from mlflow_trt.errors import SettingError


def test_known_are_those_of_the_installed_release():
    known = settings.known()
    assert {"immutable_weights", "optimization_level", "hardware_compatible", "version_compatible"} <= set(known)
    assert "kwargs" not in known


def test_reading_them_does_not_import_torch_tensorrt():
    import subprocess
    import sys

    code = """
import sys
from mlflow_trt.conversion import settings
settings.known()
print('torch_tensorrt' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("optimisation_level", "optimization_level"),
        ("imutable_weights", "immutable_weights"),
        ("precison", "precision"),
    ],
)
def test_unknown_names_the_nearest(name, nearest):
    with pytest.raises(SettingError, match=nearest):
        settings.check({name: 1})


@pytest.mark.parametrize("name", ["output_binding_names", "enabled_precisions", "arg_inputs"])
def test_what_is_ours_is_no_setting(name):
    with pytest.raises(SettingError, match="is no setting"):
        settings.check({name: None})


def test_lifted_buffers_are_refused():
    if "lift_mutable_buffers" not in settings.known():
        pytest.skip("this release has no lift_mutable_buffers")
    with pytest.raises(SettingError, match="can't be honoured"):
        settings.check({"lift_mutable_buffers": True})
    settings.check({"lift_mutable_buffers": False})


def test_safe_defaults_and_the_callers_own():
    done = settings.complete({"truncate_double": False}, None, gpu=True)
    assert done == {"attn_bias_is_causal": False, "truncate_double": False, "require_full_compilation": True}


def test_refittable_needs_a_gpu():
    assert settings.complete({"immutable_weights": False}, None, gpu=True)["immutable_weights"] is False
    with pytest.raises(SettingError, match="without a GPU"):
        settings.complete({"immutable_weights": False}, None, gpu=False)


def test_fp32_is_without_tf32():
    assert settings.complete({}, "fp32", gpu=True)["disable_tf32"] is True
    assert settings.complete({}, "tf32", gpu=True)["disable_tf32"] is False
    assert "disable_tf32" not in settings.complete({}, "fp16", gpu=True)
    with pytest.raises(SettingError, match="contradict"):
        settings.complete({"disable_tf32": False}, "fp32", gpu=True)


@pytest.mark.parametrize(
    ("enabled", "precision"),
    [
        ({torch.float16}, "fp16"),
        ({torch.float16, torch.float32}, "fp16"),
        ((torch.bfloat16,), "bf16"),
        ({torch.float32}, "fp32"),
        ({"f16"}, "fp16"),
        (torch.half, "fp16"),
        (set(), None),
        (None, None),
    ],
)
def test_enabled_precisions(enabled, precision):
    assert settings.precision_of(None, enabled) == precision


@pytest.mark.parametrize(
    ("precision", "enabled", "words"),
    [
        ("fp16", {torch.bfloat16}, "contradict"),
        ("fp32", {torch.float16}, "contradict"),
        (None, {torch.float16, torch.bfloat16}, "both"),
        (None, {torch.int8}, "quantize"),
        ("half", None, "unknown"),
        ("FP16", None, "fp16"),
    ],
)
def test_precisions_that_are_refused(precision, enabled, words):
    with pytest.raises(SettingError, match=words):
        settings.precision_of(precision, enabled)


def test_tf32_and_float32_agree():
    assert settings.precision_of("tf32", {torch.float32}) == "tf32"


def test_json_safe():
    import json

    value = {"ops": {torch.ops.aten.add.Tensor, "b"}, "device": torch.device("cpu"), "n": (1, None)}
    assert json.loads(json.dumps(settings.json_safe(value))) == {
        "ops": ["aten.add.Tensor", "b"],
        "device": "cpu",
        "n": [1, None],
    }
