"""Sizes of tensors are expressions, which are evaluated by the sizes that a call chooses."""

from __future__ import annotations

import pytest

from mlflow_trt.registry import sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (7, 7),
        ("batch", 5),
        ("2*batch + n", 13),
        ("(batch//2)", 2),
        ("ceiling(batch/2)", 3),
        ("floor(3*batch/4)", 3),
        ("Mod(batch, n)", 2),
        ("Max(1, batch - 9)", 1),
        ("batch**2", 25),
        ("batch/2", None),
        ("u0", None),
        ("__import__('os')", None),
        ("batch.real", None),
        ("batch if", None),
        ("9**9**9", None),
    ],
)
def test_a_size_is_evaluated_and_nothing_else_is(size, expected):
    assert sizes.value(size, {"batch": 5, "n": 3}) == expected
