"""Checks of arguments: what passes, and what an error says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from asgl.checks import choice, flag, integer, number, path, strings, token_ids
from asgl.errors import ConfigError


def test_what_is_right_is_returned():
    assert integer("n", 3, 1, 3) == 3
    assert integer("n", -(2**70)) == -(2**70)
    assert number("x", 1) == 1
    assert number("x", math.inf, 0, finite=False) == math.inf
    assert flag("f", False) is False
    assert strings("s", "ab") == ("ab",)
    assert strings("s", ["a", "b"]) == ("a", "b")
    choice("c", "a", ("a", "b"))
    assert path("p", "a/b") == path("p", Path("a/b")) == Path("a/b")
    assert token_ids("t", iter([1, 0])) == (1, 0)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 4])
def test_integers(value: object):
    with pytest.raises(ConfigError, match=r"^n must be an integer from 1 to 3, not "):
        integer("n", value, 1, 3)


@pytest.mark.parametrize("value", [False, "1", None, 0, -1, math.nan, math.inf, 10**400, 1j])
def test_numbers(value: object):
    with pytest.raises(ConfigError, match=r"^x must be a finite number above 0, not "):
        number("x", value, 0, above=True)


@pytest.mark.parametrize("value", [math.nan, -math.inf, -1, None, True])
def test_numbers_that_may_be_infinite(value: object):
    with pytest.raises(ConfigError, match=r"^x must be a number of 0 or more, not "):
        number("x", value, 0, finite=False)


@pytest.mark.parametrize("value", [0, 1, None, "yes"])
def test_flags(value: object):
    with pytest.raises(ConfigError, match="f must be True or False"):
        flag("f", value)


@pytest.mark.parametrize("value", ["", ["a", ""], [1], 3, None])
def test_strings(value: object):
    with pytest.raises(ConfigError, match="s must be a s"):
        strings("s", value)


@pytest.mark.parametrize("value", [[-1], ["a"], [True], 3])
def test_token_ids(value: object):
    with pytest.raises(ConfigError, match="t must be"):
        token_ids("t", value)


@pytest.mark.parametrize("value", ["c", "", None, 1, ["a"]])
def test_choices(value: object):
    with pytest.raises(ConfigError, match=r"^c must be one of 'a', 'b', not "):
        choice("c", value, ("a", "b"))


@pytest.mark.parametrize("value", ["", b"a", None, 3])
def test_paths(value: object):
    with pytest.raises(ConfigError, match=r"^p must be a path, as a str or a Path, not "):
        path("p", value)
