"""A graph as text, a line for each node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from asgl.compile.nodes import Call, Fork, Node
from asgl.compile.symbols import Symbols, Use, label_of
from asgl.language import ops
from asgl.language.internal_ops import CloseMessage, Join, Rewind, SetVariable
from asgl.language.ops import Extend, Gen, Role, Select, Text, TextOf, Tokens

_SHOWN = 96
"""Longer texts are shown by their beginning and their end."""
_UNLESS_GIVEN = {"logprobs": 0, "retries": 0, "token_healing": False}
"""What parameters are that nobody gave; all others are None."""


def shortened(text: str) -> str:
    half = _SHOWN // 2 - 2
    return text if len(text) <= _SHOWN else f"{text[:half]}...{text[-half:]}"


def listing(nodes: Sequence[Node], symbols: Symbols) -> list[str]:
    """A line for each node: its number, the stream, what it is, and what it says."""
    lister = _Lister(symbols, nodes)
    wide = len(f"s{max((node.stream for node in nodes), default=0)}")
    lines: list[str] = []
    for place, node in enumerate(nodes):
        kind, said = lister.spec(node.spec)
        lines.append(f"  {place:>2}  {f's{node.stream}':<{wide}}  {kind:<7} {said}".rstrip())
    return lines


class _Shown(str):
    """A label, which has no quotes."""

    __repr__ = str.__str__


class _Lister:
    def __init__(self, symbols: Symbols, nodes: Sequence[Node]) -> None:
        self._symbols = symbols
        self._numbers = {node.op: place for place, node in enumerate(nodes)}
        self._streams = {node.op: node.stream for node in nodes}

    def spec(self, spec: Any) -> tuple[str, str]:
        """What it is, and what it says."""
        if isinstance(spec, Text | TextOf | Extend | Role):
            kind = (
                "message"
                if isinstance(spec, Role)
                else "extend"
                if isinstance(spec, Extend)
                else "text"
            )
            return kind, self._content(spec)
        if isinstance(spec, Gen):
            return "gen", self._asked(spec.name, self._options(spec))
        if isinstance(spec, Select):
            return "select", self._asked(
                spec.name,
                {
                    "choices": spec.choices,
                    "method": spec.method,
                    "token_healing": spec.token_healing,
                },
            )
        if isinstance(spec, Call):
            return "select" if spec.make is ops.select else "gen", self._asked(
                spec.name, dict(spec.options)
            )
        if isinstance(spec, Tokens):
            return "tokens", " ".join(map(str, spec.tokens))
        if isinstance(spec, Fork):
            return "fork", " ".join(f"s{stream}" for stream in spec.streams)
        if isinstance(spec, Join):
            return "join", " ".join(f"s{self._streams[end]}" for _, end in spec.branches)
        if isinstance(spec, SetVariable):
            return "set", f"{spec.name} = {self._value(spec.value)}"
        if isinstance(spec, Rewind):
            return "rewind", f"to {self._numbers[spec.snapshot]}"
        return (
            ("end", f"of the {spec.message.role} message")
            if isinstance(spec, CloseMessage)
            else ("mark", "")
        )

    def _content(self, part: Any) -> str:
        if isinstance(part, Text):
            pieces = self._symbols.pieces(part.text)
            return (
                " ".join(
                    self._label(piece) if isinstance(piece, Use) else repr(shortened(piece))
                    for piece in pieces
                )
                or "''"
            )
        if isinstance(part, TextOf):
            return self._label(Use(part.source, "text"))
        if isinstance(part, Role | Extend):
            said = " ".join(map(self._content, part.content))
            return f"{part.role}: {said}" if isinstance(part, Role) else said
        kind, said = self.spec(part)
        return f"<{kind} {said}>"

    def _asked(self, name: str | None, options: dict[str, Any]) -> str:
        said = [
            f"{option}={self._value(value)}"
            for option, value in options.items()
            if isinstance(value, str)
            or (value is not None and value is not _UNLESS_GIVEN.get(option))
        ]
        return " ".join(
            [self._symbols.shown(name, self._label) if name is not None else "-", *said]
        )

    def _options(self, gen: Gen) -> dict[str, Any]:
        params = {field.name: getattr(gen.params, field.name) for field in fields(gen.params)}
        source = gen.constraint.source if gen.constraint is not None else None
        limits = {} if source is None else {source.kind: source.text}
        return {
            **params,
            **limits,
            "logprobs": gen.logprobs,
            "validate": gen.validate,
            "retries": gen.retries,
        }

    def _value(self, value: Any) -> str:
        """As Python would write it, with labels."""
        if isinstance(value, str):
            pieces = self._symbols.pieces(value)
            return (
                " ".join(
                    self._label(piece) if isinstance(piece, Use) else repr(shortened(piece))
                    for piece in pieces
                )
                or "''"
            )
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._value, value))}]"
        return shortened(repr(self._symbols.filled(value, lambda use: _Shown(self._label(use)))))

    def _label(self, use: Use) -> str:
        """An argument by its name, a generated value with the number of its op."""
        place = "" if isinstance(use.source, str) else f" of {self._numbers[use.source]}"
        return self._symbols.shown(label_of(use, place))
