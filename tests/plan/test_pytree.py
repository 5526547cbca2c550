"""Nested arguments and results, flattened to named tensors and put together again."""

from __future__ import annotations

import pytest
from interfaces import PAIR, branch, interface, leaf, tensor

from mlflow_trt.errors import InputError
from mlflow_trt.plan.manifest import ConstantLeaf, InputLeaf
from mlflow_trt.plan.pytree import describe, leaves
from mlflow_trt.plan.signature import CallSignature

NESTED = interface(
    [tensor("a", (1,)), tensor("xs_0", (1,)), tensor("xs_1", (1,)), tensor("d_m", (1,)), tensor("s", (1,))],
    [tensor("p", (1,)), tensor("q", (1,))],
    arguments=branch(
        "tuple",
        branch("tuple", leaf("a"), branch("list", leaf("xs_0"), leaf("xs_1")), ConstantLeaf(value=3)),
        branch("dict", branch("dict", leaf("d_m"), ConstantLeaf(value=None), keys=("m", "n")), leaf("s"),
               keys=("d", "s")),
    ),
    result=branch(
        "namedtuple",
        leaf("p"),
        branch("list", leaf("q"), leaf("p"), InputLeaf(name="a")),
        branch("dict", ConstantLeaf(value="text"), ConstantLeaf(), keys=("k", 1)),
        branch("tuple"),
        keys=("first", "rest", "more", "none"),
        type_name="Answer",
    ),
)  # fmt: skip


def test_nested_arguments_are_taken_apart_and_put_together():
    call_signature = CallSignature(NESTED, ())
    given = call_signature.bind(("A", ["X0", "X1"], 3), {"d": {"m": "M", "n": None}, "s": "S"})
    assert given == {"a": "A", "xs_0": "X0", "xs_1": "X1", "d_m": "M", "s": "S"}
    assert call_signature.bind(("A", ("X0", "X1")), {"s": "S", "d": {"n": None, "m": "M"}}) == given
    args, kwargs = call_signature.arguments(given)
    assert (args, kwargs) == (("A", ["X0", "X1"], 3), {"d": {"m": "M", "n": None}, "s": "S"})


def test_positional_tensor_by_name():
    call_signature = CallSignature(PAIR, ())
    assert call_signature.bind((1,), {"mask": 2}) == {"ids": 1, "mask": 2}
    assert call_signature.bind((), {"mask": 2, "ids": 1}) == {"ids": 1, "mask": 2}


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "Argument 0 is missing"),
        (("A", ["X0"], 3), {"d": {"m": 1, "n": None}, "s": 1}, r"argument 1 is a list of 1"),
        (("A", "X0", 3), {"d": {"m": 1, "n": None}, "s": 1}, r"argument 1 is a str"),
        (("A", ["X0", "X1"], 4), {"d": {"m": 1, "n": None}, "s": 1}, "argument 2 is 4"),
        (("A", ["X0", "X1"], 3, 5), {}, "4 positional arguments"),
        (("A", ["X0", "X1"], 3), {"s": 1}, "'d' is missing"),
        (("A", ["X0", "X1"], 3), {"d": {"m": 1}, "s": 1}, r"a dict with the keys \['m'\]"),
        (("A", ["X0", "X1"], 3), {"d": 7, "s": 1}, "'d' is int"),
        (("A", ["X0", "X1"], 3), {"d": {"m": 1, "n": None}, "s": 1, "t": 1}, "'t' is not known"),
    ],
)
def test_arguments_that_nest_otherwise(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        CallSignature(NESTED, ()).bind(args, kwargs)


def test_misfit_shows_the_right_call():
    with pytest.raises(InputError) as caught:
        CallSignature(NESTED, ()).bind((), {})
    assert "(a, [xs_0, xs_1], 3, d={'m': d_m, 'n': None}, s=s)" in str(caught.value)


def test_result_is_put_together():
    answer = CallSignature(NESTED, ()).unflatten({"p": 1, "q": 2}, {"a": "A"})
    assert type(answer).__name__ == "Answer"
    assert answer.first == 1
    assert answer.rest == [2, 1, "A"]
    assert answer.more == {"k": "text", 1: None}
    assert answer.none == ()


def test_leaves_from_left_to_right():
    assert [x.name for x in leaves(NESTED.result) if not isinstance(x, ConstantLeaf)] == ["p", "q", "p", "a"]


def test_a_form_as_one_would_call_it():
    one = interface([tensor("x", (1,))], [tensor("y", (1,))])
    assert describe(one.arguments) == "(x)"
    assert describe(PAIR.arguments) == "(ids, mask)"
