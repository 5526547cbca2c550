"""Parts of the building child. Whole builds are in test_cpu_only.py, test_convert.py and test_torch_tensorrt.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt.conversion import build_child
from mlflow_trt.errors import ConversionError


def test_a_module_that_registers_operators_is_imported(tmp_path, monkeypatch):
    (tmp_path / "registers_operators.py").write_text("THERE = True")
    monkeypatch.syspath_prepend(tmp_path)
    build_child._import("registers_operators")
    assert sys.modules.pop("registers_operators").THERE


@pytest.mark.parametrize("content", [None, "raise RuntimeError('no GPU is here')", "import no_such_module_at_all"])
def test_one_that_can_not_be_imported_is_named_with_the_reason(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "registers_badly.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConversionError, match=r"can't import registers_badly.*: (\w+Error): ") as caught:
        build_child._import("registers_badly")
    assert "imports little else" in caught.value.remedy


def test_without_a_runtime_the_plan_comes_back_as_it_is():
    trt = build_child._WithoutRuntime(SimpleNamespace(Builder="the real one", Runtime="needs a GPU"))
    assert trt.Builder == "the real one"
    runtime = trt.Runtime("a logger")
    assert runtime.deserialize_cuda_engine(None) is None, "TensorRT's word for a network that it can't build"
    engine = runtime.deserialize_cuda_engine(b"a plan")
    assert engine.serialize() == b"a plan"
    assert engine.get_aliased_input_tensor("x") is None
