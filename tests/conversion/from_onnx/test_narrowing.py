"""Which nodes of a graph compute in half precision, and which in float32."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from mlflow_trt.conversion.from_onnx.model import OnnxModel
from mlflow_trt.conversion.from_onnx.narrowing import narrowed
from mlflow_trt.conversion.from_onnx.types import dtypes

from .written import answers, checked, model, network, operators, relative, rows

IN = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
HALF = TensorProto.FLOAT16


def graph(body, inputs="float[N, 8] x", outputs="float[N, 8] y", opset=18, **weights):
    return model(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset, **weights)


def half(own, dtype=HALF):
    made, kept = narrowed(own.proto, dtype, own.folder)
    return OnnxModel(made), kept


def computed(made, operator):
    """What the nodes of an operator compute in: the dtypes of all of their floating operands."""
    known = dtypes(made.proto)
    found = {known[i] for n in made.proto.graph.node if n.op_type == operator for i in n.input if known.get(i) in IN}
    return {IN[dtype] for dtype in found}


def same(own, made, folder, most=3e-3, **inputs):
    """Whether the answers are those of the graph as it was, to rounding."""
    checked(made)
    for got, wanted in zip(answers(made, folder, True, **inputs), answers(own, folder, **inputs)):
        if wanted.dtype.kind == "f":
            assert relative(got, wanted) < most
        else:
            np.testing.assert_array_equal(got, wanted)


def test_products_are_in_half_precision_and_the_border_is_not(tmp_path):
    own = graph("a = Gemm (x, w, b)  r = Relu (a)  y = MatMul (r, w)", w=rows(8, 8), b=rows(8))
    made, kept = half(own)
    assert kept == ()
    assert computed(made, "Gemm") == computed(made, "Relu") == computed(made, "MatMul") == {"fp16"}
    assert {v.type.tensor_type.elem_type for v in (*made.proto.graph.input, *made.proto.graph.output)} == {1}
    assert {t.data_type for t in made.proto.graph.initializer} == {HALF}
    same(own, made, tmp_path, x=rows(3, 8))


def test_a_cast_to_float32_stays(tmp_path):
    """A norm that the graph computes in float32, of a float16 value, say."""
    body = "a = MatMul (x, w)  f = Cast <to = 1> (a)  s = Softmax (f)  y = MatMul (s, w)"
    own = graph(body, w=rows(8, 8))
    made, kept = half(own)
    assert (computed(made, "Softmax"), computed(made, "MatMul"), kept) == ({"fp32"}, {"fp16"}, ())
    same(own, made, tmp_path, x=rows(3, 8))


def test_a_product_of_what_is_made_float32_is_kept():
    own = graph("f = Cast <to = 1> (x)  a = MatMul (x, w)  g = Cast <to = 1> (a)  y = MatMul (g, f)", "float[8, 8] x",
                w=rows(8, 8))  # fmt: skip
    made, kept = half(own)
    assert len(kept) == 1
    assert computed(made, "MatMul") == {"fp16", "fp32"}


def test_a_norm_that_is_written_out_is_as_exact_as_before(tmp_path):
    """float16 ends at 65504, the square of 256, and has no 1e-12."""
    body = """
        a = MatMul (x, w)  mean = ReduceMean <keepdims = 1> (a, last)  d = Sub (a, mean)  s = Pow (d, two)
        v = ReduceMean <keepdims = 1> (s, last)  e = Add (v, epsilon)  r = Sqrt (e)  n = Div (d, r)  y = MatMul (n, w)
    """
    constants = {"last": np.array([-1]), "two": np.float32(2), "epsilon": np.float32(1e-12)}
    own = graph(body, w=rows(8, 8), **constants)
    made, _ = half(own)
    assert (computed(made, "Pow"), computed(made, "Sqrt"), computed(made, "MatMul")) == ({"fp32"}, {"fp32"}, {"fp16"})
    same(own, made, tmp_path, x=500 * rows(3, 8))


def test_a_scale_made_of_sizes_makes_nothing_else_float32(tmp_path):
    body = """
        a = MatMul (x, w)  shape = Shape (a)  last = Gather (shape, one)  width = Cast <to = 1> (last)
        root = Sqrt (width)  scaled = Div (a, root)  y = Sigmoid (scaled)
    """
    own = graph(body, w=rows(8, 8), one=np.array(1))
    made, _ = half(own)
    assert (computed(made, "Div"), computed(made, "Sigmoid")) == ({"fp32"}, {"fp16"})
    same(own, made, tmp_path, x=rows(3, 8))


def test_integers_stay_exact(tmp_path):
    """Positions beyond 2048, and what a mask of integers becomes."""
    body = """
        f = Cast <to = 1> (i)  angle = Mul (f, frequency)  table = Cos (angle)
        a = MatMul (x, w)  turned = Mul (a, table)  y = MatMul (turned, w)
    """
    own = graph(body, "float[N, 8] x, int64[N, 1] i", w=rows(8, 8), frequency=np.abs(rows(8)))
    made, _ = half(own)
    assert (computed(made, "Cos"), computed(made, "MatMul")) == ({"fp32"}, {"fp16"})
    same(own, made, tmp_path, x=rows(3, 8), i=np.array([[2049], [4097], [100003]]))


def test_a_rotary_embedding_by_an_outer_product(tmp_path):
    body = "f = Cast <to = 1> (i)  angle = MatMul (f, frequency)  s = Sin (angle)  a = MatMul (x, w)  y = Mul (a, s)"
    own = graph(body, "float[N, 8] x, int64[N, 1] i", w=rows(8, 8), frequency=np.abs(rows(1, 8)))
    made, kept = half(own)
    assert len(kept) == 1
    same(own, made, tmp_path, x=rows(3, 8), i=np.array([[2049], [4097], [100003]]))


def test_what_prepares_raw_inputs_does_not_round_them_first(tmp_path):
    own = graph("c = Sub (x, mean)  s = Div (c, deviation)  y = MatMul (s, w)", w=rows(8, 8),
                mean=np.full(8, 1e5, np.float32), deviation=np.float32(100))  # fmt: skip
    made, _ = half(own)
    same(own, made, tmp_path, x=1e5 + 100 * rows(3, 8))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_masks_become_the_limit_of_the_dtype(dtype, tmp_path):
    """-3.4e38 would become an infinity, and a row that is masked as a whole NaN."""
    lowest = np.float32(np.finfo(np.float32).min)
    bodies = {
        "chosen": "a = MatMul (x, w)  m = Where (keep, a, lowest)  y = Softmax (m)",
        "added": "a = MatMul (x, w)  f = Cast <to = 1> (keep)  g = Sub (one, f)  m = Mul (g, lowest)  "
        "s = Add (a, m)  t = Softmax (s)  y = MatMul (t, w)",
    }
    for body in bodies.values():
        own = graph(body, "float[N, 8] x, bool[N, 8] keep", opset=22, w=rows(8, 8), lowest=lowest, one=np.float32(1))
        made, _ = half(own, dtype)
        keep = np.array([[True] * 8, [False] * 8, [True, False] * 4])
        same(own, made, tmp_path, most=2e-2, x=rows(3, 8), keep=keep)


def test_a_mask_in_float32_is_clipped_before_it_is_cast():
    body = """
        f = Cast <to = 1> (keep)  m = Mul (f, lowest)  small = Mul (f, one)
        a = MatMul (x, m)  y = MatMul (a, small)
    """
    own = graph(body, "float[8, 8] x, bool[8, 8] keep", lowest=np.float32(-1e30), one=np.float32(1))
    made, _ = half(own)
    assert operators(made).count("Clip") == 1


def test_a_variance_that_half_precision_can_not_hold(tmp_path):
    own = graph("a = MatMul (x, w)  n = BatchNormalization (a, scale, bias, mean, variance)  y = MatMul (n, w)",
                w=rows(8, 8), scale=np.array([1e3, 1, 1, 1, 1, 1, 1, 1], np.float32), bias=rows(8), mean=rows(8),
                variance=np.array([1e6, 1e-9, 1, 2, 3, 4, 5, 6], np.float32))  # fmt: skip
    made, _ = half(own)
    same(own, made, tmp_path, x=rows(3, 8))


def test_weights_that_are_moved_before_they_are_read(tmp_path):
    own = graph("t = Transpose (w)  a = MatMul (x, t)  f = Cast <to = 1> (a)  y = Add (f, row)", w=rows(8, 8),
                row=rows(8))  # fmt: skip
    made, _ = half(own)
    assert (computed(made, "Transpose"), computed(made, "Add")) == ({"fp16"}, {"fp32"})
    same(own, made, tmp_path, x=rows(3, 8))


def test_a_weight_that_is_read_in_both(tmp_path):
    own = graph("a = Add (x, b)  p = MatMul (a, w)  f = Cast <to = 1> (p)  g = Add (f, b)  h = Gemm (g, w, b)  "
                "y = Identity (h)", w=rows(8, 8), b=rows(8))  # fmt: skip
    made, _ = half(own)
    assert {t.name for t in made.proto.graph.initializer} == {"b", "b.fp16", "w"}
    same(own, made, tmp_path, x=rows(3, 8))


def test_lookups_resizes_and_comparisons(tmp_path):
    body = """
        e = Gather (table, i)  m = ReduceMean <keepdims = 0> (e, axes)  p = MatMul (x, table)
        s = Add (p, m)  big = Greater (s, number)  y = Where (big, s, number)
        shaped = Reshape (s, shape)  larger = Resize <mode = "nearest"> (shaped, , scales)  z = Conv (larger, kernel)
    """
    own = graph(body, "float[2, 8] x, int64[2, 3] i", "float[2, 8] y, float[2, 2, 4, 8] z", table=rows(8, 8),
                axes=np.array([1]), number=np.float32(0.1), shape=np.array([2, 2, 2, 2]),
                scales=np.array([1, 1, 2, 4], np.float32), kernel=rows(2, 2, 1, 1))  # fmt: skip
    made, _ = half(own)
    scales = next(n.input[2] for n in made.proto.graph.node if n.op_type == "Resize")
    assert dtypes(made.proto)[scales] == TensorProto.FLOAT
    same(own, made, tmp_path, x=rows(2, 8), i=np.array([[0, 1, 2], [5, 6, 7]]))


def test_constants_that_are_computed_are_computed_in_float32(tmp_path):
    """And those that are integers or truth values are no floating ones."""
    body = """
        root = Sqrt (hundred)  less = Less (root, hundred)  index = ArgMax <axis = 0, keepdims = 0> (w)
        row = Gather (w, index)  a = MatMul (x, row)  d = Div (a, root)  y = Where (less, d, root)
    """
    own = graph(body, hundred=np.float32(12345), w=rows(8, 8))
    made, _ = half(own)
    assert computed(made, "Sqrt") == {"fp32"}
    same(own, made, tmp_path, x=rows(3, 8))


def test_what_is_read_only_for_its_shape_is_not_computed_twice():
    own = graph("t = Transpose (x)  p = MatMul (w, t)  s = Shape (t)  f = Cast <to = 1> (s)  d = Slice (f, zero, one) "
                "y = Mul (p, d)", "float[8, 8] x", "float[8, 8] y", w=rows(8, 8), zero=np.array([0]),
                one=np.array([1]))  # fmt: skip
    made, _ = half(own)
    assert operators(made).count("Transpose") == 1


CONTROL = """
    a = MatMul (x, w)  s = ReduceSum <keepdims = 0> (a)  positive = Greater (s, number)
    r = If (positive) <
        then_branch = t () => (float[N, 8] p) { p = MatMul (a, w) },
        else_branch = e () => (float[N, 8] q) { q = Mul (a, number) }
    >
    y = MatMul (r, w)
