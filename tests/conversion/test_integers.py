# ruff: noqa: E402
"""Integers of 8 and 16 bits, which TensorRT computes in none of: held as int32, with PyTorch's own results."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from torch.nn import functional

from mlflow_trt import Input
from mlflow_trt.errors import ConversionError

from .models import Function
from .programs import prepared, run


def written(x):
    y = x.clone()
    y[:, 1:3] = y[:, 1:3] + 200
    return y


FUNCTIONS = {
    "normalised": lambda x: (x.permute(0, 3, 1, 2).float() - 123.7) / 58.4,
    "divided": lambda x: x / 255,
    "in one dimension": lambda x: x.ravel() + x.swapdims(0, 1).mT.moveaxis(0, 1).reshape(-1),
    "flipped": lambda x: x.flip(-1).permute(0, 3, 1, 2).float(),
    "resized": lambda x: functional.interpolate(x.permute(0, 3, 1, 2), (8, 8), mode="nearest"),
    "padded": lambda x: functional.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="reflect"),
    "filled": lambda x: functional.pad(x, (1, 1), value=3),
    "added": lambda x: (x + 100) * 2,
    "subtracted": lambda x: 50 - x,
    "negated": lambda x: -x,
    "inverted": lambda x: ~x,
    "shifted": lambda x: x << 3,
    "floor": lambda x: x // 7,
    "power": lambda x: x**3,
    "clamped": lambda x: x.clamp(10, 200),
    "chosen": lambda x: torch.where(x > 100, x, torch.zeros_like(x)),
    "compared": lambda x: (x == 3) | (x > 200),
    "summed": lambda x: x.sum(),
    "largest": lambda x: x.max(1).values,
    "split": lambda x: [part + 200 for part in x.split(1, 3)],
    "joined": lambda x: torch.cat([x, x + 200], 1),
    "promoted": lambda x: x + x.to(torch.int16) * 300,
    "constant": lambda x: x * torch.tensor([1, 2, 3], dtype=torch.uint8),
    "table": lambda x: torch.arange(300.0)[x.long()],
    "cast": lambda x: (x.float() * 3).to(torch.uint8),
    "same type": lambda x: (x.float() * 3 - 200).type_as(x),
    "in place": lambda x: x.clone().add_(200),
    "into a part": written,
}


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_uint8(name, dtype):
    function = FUNCTIONS[name]
    x = torch.arange(256, dtype=torch.uint8)[:240].reshape(4, 5, 4, 3).flip(2)
    _, program = prepared(Function(function), [Input((4, 5, 4, 3), "uint8")], dtype)
    actual, expected = run(program.program, x), function(x)
    for a, e in zip(actual, expected if isinstance(expected, list) else [expected]):
        # uint8 is only at a network's edge: the last cast is the builder's.
        assert a.dtype == (
            torch.float32 if e.dtype == torch.uint8 else torch.int32 if e.dtype == torch.int16 else e.dtype
        )
        torch.testing.assert_close(a, e.to(a.dtype), rtol=2e-3, atol=2e-3)
    held = {
        node.meta["val"].dtype
        for node in program.program.graph.nodes
        if node.op != "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
    }
    assert not held & {torch.uint8, torch.int8, torch.int16}


@pytest.mark.parametrize("function", [lambda x: x + 100, lambda x: x.abs(), lambda x: -x * 3, lambda x: x.float() / 7])
def test_int8(function):
    x = torch.arange(-128, 128, dtype=torch.int8).reshape(16, 16)
    _, program = prepared(Function(function), [Input((16, 16), "int8")], None)
    (actual,) = run(program.program, x.int())
    torch.testing.assert_close(actual, function(x).to(actual.dtype))


def test_outputs_that_are_uint8_are_told():
    _, program = prepared(Function(lambda x: (x + 1, x.float(), x * 2)), [Input((2, 3), "uint8")], None)
    assert program.uint8 == (0, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.interpolate(x, (8, 8), mode="bilinear"),  # rounds, in uint8
        lambda x: x.view(torch.int8).float(),
    ],
)
def test_what_int32_does_not_replace_is_refused(function):
    with pytest.raises(ConversionError, match="uint8") as caught:
        prepared(Function(function), [Input((1, 3, 4, 4), "uint8")], None)
    assert "x.float()" in caught.value.remedy
