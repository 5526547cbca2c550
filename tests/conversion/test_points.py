"""Sizes between the ends of a range, and how shapes are written."""

from __future__ import annotations

import pytest

from mlflow_trt.conversion.points import Point, between, shapes_text


@pytest.mark.parametrize(
    ("span", "first"),
    [((1, 4, 8), 3), ((1, 8, 32), 3), ((1, 1, 8), 3), ((1, 2, 2), None), ((4, 4, 4), None), ((1, 1, 3), 2)],
)
def test_odd_sizes_of_the_lower_half_come_first(span, first):
    assert next(between(*span), None) == first
    assert all(span[0] < n < span[2] and n != span[1] for n in between(*span))


def test_a_range_without_end_is_not_listed():
    assert len(list(between(1, 8, 10**9))) <= 4096


def test_shapes_are_written_by_name():
    assert shapes_text(Point(0, "opt", {"x": (4, 6), "mask": (4,)})) == "x [4, 6], mask [4]"
