"""Checks of arguments. Each returns the value, or raises ConfigError naming it and what it must be.

None is no integer, number or flag: where a parameter may be None, its owner asks that first.
True and False are no numbers here, although `bool` is a subclass of `int`: `max_tokens=True` is a
mistake.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from asgl.errors import ConfigError


def integer(name: str, value: object, low: int | None = None, high: int | None = None) -> int:
    """An int from `low` to `high`, both included; None leaves that side open.

    name: of the parameter, as its caller writes it.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or (low is not None and value < low)
        or (high is not None and value > high)
    ):
        raise ConfigError(f"{name} must be an integer{_bounds(low, high)}, not {value!r}")
    return value


def number(
    name: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    *,
    above: bool = False,
    finite: bool = True,
) -> float:
    """An int or float from `low` to `high`, both included; None leaves that side open.

    above: `low` itself is excluded. finite: infinity is excluded; nan always is.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -math.inf <= value <= math.inf  # nan
        or (finite and not -_LARGEST <= value <= _LARGEST)
        or (low is not None and (value < low or (above and value == low)))
        or (high is not None and value > high)
    ):
        kind = "finite number" if finite else "number"
        raise ConfigError(f"{name} must be a {kind}{_bounds(low, high, above)}, not {value!r}")
    return value


_LARGEST = 1.7976931348623157e308
"""The largest float: an int beyond it would overflow where it is converted to one."""


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not {value!r}")
    return value


def choice(name: str, value: object, choices: Collection[str]) -> None:
    """ConfigError unless the value is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def path(name: str, value: object) -> Path:
    """A str, or an object that stands for a path, as a Path; not an empty one, which would be the
    current directory."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{name} must be a path, as a str or a Path, not {value!r}")
    return Path(text)


def strings(name: str, value: object) -> tuple[str, ...]:
    """One string, or an iterable of them, as a tuple; none of them empty."""
    items = (value,) if isinstance(value, str) else tuple(_iterable(name, value))
    if not all(isinstance(item, str) and item for item in items):
        raise ConfigError(f"{name} must be a string or strings, none of them empty, not {value!r}")
    return items  # pyright: ignore[reportReturnType]  # all of them are str, as was just checked


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """An iterable of token ids, as a tuple."""
    return tuple(integer(f"a token id of {name}", item, 0) for item in _iterable(name, value))


def _iterable(name: str, value: object) -> Iterable[object]:
    if not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a sequence, not {value!r}")
    return value


def _bounds(low: float | None, high: float | None, above: bool = False) -> str:
    if low is None:
        return "" if high is None else f" of {high} or less"
    if high is None:
        return f" above {low}" if above else f" of {low} or more"
    return f" above {low} and at most {high}" if above else f" from {low} to {high}"
