# ruff: noqa: E402
"""The graph that is written for the network: a program like any other, on the export's own symbols."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt import Input

from .models import Attention, Nested
from .programs import prepared, run


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
