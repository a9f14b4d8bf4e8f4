"""Symbols survive what keeps the value as it is, and break visibly, or refuse, where it would be
changed."""

from __future__ import annotations

import html
import json
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgl.compile.symbols import Symbols, Use, label_of
from asgl.errors import CompileError, ConfigError
from asgl.language import ops
from asgl.language.ops import Text


def made(*names: str) -> tuple[Symbols, list[Any]]:
    symbols = Symbols()
    return symbols, [symbols.symbol(Use(name)) for name in names]


KEEPS: list[Callable[[Any], str]] = [
    lambda t: t,
    lambda t: f"{t}",
    str,
    lambda t: "a " + t + " b",
    lambda t: f"a {t:>6} {t!r} b",
    lambda t: "%s and %s" % (t, t),  # noqa: UP031
    lambda t: "on %s" % t,  # noqa: UP031
    "{0} {0:_<4}".format,
    lambda t: ", ".join(["x", t, f"{t}"]),
    repr,
    lambda t: "".join([t]) + t,
    lambda t: f" a {t} b ".strip(),
    lambda t: textwrap.dedent(f"  a {t}\n  b"),
    lambda t: f"a {t} b".replace("a", "c"),
]


@pytest.mark.parametrize("use", KEEPS)
@given(value=st.text(st.characters(codec="utf-8", exclude_characters="a\n"), max_size=5))
def test_what_keeps_a_value_keeps_its_symbol(use: Callable[[Any], str], value: str) -> None:
    symbols, [symbol] = made("t")
    assert symbols.text(use(symbol), lambda use: use.of(value)) == use(value)


@pytest.mark.parametrize(
    "change",
    [
        str.strip,
        str.upper,
        str.lower,
        str.title,
        str.capitalize,
        str.swapcase,
        str.casefold,
        repr,
        ascii,
        json.dumps,
        html.escape,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: text.split()[1],
        lambda text: text.splitlines()[0],
        lambda text: text[:4],
        lambda text: text[5:],
        lambda text: text[::-1],
        lambda text: text.replace(" ", "_"),
        lambda text: text.encode("ascii", "ignore").decode(),
        lambda text: text.encode("unicode_escape").decode(),
        textwrap.shorten,
    ],
    ids=lambda change: change.__name__,
)
def test_what_changes_a_value_breaks_its_marker(change: Callable[..., str]) -> None:
    symbols, [symbol] = made("t")
    text = f"a {symbol}"
    changed = change(text, 20, placeholder="") if change is textwrap.shorten else change(text)
    with pytest.raises(CompileError, match="cut, changed or encoded"):
        symbols.pieces(changed)


@pytest.mark.parametrize(
    "look",
    [
        lambda t: t == "x",
        lambda t: t != "x",
        lambda t: t < "x",
        lambda t: t in ["x"],
        len,
        bool,
        int,
        float,
        hash,
        list,
        range,
        lambda t: t[0],
        lambda t: "x" in t,
        lambda t: t * 2,
        lambda t: 2 * t,
        lambda t: t + 1,
        lambda t: 1 + t,
        lambda t: t % 3,
        lambda t: -t,
        abs,
        round,
        lambda t: {t: 1},
        lambda t: t.strip(),
        lambda t: t.split(),
        lambda t: t.name,
        lambda t: t("x"),
        lambda t: ("a" + t).strip(),
        lambda t: f"{'a' + t:>9}",
        lambda t: repr("a" + t),
        lambda t: f"{t:>{t}}",
    ],
)
def test_what_looks_at_a_value_is_refused(look: Callable[[Any], object]) -> None:
    symbols, [symbol] = made("t")
    with pytest.raises(CompileError) as caught:
        look(symbol)
    assert symbols.error is caught.value
    assert str(caught.value).startswith(__file__)


def test_symbols_are_found_in_everything_that_values_are_put_into() -> None:
    symbols, [a, b] = made("a", "b")
    value = {"x": [a, f"{b}!"], f"k{a}": (Text(f"{a}"), 3), "same": ["x"]}
    assert [label_of(use) for use in symbols.uses(value)] == ["{a}", "{b}", "{a}", "{a}"]
    filled = symbols.filled(value, lambda use: use.of({"a": 1, "b": 2}[str(use.source)]))
    assert filled == {"x": [1, "2!"], "k1": (Text("1"), 3), "same": ["x"]}
    assert filled["same"] is not value["same"]


def test_dicts_and_lists_are_new_and_of_the_same_kind() -> None:
    symbols, [a] = made("a")
    value = {"counts": Counter("aab"), "many": defaultdict(list, {"x": [f"{a}!"]})}
    filled = symbols.filled(value, lambda use: use.of(1))
    assert filled == {"counts": Counter("aab"), "many": {"x": ["1!"]}}
    assert (filled["counts"]["c"], filled["many"]["y"]) == (0, [])
    assert filled["counts"] is not value["counts"]


def test_ops_are_filled() -> None:
    symbols, [a] = made("a")
    filled = symbols.filled(ops.gen("n", stop=[f"<{a}>", "."]), lambda use: use.of("x"))
    assert filled == ops.gen("n", stop=["<x>", "."])
    same = ops.gen("n", stop=".")
    assert symbols.filled(same, lambda use: use.of("x")) is same


def test_a_value_that_is_appended_as_it_is_must_be_text() -> None:
    symbols, [a] = made("a")
    assert symbols.text(f"{a}", lambda use: use.of(3)) == "3"
    with pytest.raises(ConfigError, match="the argument 'a' is appended as text"):
        symbols.text(a, lambda use: use.of(3))


def test_symbols_of_one_trace_are_text_to_another() -> None:
    (one, [a]), (other, _) = made("a"), made("a")
    assert one.pieces(f"x{a}")[1:] != ()
    with pytest.raises(
        CompileError, match="cut, changed or encoded"
    ):  # it has the blanks that markers have
        other.pieces(f"x{a}")


def test_labels() -> None:
    symbols, [a] = made("price")
    assert symbols.shown(f"{a} {a:.2f} {a!r}") == "{price} {price:.2f} {price!r}"
