"""The public face: its names, and what importing it costs."""

import json
import subprocess
import sys

import pytest

import mlflow_trt


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", mlflow_trt.__all__)
def test_every_public_name_resolves(name):
    if name == "convert":
        pytest.importorskip("torch")
    assert getattr(mlflow_trt, name).__module__.startswith("mlflow_trt")


def test_public_names_stay_what_they_are_whatever_was_imported_before():
    """A submodule of the same name would replace a function once something imports it."""
    code = """
import mlflow_trt.cli.main, mlflow_trt.flavor.save, mlflow_trt.flavor.benchmark, mlflow_trt.flavor.inspection
print([n for n in mlflow_trt.__all__ if not callable(getattr(mlflow_trt, n))])
"""
    assert python(code).strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        mlflow_trt.no_such_thing  # noqa: B018


def test_loading_imports_neither_torch_nor_its_compiler():
    code = """
import json, sys
import mlflow_trt
mlflow_trt.load_model, mlflow_trt.check, mlflow_trt.inspect, mlflow_trt._load_pyfunc, mlflow_trt.Engine
print(json.dumps([m for m in ("torch", "torch_tensorrt", "tensorrt", "tensorrt_rtx") if m in sys.modules]))
"""
    assert json.loads(python(code)) == []
