"""Events of all kinds, drawn at random."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from asgl.trace import Event
from asgl.types import TokenLogprob

FINITE = st.floats(-1e9, 1e9)
VALUES = {
    "int": st.integers(0, 10**9),
    "int | None": st.none() | st.integers(0, 10**9),
    "float": FINITE,
    "float | None": st.none() | FINITE,
    "str": st.text(),
    "str | None": st.none() | st.text(),
    "tuple[str, ...]": st.lists(st.text()).map(tuple),
    "tuple[tuple[int, int], ...]": st.lists(st.tuples(st.integers(0), st.integers(0))).map(tuple),
    "tuple[TokenLogprob, ...]": st.lists(
        st.builds(TokenLogprob, st.integers(0), st.text(), FINITE, st.just(()))
    ).map(tuple),
    "Mapping[str, Any]": st.dictionaries(
        st.text(), st.text() | st.integers() | st.lists(st.integers())
    ),
}


def events() -> st.SearchStrategy[Event]:
    """Any event of any kind."""

    def value(kind, name):
        hint = get_type_hints(kind)[name]
        if str(get_origin(hint)) == "typing.Literal":
            return st.sampled_from(get_args(hint))
        return VALUES[kind.__annotations__[name]]

    def of(kind):
        names = [name for name, _, _ in FIELDS[kind]]
        return st.builds(kind, **{name: value(kind, name) for name in names})

    return st.one_of(*map(of, get_args(Event)))


FIELDS = {
    kind: [
        (field.name, kind.__annotations__[field.name], get_args(get_type_hints(kind)[field.name]))
        for field in fields(kind)
        if field.name not in ("time", "run")
    ]
    for kind in get_args(Event)
}


def random_event(draw: random.Random) -> Event:
    """An event whose numbers are so small that several speak of the same things. Quicker than a
    strategy, and nothing of it is shrunk."""
    text = draw.choice(["", "a", " b", "\n", "é", "\x1b[31m", "日本"])
    some = {
        "int": lambda: draw.randrange(5),
        "int | None": lambda: draw.choice([None, 0, 1, 2, 3]),
        "float": lambda: draw.random() * 10,
        "float | None": lambda: draw.choice([None, 0.5, 3.0]),
        "str": lambda: text,
        "str | None": lambda: draw.choice([None, text]),
        "tuple[str, ...]": lambda: (text,) * draw.randrange(3),
        "tuple[tuple[int, int], ...]": lambda: ((draw.randrange(5), draw.randrange(9)),),
        "tuple[TokenLogprob, ...]": lambda: (TokenLogprob(1, text, -0.5),) * draw.randrange(3),
        "Mapping[str, Any]": lambda: {"a": text},
    }
    kind = draw.choice(get_args(Event))
    return kind(
        **{
            name: draw.choice(options) if kinds.startswith("Literal") else some[kinds]()
            for name, kinds, options in FIELDS[kind]
        }
    )


def random_events(seed: int, count: int) -> list[Event]:
    """Events of one or two Runtimes, in the order of their times."""
    draw, now, told = random.Random(seed), 0.0, list[Event]()
    for _ in range(count):
        event = random_event(draw)
        now += draw.random()
        object.__setattr__(event, "time", now)
        object.__setattr__(event, "run", int(draw.random() < 0.1))
        told.append(event)
    return told
