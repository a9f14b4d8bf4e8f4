"""Regular expressions that end a generation, found in text that comes in pieces.

A match counts as soon as it is complete: the text ends with the first character that completes one,
whatever tokens it came in, and of the matches that end there the one that begins first is cut. So a
repetition at the end of an expression is as short as it can be, and `$`, `\\b` and what looks ahead
see the text so far as all there is.

    stop_regex    \\n+Q\\d:      text  "A cat.\\n\\nQ"      held back from here: a match may begin
                                            ^

Text is held back from the first place where a match may have begun, which `regex` tells by partial
matching. A match of more than `WINDOW` characters is not found, so no more than that are ever held
back, and a search never looks at more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import regex

from asgl.errors import ConfigError

WINDOW = 1024
"""The most characters that a match may have."""
_SECONDS = 0.25
"""How long a search may take: it runs on the event loop, and some expressions take exponential
time."""


@lru_cache(maxsize=256)
def compiled(pattern: str) -> regex.Pattern[str]:
    """The expression, in the syntax of `re` and of the package `regex`. ConfigError if it is none,
    or matches nothing."""
    try:
        expression = regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"stop_regex {pattern!r} is no regular expression: {error}") from error
    if expression.match("") is not None:
        raise ConfigError(
            f"stop_regex {pattern!r} matches the empty text, so it would end every text at once"
        )
    return expression


class StopRegex:
    """One search through a growing text."""

    __slots__ = ("_pattern", "alive")

    def __init__(self, pattern: str) -> None:
        self._pattern = compiled(pattern)
        self.alive = 0
        """Where a match that is under way may begin; the text before is certain."""

    def find(self, text: str, before: int) -> tuple[int, int] | None:
        """Where the first match that is complete after character `before` or later begins and ends;
        None if there is none.

        `text` is what the last call had, which was `before` characters, and more. TimeoutError if
        that takes too long.
        """
        for end in range(before + 1, len(text) + 1):
            self.alive = max(self.alive, end - WINDOW)
            if (match := self._search(text[:end])) is not None:
                return match.start(), match.end()
        under_way = self._search(text, partial=True)
        self.alive = under_way.start() if under_way is not None else len(text)
        return None

    def skip(self, text: str) -> None:
        """Nothing that begins in this text counts."""
        self.alive = len(text)

    def _search(self, text: str, **options: Any) -> regex.Match[str] | None:
        return self._pattern.search(
            text, pos=self.alive, timeout=_SECONDS, concurrent=False, **options
        )


def searches(patterns: Sequence[str]) -> tuple[StopRegex, ...]:
    return tuple(map(StopRegex, patterns))
