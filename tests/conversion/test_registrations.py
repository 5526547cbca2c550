# ruff: noqa: E402
"""Operators that packages register: what the building process imports to know them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the conversion extra")

from mlflow_trt.conversion.registrations import modules_of
from mlflow_trt.errors import UnsupportedOperatorError

from .models import Function

_LIBRARY = torch.library.Library("mlflow_trt_test_library", "DEF")
_LIBRARY.define("doubled(Tensor x) -> Tensor")
_LIBRARY.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")


@torch.library.custom_op("mlflow_trt_test::tripled", mutates_args=())
def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@tripled.register_fake
def _(x):
    return torch.empty_like(x)


def exported(function):
    return torch.export.export(Function(function), (torch.randn(2, 4),))


def test_of_pytorch_alone():
    assert modules_of(exported(lambda x: x.relu() @ x.T)) == []


@pytest.mark.parametrize("function", [tripled, torch.ops.mlflow_trt_test_library.doubled])
def test_the_module_that_registers_them(function):
    assert __name__ in modules_of(exported(lambda x: function(x) + function(x)))


def test_of_a_library_in_c():
    torchvision = pytest.importorskip("torchvision")
    boxes = (torch.rand(4, 4), torch.rand(4))

    class Kept(torch.nn.Module):
        def forward(self, boxes, scores):
            return torchvision.ops.nms(boxes, scores, 0.5)

    (module,) = modules_of(torch.export.export(Kept(), boxes))
    assert module.split(".")[0] == "torchvision"


def test_of_a_script():
    def mine(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    mine.__module__ = "__main__"
    op = torch.library.custom_op("mlflow_trt_test::mine", mutates_args=())(mine)
    op.register_fake(torch.empty_like)
    with pytest.raises(UnsupportedOperatorError, match="__main__") as caught:
        modules_of(exported(lambda x: op(x)))
    assert caught.value.operators == ("torch.ops.mlflow_trt_test.mine.default",)
