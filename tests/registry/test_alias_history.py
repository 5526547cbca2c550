"""What follows from the moves of an alias: pure functions."""

from __future__ import annotations

import pytest

from mlflow_trt.registry import alias_history
from mlflow_trt.registry.alias_history import Move


def made(*steps):
    """Moves from ``"promote 1 2"``: kind, from, to; ``-`` for nobody."""
    found = []
    for number, step in enumerate(steps, 1):
        kind, before, after = step.split()
        before = None if before == "-" else before
        found.append(Move(f"id{number}", "m", "champion", number, kind, before, after, "me", f"2026-01-0{number}"))
    return found


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], []),
        (["promote - 1"], ["1"]),
        (["promote - 1", "promote 1 2"], ["1", "2"]),
        (["promote - 1", "promote 1 2", "rollback 2 1"], ["1"]),
        (["promote - 1", "promote 1 2", "rollback 2 1", "promote 1 3"], ["1", "3"]),
        (["promote - 1", "promote 1 2", "promote 2 1"], ["1", "2", "1"]),
        (["promote - 1", "promote 1 2", "promote 2 1", "rollback 1 2"], ["1", "2"]),
        (["promote 7 1"], ["7", "1"]),  # 7 was set by hand
        (["promote - 1", "promote 7 2"], ["1", "7", "2"]),
        (["promote - 1", "rollback 7 1"], ["1"]),  # 7 by hand, and back
        (["promote - 1", "promote 1 2", "promote 2 3", "rollback 3 1"], ["1"]),  # 2 was deleted
        (["promote - 1", "promote 1 2", "rollback - 2"], ["1", "2"]),  # the alias was deleted by hand
    ],
)
def test_holders_are_what_a_rollback_goes_back_through(steps, expected):
    assert alias_history.holders(made(*steps)) == expected


@pytest.mark.parametrize(
    ("holder", "exists", "expected"),
    [
        ("3", "123", ("2", [])),
        ("3", "13", ("1", ["2"])),
        ("3", "3", (None, ["2", "1"])),
        ("9", "1239", ("3", [])),  # set by hand
        (None, "123", ("3", [])),  # deleted by hand
    ],
)
def test_previous_is_the_one_before_the_present_holder(holder, exists, expected):
    steps = made("promote - 1", "promote 1 2", "promote 2 3")

    assert alias_history.previous(steps, holder, exists) == expected


def test_a_move_is_read_back_from_its_tags():
    [move] = made("promote - 1")
    tags = {"mlflow_trt.move.champion.1": move.to_json(), "mlflow_trt.move.champion.x": "{}", "other": "1"}

    assert alias_history.history_of(tags, "champion") == (move,)
    assert alias_history.history_of(tags, "canary") == ()


def test_moves_are_in_the_order_of_their_numbers_not_of_text():
    steps = [*made(*["promote - 1"] * 9), Move("id", "m", "champion", 10, "promote", None, "1", "me", "")]
    tags = {f"mlflow_trt.move.champion.{m.number}": m.to_json() for m in steps}

    assert [m.number for m in alias_history.history_of(tags, "champion")] == list(range(1, 11))


def test_what_is_no_move_is_passed_over_and_newer_fields_too():
    [move] = made("promote - 1")
    newer = move.to_json()[:-1] + ', "mood": "good"}'

    assert alias_history.parse(newer) == move
    assert [alias_history.parse(text) for text in ("", "[]", "{}", "null", '{"id": 1}')] == [None] * 5
