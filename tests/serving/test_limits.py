"""What a server takes at most: the range of each number, and what a secret is."""

from __future__ import annotations

import math

import pytest

from mlflow_trt.errors import SettingError
from mlflow_trt.serving.config import LoadOptions, ServerConfig
from mlflow_trt.serving.limits import RANGES, Limits, check_number, check_secret, check_token


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_number_s_range_holds_both_its_ends_and_nothing_beyond(name):
    low, high = RANGES[name]
    beyond = [low - 1, math.nan, math.inf, -math.inf]
    check_number(name, low)
    check_number(name, None)
    if high < math.inf:
        check_number(name, high)
        beyond.append(high * 1.001 + 1)
    else:
        check_number(name, 2.0**70)
    for value in beyond:
        with pytest.raises(SettingError, match=rf"^{name} is {value}\."):
            check_number(name, value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("port", "a number from 0 to 65535"),
        ("timeout", r"a number from 0\.001 to 1e\+06"),
        ("max_body", "1024 or more"),
        ("memory_limit", "1 or more"),
    ],
)
def test_the_range_is_told(name, expected):
    with pytest.raises(SettingError, match=f"Expected: {expected}"):
        check_number(name, -1)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_defaults_are_in_their_ranges(name):
    settings = {**vars(ServerConfig()), **vars(LoadOptions()), **vars(Limits())}
    check_number(name, settings[name])


@pytest.mark.parametrize("name", list(vars(Limits())))
def test_limits_have_ranges(name):
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(SettingError, match=name):
            Limits(**{name: value})


@pytest.mark.parametrize("secret", [None, "x", "a secret", "clé", " x "])
def test_secrets(secret):
    check_secret("The secret", secret)


@pytest.mark.parametrize("secret", ["", " ", "\t", "\n", "\N{NO-BREAK SPACE}"])
def test_an_empty_secret(secret):
    with pytest.raises(SettingError, match="The secret is empty"):
        check_secret("The secret", secret)


@pytest.mark.parametrize("secret", ["a\nb", "a\n", "a\0", "a\x7f", "a\u2028b"])
def test_a_secret_of_several_lines(secret):
    with pytest.raises(SettingError, match="The secret has control characters, or more than one line"):
        check_secret("The secret", secret)


@pytest.mark.parametrize("token", [None, "x", "a secret", "eyJhbGciOi.J9-_~+/=="])
def test_tokens(token):
    check_token(token)


@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("", "is empty"),
        ("a\nb", "more than one line"),
        ("clé", "characters beyond ASCII"),
        ("→", "characters beyond ASCII"),
        (" x", "spaces at its ends"),
        ("x ", "spaces at its ends"),
    ],
)
def test_a_token_that_no_client_could_send_is_refused_at_the_start(token, found):
    with pytest.raises(SettingError, match=f"The bearer token.*{found}") as caught:
        ServerConfig(token=token)
    assert token.strip() == "" or token not in str(caught.value)
