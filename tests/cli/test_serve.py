"""What ``mlflow-trt serve`` makes of its arguments. The command as a whole is in serving/test_serve_options.py."""

from __future__ import annotations

import click
import pytest

from mlflow_trt.cli import serve


@pytest.mark.parametrize(
    ("model", "named", "expected"),
    [
        ("models:/a@champion", (), [("a", "models:/a@champion")]),
        ("models:/a/1", ("b=models:/b/2", "c=/srv/c"), [("a", "models:/a/1"), ("b", "models:/b/2"), ("c", "/srv/c")]),
        (None, ("z=/srv/z", "a=/srv/a"), [("z", "/srv/z"), ("a", "/srv/a")]),  # the first answers /invocations
        (None, ("a=s3://bucket/x?y=z",), [("a", "s3://bucket/x?y=z")]),
    ],
)
def test_models_in_their_order(model, named, expected):
    assert list(serve._models(model, named).items()) == expected


@pytest.mark.parametrize(
    ("model", "named", "words"),
    [
        (None, (), "Give a model"),
        (None, ("a",), "--model is 'a'; write NAME=MODEL"),
        (None, ("=x",), "write NAME=MODEL"),
        (None, ("a=",), "write NAME=MODEL"),
        ("models:/a/1", ("a=models:/a/2",), "Two models have the name 'a'"),
    ],
)
def test_models_that_can_not_be_told_apart(model, named, words):
    with pytest.raises(click.UsageError, match=words):
        serve._models(model, named)


@pytest.mark.parametrize(("text", "expected"), [("0", (0,)), ("1,0", (1, 0)), (" 2 , 3 ", (2, 3))])
def test_devices(text, expected):
    assert serve._indices(text) == expected


@pytest.mark.parametrize("text", ["", "a", "0,", "0,0", "-1", "0.5"])
def test_devices_that_are_none(text):
    with pytest.raises(click.UsageError, match="--device is"):
        serve._indices(text)


def test_a_token_comes_from_its_file_or_else_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    assert serve._token(None) is None
    monkeypatch.setenv(serve.TOKEN, " secret\n")
    assert serve._token(None) == "secret"
    (tmp_path / "token").write_text("another\n")
    assert serve._token(tmp_path / "token") == "another"
    with pytest.raises(click.UsageError, match="can't be read: No such file"):
        serve._token(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "unit", "whole", "given", "taken"),
    [
        ("port", 1, True, "8000", 8000),
        ("timeout", 1, False, "2.5", 2.5),
        ("delay", 1e-3, False, "1.5", 1.5),
    ],
)
def test_numbers_within_the_servers_ranges(name, unit, whole, given, taken):
    assert serve._number(name, unit, whole=whole).convert(given, None, None) == taken


@pytest.mark.parametrize(
    ("name", "whole", "given"), [("port", True, "65536"), ("timeout", False, "inf"), ("timeout", False, "nan")]
)
def test_numbers_that_are_none_to_count_with(name, whole, given):
    with pytest.raises(click.BadParameter):
        serve._number(name, whole=whole).convert(given, None, None)
