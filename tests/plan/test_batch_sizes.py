"""Which requests can be joined, and at which sizes."""

from __future__ import annotations

import interfaces
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interfaces import span, tensor

from mlflow_trt.plan.batch_sizes import batch_sizes


def interface(inputs, outputs):
    """``{name: shape}``."""
    return interfaces.interface(
        *([tensor(name, shape) for name, shape in group.items()] for group in (inputs, outputs))
    )


def profile(**ranges):
    return {name: span(*shapes) for name, shapes in ranges.items()}


PLAIN = interface({"x": ("batch", 2)}, {"y": ("batch", 2)})
UP_TO_8 = (profile(x=((1, 2), (8, 2), (8, 2))),)
SEQUENCES = (profile(x=((1, 1), (8, 4), (8, 9))),)

SIZES = {
    "powers of two between min and max": (PLAIN, (profile(x=((1, 2), (1, 2), (8, 2))),), (1, 2, 4, 8)),
    "opt, max and min besides": (PLAIN, (profile(x=((3, 2), (6, 2), (20, 2))),), (3, 4, 6, 8, 16, 20)),
    "of all profiles": (PLAIN, (profile(x=((1, 2), (1, 2), (2, 2))), profile(x=((12, 2), (20, 2), (24, 2)))), None),
    "what all inputs take": (
        interface({"x": ("batch", 2), "z": ("batch",)}, {"y": ("batch",)}),
        (profile(x=((1, 2), (2, 2), (8, 2)), z=((2,), (3,), (6,))),),
        (2, 3, 4, 6),
    ),
    "one row at the most": (PLAIN, (profile(x=((1, 2), (1, 2), (1, 2))),), ()),
    "no profile": (PLAIN, (), ()),
    "a fixed batch": (interface({"x": (4, 2)}, {"y": (4, 2)}), (profile(x=((4, 2), (4, 2), (4, 2))),), ()),
    "a scalar output": (interface({"x": ("batch", 2)}, {"y": ("batch", 2), "loss": ()}), UP_TO_8, ()),
    "an output without the batch": (interface({"x": ("batch", 2)}, {"y": (2,)}), UP_TO_8, ()),
    "an output of twice the batch": (interface({"x": ("batch", 2)}, {"y": ("2*batch",)}), UP_TO_8, ()),
    "each row against each": (interface({"x": ("batch", 2)}, {"y": ("batch", "batch")}), UP_TO_8, ()),
    "an input of each row against each": (
        interface({"x": ("batch", "batch")}, {"y": ("batch", "batch")}),
        (profile(x=((1, 1), (2, 2), (8, 8))),),
        (),
    ),
    "the batch within an expression": (
        interface({"x": ("batch", 2)}, {"y": ("batch", "Max(1, batch//2)")}),
        UP_TO_8,
        (),
    ),
    "a size that the data decides": (interface({"x": ("batch", 2)}, {"y": ("batch", "u0")}), UP_TO_8, ()),
    "rows that the data decides": (interface({"x": ("batch", 2)}, {"y": ("u0", 2)}), UP_TO_8, ()),
    "an input beside the batch": (
        interface({"x": ("batch", 2), "z": (3,)}, {"y": ("batch",)}),
        (profile(x=((1, 2), (2, 2), (8, 2)), z=((3,), (3,), (3,))),),
        (),
    ),
    "two batches": (
        interface({"x": ("batch", 2), "z": ("other", 2)}, {"y": ("batch",)}),
        (profile(x=((1, 2), (2, 2), (8, 2)), z=((1, 2), (2, 2), (8, 2))),),
        (),
    ),
    "other sizes in expressions": (
        interface({"x": ("batch", "length")}, {"y": ("batch", "Max(1, 2*length)")}),
        SEQUENCES,
        (1, 2, 4, 8),
    ),
    "an engine that does not say what is equal": (interface({"x": ("x.0", 2)}, {"y": ("y.0", 2)}), UP_TO_8, ()),
    "no inputs": (interface({}, {"y": (2,)}), (), ()),
}


@pytest.mark.parametrize("case", SIZES)
def test_batch_sizes(case):
    joined, profiles, expected = SIZES[case]
    if expected is None:
        expected = (1, 2, 12, 16, 20, 24)  # nothing between the profiles
    assert batch_sizes(joined, profiles) == expected


@given(st.integers(1, 70), st.integers(0, 60), st.integers(0, 60))
def test_any_number_of_rows_has_a_size_at_most_twice_as_large(low, more, most):
    opt, high = low + more, low + more + most
    sizes = batch_sizes(PLAIN, (profile(x=((low, 2), (opt, 2), (high, 2))),))
    if high == 1:
        assert sizes == ()
        return
    assert {low, opt, high} <= set(sizes) <= set(range(low, high + 1))
    assert list(sizes) == sorted(set(sizes))
    for rows in range(low, high + 1):
        assert rows <= min(s for s in sizes if s >= rows) <= 2 * rows
