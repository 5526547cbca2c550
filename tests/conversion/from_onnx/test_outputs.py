"""An output that is an input."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_trt.conversion.from_onnx.outputs import renamed

from .made import answers, built, linear, model, node, rows, value


def test_it_gets_a_name_of_its_own(caplog):
    proto = model([node("Relu", ["x"], ["x.out"])], [value("x", (2, 4))], ["x.out", value("x", (2, 4))])
    made = renamed(proto)
    assert [v.name for v in made.graph.output] == ["x.out", "x.out.1"]
    assert "The output x is an input too; it is called x.out.1" in caplog.text
    np.testing.assert_array_equal(answers(made, x=rows(2, 4))["x.out.1"], rows(2, 4))
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    assert [name for name, *_ in built(made)] == ["x.out", "x.out.1"]


def test_others_are_left_alone():
    proto = linear()
    assert renamed(proto) is proto