"""


def test_graphs_within_keep_their_dtypes(tmp_path):
    own = graph(CONTROL, w=rows(8, 8), number=np.float32(0.5))
    made, kept = half(own)
    assert len(kept) == 1, "the product within"
    same(own, made, tmp_path, x=rows(3, 8))
    same(own, made, tmp_path, x=-rows(3, 8))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_operators_that_the_parser_has_not_in_half_precision(dtype, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    body = "a = MatMul (x, w)  b = Celu (a)  c = HardSwish (b)  d = Mish (c)  e = Relu (d)  y = MatMul (e, w)"
    own = graph(body, opset=22, w=rows(8, 8))
    made, _ = half(own, dtype)
    layers = network(made, tmp_path)
    wanted = "HALF" if dtype == TensorProto.FLOAT16 else "BF16"
    assert {d for _, kind, d in layers if kind in ("RELU", "MATRIX_MULTIPLY")} == {wanted}
    same(own, made, tmp_path, most=2e-2, x=rows(3, 8))


def test_outputs_that_are_inputs_or_weights(tmp_path):
    own = graph("y = MatMul (x, w)  z = Identity (x)  v = Identity (w)", "float[N, 8] x",
                "float[N, 8] y, float[N, 8] z, float[8, 8] v", w=rows(8, 8))  # fmt: skip
    made, _ = half(own)
    x = rows(3, 8)
    _, z, v = answers(made, tmp_path, x=x)
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(v, rows(8, 8))
    same(own, made, tmp_path, x=x)
