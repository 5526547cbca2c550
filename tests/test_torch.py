"""Torch's private modules are touched in one file, and still hold what it takes from them."""

import re
from pathlib import Path

import pytest

import mlflow_trt

PACKAGE = Path(mlflow_trt.__file__).parent
PRIVATE = re.compile(r"\btorch\._[a-z]\w*|\bfrom torch(\.\w+)* import _\w+|\btorch(\.\w+)*\._(pytree|sympy)\b")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_touches_them(path):
    if path != PACKAGE / "_torch.py":
        code = [line.split("#")[0] for line in path.read_text().splitlines()]
        assert [line for line in code if PRIVATE.search(line)] == []


@pytest.mark.parametrize(
    "line", ["torch._ops.OpOverload", "from torch._library import custom_ops", "from torch.utils import _pytree as p"]
)
def test_a_private_name_is_seen(line):
    assert PRIVATE.search(line)


def test_torch_still_has_them():
    torch = pytest.importorskip("torch")
    from mlflow_trt import _torch

    add = torch.ops.aten.add.Tensor
    assert isinstance(add, _torch.OpOverload)
    assert add._schema.name == "aten::add"
    assert isinstance(torch.ops.higher_order.cond, _torch.HigherOrderOperator)
    assert _torch.pytree.tree_leaves({"a": [1, (2,)]}) == [1, 2]
    assert issubclass(_torch.FakeTensor, torch.Tensor)
    with _torch.enable_python_dispatcher():
        pass


def test_what_registered_an_operator():
    torch = pytest.importorskip("torch")
    from mlflow_trt import _torch

    @torch.library.custom_op("mlflow_trt_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @twice.register_fake
    def _(x):
        return torch.empty_like(x)

    assert _torch.module_of_custom_op("mlflow_trt_tests::twice") == __name__
    assert _torch.module_of_custom_op("aten::add") is None
    assert _torch.sources_of_fake("mlflow_trt_tests::no_such_operator") == set()
