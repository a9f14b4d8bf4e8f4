"""From tokens to text: decodes as tokens come, finds where generation ends, and never shows what a
stop may cut.

generated      t0    t1    t2     t3
text           "The" " cat" " sat" ".\\nQ:"          stop = "\\n"
                                    ^ the stop starts inside t3
kept_tokens    3     t0 t1 t2 lie wholly before it
remainder      "."   what is left of t3: the stream tokenizes it anew, so that its tokens say
                     what its text says
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from asgl.engine.stop_regex import searches
from asgl.errors import GrammarError
from asgl.types import FinishReason


class Detokenizer(Protocol):
    """Text of a growing sequence of tokens. A character is given when its last byte came, never
    half of one."""

    def push(self, token_id: int, /) -> str: ...

    @property
    def pending(self) -> bool:
        """Whether the last tokens end in the middle of a character."""
        ...

    def flush(self) -> str:
        """What incomplete bytes are left, as replacement characters."""
        ...


class OutputText:
    """The output of one generation. Made by the engine; `push` is called once for each sampled
    token, in order.

    `given` is how the text of the tokens begins that is not the output's: it was the prompt's, of
    which `healed` tokens were taken off.

    Of stop strings and stop expressions the match that is complete first counts, of those complete
    at the same character the one that begins first, of those the one that was given first: it does
    not matter which tokens the text came in.
    """

    __slots__ = (
        "_boundaries",
        "_detokenizer",
        "_end_tokens",
        "_given",
        "_keep_stop",
        "_longest",
        "_min_tokens",
        "_regexes",
        "_stop_tokens",
        "_stops",
        "_text",
        "count",
        "error",
        "healed",
        "kept_tokens",
        "matched_stop",
        "remainder",
        "text",
    )

    def __init__(
        self,
        detokenizer: Callable[[], Detokenizer],
        *,
        stops: Sequence[str] = (),
        stop_regexes: Sequence[str] = (),
        stop_tokens: Collection[int] = (),
        end_tokens: Collection[int] = (),
        keep_stop: bool = False,
        min_tokens: int = 0,
        given: str = "",
        healed: int = 0,
    ) -> None:
        self._detokenizer = detokenizer()
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._regexes = searches(stop_regexes)
        self._stop_tokens = frozenset(stop_tokens)
        self._end_tokens = frozenset(end_tokens)
        self._keep_stop = keep_stop
        self._min_tokens = min_tokens
        self._given = given
        for search in self._regexes:
            search.skip(given)
        self._text = ""
        self._boundaries: list[int | None] = []
        """For each token so far, how much text there was after it; None if it ended in the middle
        of a character."""
        self.text = ""
        """What is certain: it only ever grows."""
        self.count = 0
        self.kept_tokens = 0
        """How many tokens, from the first, are the stream's from now on. Final once `push` gave a
        reason or `finish` ran."""
        self.remainder = ""
        """Text after the kept tokens that is no whole token."""
        self.matched_stop: str | int | None = None
        self.healed = healed
        """How many tokens at the end of the prompt the kept tokens and the remainder stand for as
        well: they begin with `given`, their text, which is no part of this one."""
        self.error: GrammarError | None = None
        """Why the end could not be found. The generation ends with it."""

    def push(self, token_id: int) -> FinishReason | None:
        """Takes the next token; the reason if generation ends with it."""
        self.count += 1
        may_end = self.count >= self._min_tokens
        if may_end and (token_id in self._end_tokens or token_id in self._stop_tokens):
            return self._end_at_token(token_id)
        before = len(self._text)
        self._text += self._detokenizer.push(token_id)
        self._boundaries.append(None if self._detokenizer.pending else len(self._text))
        self.kept_tokens = self.count
        try:
            found = self._first_stop(before) if may_end else self._skip()
        except TimeoutError:
            self.error = GrammarError(
                f"a stop_regex takes too long on the text so far ({len(self._text)} characters): "
                "simplify "
                "it, mostly by giving nested repetitions a bound"
            )
            return "stopped"
        if found is not None:
            self._cut(*found)
            return "stop"
        self.text = self._text[len(self._given) : self._certain()]
        return None

    def piece(self, index: int) -> str:
        """What the token `index` adds to the text, by what is known now: a stop may still cut it.
        "" if it ends in the middle of a character, which the token that completes it has."""
        given = len(self._given)
        end = self._boundaries[index] if index < len(self._boundaries) else None
        if end is None:
            return ""
        start = None
        while start is None and index > 0:
            index -= 1
            start = self._boundaries[index]
        return self._text[max(start or 0, given) : max(end, given)]

    def finish(self) -> None:
        """Generation ended for another reason than a stop: what was held back is text after all."""
        if len(self._text) < len(
            self._given
        ):  # it ended before all that was taken off the prompt was there again
            self._keep(len(self._given))
            return
        self._text += self._detokenizer.flush()
        self.text = self._text[len(self._given) :]

    def _end_at_token(self, token_id: int) -> FinishReason:
        reason: FinishReason = "stop" if token_id in self._stop_tokens else "eos"
        self.matched_stop = token_id if reason == "stop" else None
        if self._keep_stop and reason == "stop":
            self._text += self._detokenizer.push(token_id)
            self.kept_tokens = self.count
        self.finish()
        return reason

    def _first_stop(self, before: int) -> tuple[int, int] | None:
        """Where the first match that is complete after character `before` or later begins and
        ends."""
        found: list[tuple[int, int]] = []
        given = len(self._given)
        before = max(before, given)
        for stop in self._stops:
            if (at := self._text.find(stop, max(given, before - len(stop) + 1))) >= 0:
                found.append((at + len(stop), at))
        for search in self._regexes:
            if (match := search.find(self._text, before)) is not None:
                found.append((match[1], match[0]))
        if not found:
            return None
        end, at = min(found)
        return at, end

    def _skip(self) -> None:
        for search in self._regexes:
            search.skip(self._text)

    def _cut(self, at: int, stop_end: int) -> None:
        self.matched_stop = self._text[at:stop_end]
        self._keep(stop_end if self._keep_stop else at)

    def _keep(self, end: int) -> None:
        """The output ends after so many characters, those given included."""
        text = self._text if len(self._text) >= end else self._given
        self.kept_tokens = whole = 0
        for count, boundary in enumerate(self._boundaries, 1):
            if boundary is not None and boundary <= end:
                self.kept_tokens, whole = count, boundary
        self.remainder = text[whole:end]
        self._text = text[:end]
        self.text = self._text[len(self._given) :]

    def _certain(self) -> int:
        """How much of the text no stop can cut."""
        certain = len(self._text) - self._held_back()
        return min([certain, *(search.alive for search in self._regexes)])

    def _held_back(self) -> int:
        """How many last characters may be the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._text) - len(self._given)), 0, -1):
            tail = self._text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
