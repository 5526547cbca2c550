# ruff: noqa: E402
"""The graph that is written for the network: a program like any other, on the export's own symbols."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

import operator

from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

from mlflow_trt import Input
from mlflow_trt.conversion.typed_graph import TypedGraph
from mlflow_trt.conversion.weights import Weights

from .models import Attention, Function, Nested
from .programs import exported, prepared, run


def test_it_survives_upstreams_own_decomposition_and_a_file(tmp_path):
    inputs = [Input(((1, 2, 4), 4)), {"m": Input(((1, 2, 4), 3)), "n": Input(((1, 2, 4), 3))}]
    kwargs = {"ids": Input(((1, 2, 4),), "int64"), "mask": Input(((1, 2, 4), 6), "bool")}
    _, half = prepared(Nested(), inputs, torch.float16, kwargs)
    torch.export.save(half.program, tmp_path / "program.pt2")
    flat = (torch.randn(3, 4), torch.randn(3, 3), torch.randn(3, 3), torch.arange(3), torch.ones(3, 6).bool())
    expected = run(half.program, *flat)
    for program in (half.program.run_decompositions(), torch.export.load(tmp_path / "program.pt2")):
        for actual, wanted in zip(run(program, *flat), expected):
            torch.testing.assert_close(actual, wanted, rtol=1e-2, atol=1e-3)


def test_row_that_is_masked_out_entirely():
    model = Attention().eval()
    ids, mask = torch.randint(0, 50, (2, 8)), torch.zeros(2, 8, dtype=torch.int64)
    _, half = prepared(model, [Input((2, 8), "int64"), Input((2, 8), "int64")], torch.float16)
    assert torch.isfinite(run(half.program, ids, mask)[0]).all()


def test_shapes_keep_the_exports_symbols():
    program, half = prepared(Attention(), [Input(((1, 2, 4), (2, 8, 16)), "int64")] * 2, torch.float16)
    sizes = [
        {
            n.name: tuple(map(str, n.meta["val"].shape))
            for n in p.graph.nodes
            if n.op == "placeholder" and n.name in ("ids", "mask")
        }
        for p in (program, half.program)
    ]
    assert sizes[0] == sizes[1]
    assert half.inputs == ("ids", "mask")


aten = torch.ops.aten


def begun(function=lambda x: x * 2, shape=((1, 3, 8), 4)):
    """A graph that has its placeholders, and the last of them."""
    program, _ = exported(Function(function), [Input(shape)])
    typed = TypedGraph(program)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            copied = typed.graph.node_copy(node)
    return typed, copied


def test_an_operation_knows_its_shape_and_dtype():
    typed, x = begun()
    product = typed.call(x, aten.matmul.default, x, typed.call(x, aten.permute.default, x, [1, 0]))
    assert product.meta["val"].shape == (x.meta["val"].shape[0],) * 2
    assert product.meta["val"].dtype == torch.float32
    assert typed.evaluate(operator.getitem, ((product, x), 1), {}) is x.meta["val"]


def test_what_pytorch_can_not_do_is_its_own_error():
    typed, x = begun()
    with pytest.raises(RuntimeError):
        typed.call(x, aten.matmul.default, x, x)


def test_a_cast_keeps_the_layout():
    typed, x = begun()
    turned = typed.call(x, aten.permute.default, x, [1, 0])
    half = typed.cast(turned, torch.float16)
    assert half.meta["val"].dtype == torch.float16
    assert half.meta["val"].stride() == turned.meta["val"].stride()
    assert turned.meta["val"].dtype == torch.float32


@pytest.mark.parametrize(
    ("number", "dtype", "clamped"),
    [
        (torch.finfo(torch.float32).min, torch.float16, True),
        (torch.finfo(torch.float32).min, torch.bfloat16, True),
        (torch.finfo(torch.float32).min, torch.float64, False),
        (-torch.inf, torch.float16, False),
        (-1000.0, torch.float16, False),
    ],
)
def test_a_mask_is_brought_into_the_range_of_half_precision(number, dtype, clamped):
    typed, x = begun()
    mask = typed.call(x, aten.mul.Tensor, x, number)
    (operand,) = typed.cast(mask, dtype).args
    assert (operand is not mask) == clamped
    if clamped:
        assert operand.args[1:] == (-torch.finfo(dtype).max, torch.finfo(dtype).max)
        assert operand.name == f"{mask.name}_finite"


def test_uint8_becomes_int32_by_way_of_float32():
    typed, x = begun()
    image = typed.cast(x, torch.uint8)
    (way,) = typed.cast(image, torch.int32).args
    assert way.meta["val"].dtype == torch.float32
    assert way.args == (image,)


def test_the_finished_graph_runs():
    program, _ = exported(Function(lambda x: x * 2), [Input(((1, 3, 8), 4))])
    typed, x = begun()
    half = typed.cast(typed.call(x, aten.add.Tensor, x, 1), torch.float16)
    typed.graph.output((half,)).meta["val"] = (half.meta["val"],)
    signature = program.graph_signature
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=half.name), None)]

    made = typed.program(signature.input_specs, outputs, ["x"], Weights(program))

    for rows in (1, 5):
        (answer,) = run(made, torch.ones(rows, 4))
        assert torch.equal(answer, torch.full((rows, 4), 2.0).half())
    assert made.range_constraints == program.range_constraints
