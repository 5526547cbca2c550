"""What stays in float32 because half precision would answer something else."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_trt.conversion.from_onnx.wide import Wide

from .written import model, rows

CASES = {
    "a variance": ("d = Sub (x, w)  s = Pow (d, two)  y = ReduceMean (s)", {"s", "y"}),
    "one by a product": ("s = Mul (x, x)  y = ReduceSum (s)", {"s", "y"}),
    "a number among the nodes": ("k = Constant <value_float = 2.0> ()  s = Pow (x, k)  y = ReduceMean (s)", {"s", "y"}),
    "a cube": ("s = Pow (x, three)  y = ReduceMean (s)", set()),
    "a mean": ("y = ReduceMean (x)", set()),
    "a square that is not summed": ("s = Pow (x, two)  y = Add (s, x)", set()),
    "positions": ("f = Cast <to = 1> (i)  a = Mul (f, w)  y = Sin (a)", {"a", "y"}),
    "timesteps": ("a = Mul (x, w)  b = Concat <axis = 0> (a, a)  y = Cos (b)", {"a", "b", "y"}),
    "what a layer answers": ("g = Relu (x)  a = MatMul (g, w)  y = Sin (a)", set()),
    "rows of a table": ("e = Gather (w, i)  a = Mul (e, w)  y = Sin (a)", set()),
}


@pytest.mark.parametrize(("body", "stays"), CASES.values(), ids=CASES)
def test_what_stays(body, stays):
    own = model(f"g (float[8, 8] x, int64[8, 1] i) => (float[8, 8] y) {{ {body} }}", w=rows(8, 8),
                two=np.float32(2), three=np.float32(3))  # fmt: skip
    wide = Wide(own.proto.graph, None)
    found = {node.output[0] for node in own.proto.graph.node if wide.holds(node)}
    assert found == stays
    tables = {node.op_type for node in own.proto.graph.node if wide.narrow_after(node)}
    assert tables == ({"Sin", "Cos"} & {n.op_type for n in own.proto.graph.node} if stays else set())
