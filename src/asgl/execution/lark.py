"""Grammars in Lark's notation as their authors write them, made ready for llguidance.

llguidance's notation can say more than a generation here can do: tokens by name or number would put
control tokens into a text, captures and temperatures would do nothing. Those are refused by name.
Its `%json` becomes rules of our own, which are exact.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from asgl.errors import GrammarError
from asgl.execution.json_keywords import DECODER
from asgl.execution.json_schema import json_rules

_DEFINITIONS = 10_000
"""Grammars of more rules and terminals are refused. llguidance calls itself from rule to rule; the
stack of the thread that compiles is made for so many."""
_PARTS = 100_000
"""Terminals of more parts are refused, parts of the terminals that they name included: llguidance
writes each of them out."""
_ATTRIBUTES = {
    "capture": "a generation has one text: use several gens, each with a name",
    "stop_capture": "a generation has one text: use several gens, each with a name",
    "stop": "what ended a rule cannot be taken back: use suffix",
    "temperature": "a generation has one temperature: give it to gen",
}
"""Attributes of rules that are refused, and what to do instead."""
_OPTIONS = frozenset({"no_forcing", "ignore_once", "allow_initial_skip"})
_TOKENS = re.compile(
    r"""
    (?P<skip> (\#|//)[^\n]* | [ \t\r]+ )
  | (?P<newline> \n )
  | (?P<string> "(\\.|[^"\\\n])*"i? )
  | (?P<regex> /(\\.|[^/\\\n])+/[imslux]* )
  | (?P<special> <[^<>\s]+> )
  | (?P<reference> @[a-zA-Z0-9_\-]+ )
  | (?P<directive> %[a-z]+ )
  | (?P<name> [!?_]*[a-zA-Z][a-zA-Z0-9_\-]* )
  | (?P<other> . )
    """,
    re.VERBOSE,
)


def lark_grammar(text: str, control: Collection[int] = ()) -> str:
    """The grammar in llguidance's notation, with its JSON schemas as rules. It may name the tokens
    `control` by number.

    GrammarError for what a generation cannot do: it says what, and what to write instead.
    """
    return "".join(_Reader(text, control).pieces())


class _Reader:
    def __init__(self, text: str, control: Collection[int]) -> None:
        self._text = text
        self._control = {f"<[{token}]>" for token in control}
        self._at = 0
        self._definitions = 0
        self._bodies: dict[str, list[str]] = {}
        """The names and literals in each definition, in their order."""
        self._schemas: list[str] = []
        self._prefix = "json"
        while self._prefix in text.lower():
            self._prefix += "-x"

    def pieces(self) -> Iterator[str]:
        first, name, word = True, False, ""
        """Whether the line begins here, whether its first word is all that came before, and the
        first word."""
        body: list[str] = []
        while self._at < len(self._text):
            found = _TOKENS.match(self._text, self._at)
            assert found is not None
            assert found.lastgroup is not None
            kind, token = found.lastgroup, found[0]
            start, self._at = self._at, found.end()
            if kind == "special" and token not in self._control:
                raise self._wrong(
                    start,
                    f"{token} asks for a token by its name or number. A grammar is about text: "
                    "control tokens are no part of it, and other tokens follow from the text",
                )
            if kind == "reference":
                raise self._wrong(
                    start, f"{token} refers to another grammar, and there is only one"
                )
            if kind == "directive":
                yield self._directive(token, start)
            elif name and token == "[":
                self._attributes()
                yield self._text[start : self._at]
            else:
                if token == ":":
                    self._definitions += 1
                    body = self._bodies.setdefault(word, [])
                elif kind in ("name", "string", "regex"):
                    body.append(token)
                yield token
            if kind != "skip":
                name = first and kind == "name"
                word = token if name else word
                first = kind == "newline"
        if self._definitions > _DEFINITIONS:
            raise GrammarError(f": it has more than {_DEFINITIONS} rules and terminals")
        self._check_terminals()
        yield "\n" + "".join(self._schemas)

    def _check_terminals(self) -> None:
        """GrammarError if a terminal is too large, with all those that it names written out."""
        sizes: dict[str, int] = {}
        todo = [name for name in self._bodies if name.isupper()]
        open_: set[str] = set()
        while todo:
            name = todo[-1]
            parts = [part for part in self._bodies[name] if part in self._bodies]
            left = [part for part in parts if part not in sizes and part not in open_]
            open_.add(name)
            if left:
                todo += left
                continue
            todo.pop()
            sizes[name] = len(self._bodies[name]) + sum(sizes.get(part, 0) for part in parts)
            if sizes[name] > _PARTS:
                raise GrammarError(f": the terminal {name} has more than {_PARTS} parts")

    def _wrong(self, at: int, what: str) -> GrammarError:
        return GrammarError(f" at line {self._text.count(chr(10), 0, at) + 1}: {what}")

    def _directive(self, name: str, start: int) -> str:
        """A directive in llguidance's notation, read to the end if it is JSON."""
        if name == "%lark":
            raise self._wrong(start, "%lark: write its rules into the grammar itself")
        if name == "%json":
            prefix = f"{self._prefix}{len(self._schemas)}-"
            try:
                rules = json_rules(self._json(start), prefix)
            except GrammarError as error:
                message = str(error)
                raise self._wrong(
                    start,
                    "the JSON schema" + (message if message.startswith(" ") else f"{message}"),
                ) from None
            self._schemas.append(rules)
            return rules.partition(":")[0]
        if name == "%llguidance":
            options = self._json(start)
            for option in options if isinstance(options, dict) else ["an option"]:
                if option not in _OPTIONS:
                    raise self._wrong(start, f"%llguidance: {option} is not supported")
        return self._text[start : self._at]

    def _json(self, start: int) -> Any:
        """The value in JSON that follows."""
        space = re.compile(r"\s*").match(self._text, self._at)
        assert space is not None
        try:
            value, self._at = DECODER.raw_decode(self._text, space.end())
        except RecursionError:
            raise self._wrong(start, "JSON that is nested too deeply") from None
        except ValueError as error:
            raise self._wrong(start, f"no JSON: {error}") from None
        return value

    def _attributes(self) -> None:
        """Reads the attributes of a rule to the closing bracket."""
        while self._at < len(self._text):
            found = _TOKENS.match(self._text, self._at)
            assert found is not None
            start, self._at = self._at, found.end()
            if found[0] == "]":
                return
            if found.lastgroup == "name" and found[0] in _ATTRIBUTES:
                raise self._wrong(start, f"[{found[0]}=...]: {_ATTRIBUTES[found[0]]}")
            if found.lastgroup == "special":
                raise self._wrong(start, f"{found[0]} asks for a token by its name or number")
