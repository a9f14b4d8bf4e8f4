"""Context-free rules under construction, and their notation for llguidance.

Rules are kept as data until all of them are known. Only then can it be seen which of them no text
fits; those are left out, so that a generation never runs into one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from llguidance import LLMatcher, LLTokenizer

from asgl.errors import GrammarError


@dataclass(frozen=True, slots=True)
class Text:
    """This very text."""

    text: str


@dataclass(frozen=True, slots=True)
class Terminal:
    """A regular expression, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """A rule several times over. `most` is None where there is no bound."""

    rule: Rule
    least: int
    most: int | None


Symbol: TypeAlias = Text | Terminal | Rule | Repeat
Sentence: TypeAlias = tuple[Symbol, ...]


class Rules:
    """Rules and terminals.

    prefix: begins all names, so that they differ from those of other grammars.
    most: GrammarError for more rules and terminals than this.
    """

    def __init__(self, prefix: str = "", most: int = 50_000) -> None:
        self._prefix = prefix
        self._most = most
        self._bodies: list[list[Sentence]] = []
        self._terminals: dict[str, Terminal] = {}

    def rule(self) -> Rule:
        """A new rule. No text fits it until it is defined."""
        self._bodies.append([])
        self._check()
        return Rule(len(self._bodies) - 1)

    def define(self, rule: Rule, alternatives: Iterable[Sentence]) -> None:
        """Says what fits the rule: any of the alternatives."""
        self._bodies[rule.number] = list(alternatives)

    def terminal(self, expression: str) -> Terminal:
        """The terminal of an expression in Lark's notation, the same for the same expression."""
        terminal = self._terminals.get(expression)
        if terminal is None:
            terminal = Terminal(f"{self._prefix.upper()}T{len(self._terminals)}")
            self._terminals[expression] = terminal
            self._check()
        return terminal

    def possible(self, terminal: Terminal) -> bool:
        """Whether any text fits a terminal. GrammarError if it takes too long to find out."""
        expressions = {found: text for text, found in self._terminals.items()}
        lines, seen, todo = list[str](), {terminal}, [terminal]
        while todo:
            text = expressions[todo.pop()]
            used = set(map(Terminal, re.findall(self._prefix.upper() + r"T\d+", text)))
            todo += used - seen
            seen |= used
        lines = [f"{one.name}: {expressions[one]}" for one in seen]
        grammar = LLMatcher.grammar_from_lark("\n".join((f"start: {terminal.name}", *lines)))
        matcher = LLMatcher(_single_bytes(), grammar, log_level=0)
        allowed = matcher.compute_bitmask()
        if matcher.is_error() and not matcher.get_error().startswith("NoExtensionBias"):
            raise GrammarError(f"too complex: {matcher.get_error()[:200]}")
        return not matcher.is_error() and any(allowed)

    def _check(self) -> None:
        if len(self._bodies) + len(self._terminals) > self._most:
            raise GrammarError(f"too large: it needs more than {self._most} rules")

    def lark(self, start: Rule) -> str | None:
        """All that `start` needs, in Lark's notation, the rule `start` first. None if no text fits
        it."""
        finite = self._finite()
        if start.number not in finite:
            return None
        lines: list[str] = []
        seen, todo = {start.number}, [start.number]
        while todo:
            number = todo.pop()
            sentences = [
                self._kept(sentence, finite)
                for sentence in self._bodies[number]
                if all(_possible(symbol, finite) for symbol in sentence)
            ]
            lines.append(
                f"{self.name(Rule(number))}: " + " | ".join(map(self._sentence, sentences))
            )
            for symbol in (symbol for sentence in sentences for symbol in sentence):
                rule = symbol.rule if isinstance(symbol, Repeat) else symbol
                if isinstance(rule, Rule) and rule.number not in seen:
                    seen.add(rule.number)
                    todo.append(rule.number)
        lines += (f"{terminal.name}: {text}" for text, terminal in self._terminals.items())
        return "\n".join(lines) + "\n"

    def name(self, rule: Rule) -> str:
        return f"{self._prefix}r{rule.number}"

    def _finite(self) -> set[int]:
        """The rules that some text fits."""
        users: dict[int, list[int]] = {}
        for number, body in enumerate(self._bodies):
            for needed in {_needed(symbol) for sentence in body for symbol in sentence}:
                if needed is not None:
                    users.setdefault(needed, []).append(number)
        finite: set[int] = set()
        todo = list(range(len(self._bodies)))
        while todo:
            number = todo.pop()
            if number not in finite and any(
                all(_possible(symbol, finite) for symbol in sentence)
                for sentence in self._bodies[number]
            ):
                finite.add(number)
                todo += users.get(number, ())
        return finite

    @staticmethod
    def _kept(sentence: Sentence, finite: set[int]) -> Sentence:
        """The sentence without the repetitions that there are none of."""
        return tuple(
            symbol
            for symbol in sentence
            if not isinstance(symbol, Repeat) or (symbol.most != 0 and symbol.rule.number in finite)
        )

    def _sentence(self, sentence: Sequence[Symbol]) -> str:
        """The symbols in Lark's notation, neighbouring texts as one."""
        parts: list[str] = []
        text = ""
        for symbol in (*sentence, None):
            if isinstance(symbol, Text):
                text += symbol.text
                continue
            if text:
                parts.append(quoted(text))
                text = ""
            if isinstance(symbol, Terminal):
                parts.append(symbol.name)
            elif isinstance(symbol, Rule):
                parts.append(self.name(symbol))
            elif symbol is not None:
                most = "" if symbol.most is None else symbol.most
                parts.append(f"{self.name(symbol.rule)}{{{symbol.least},{most}}}")
        return " ".join(parts) or '""'


@cache
def _single_bytes() -> LLTokenizer:
    """A vocabulary of all bytes."""
    return LLTokenizer("byte")


def quoted(text: str) -> str:
    """The text as a string literal of Lark."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _needed(symbol: Symbol) -> int | None:
    """The number of the rule without which the symbol has no text."""
    if isinstance(symbol, Rule):
        return symbol.number
    return symbol.rule.number if isinstance(symbol, Repeat) and symbol.least else None


def _possible(symbol: Symbol, finite: set[int]) -> bool:
    needed = _needed(symbol)
    return needed is None or needed in finite
