"""What one may ask the model about a point of a stream: the part of `PromptStream` that asks and
appends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asgl.checks import integer, number, strings
from asgl.errors import ConfigError
from asgl.language.executor import Executor
from asgl.language.handle import Handle
from asgl.language.run_probe import Beam, BeamResult, NextToken, Score
from asgl.language.stream_state import StreamState
from asgl.types import TokenLogprob


class StreamProbes(StreamState):
    """A stream as one asks about it: see `asgl.PromptStream`."""

    __slots__ = ()

    async def next_token(self, *, top: int = 10) -> list[TokenLogprob]:
        """The `top` likeliest tokens at this point, likeliest first, with their log-probabilities
        under the model itself, before temperature, penalties and masks. Appends nothing."""
        return await self._asked(NextToken(integer("top", top, 1)))

    async def score(self, text: str, *, top: int = 0) -> list[TokenLogprob]:
        """The log-probability of each token of `text`, if it came next, without appending it. With
        `top`, each has the likeliest tokens of its place, which costs a request for each token.

        The text is tokenized on its own. The sum of the `.logprob`s is that of the whole text.
        """
        return await self._asked(Score(_text(text), integer("top", top, 0), False))

    async def beam(
        self,
        n: int,
        *,
        width: int | None = None,
        max_tokens: int = 32,
        stop: str | Sequence[str] = (),
        length_penalty: float = 1.0,
    ) -> list[BeamResult]:
        """The `n` best continuations from this point that a beam search finds, best first. Appends
        nothing: `s += beams[0].text` does.

        In each of at most `max_tokens` steps the `width` likeliest continuations go on (None: n, or
        4 if that is less); each step is a batch of one token for each. One ends at the model's end
        of text, or of the turn, or at a stop string, which is cut off. They are ranked by their
        log-probability over their number of tokens to the power of `length_penalty`: 0 ranks by the
        log-probability alone, more favours long ones. Fewer than `n` come if there are no more.
        Temperature and other sampling parameters mean nothing here. Tokens are counted by budgets.
        """
        integer("n", n, 1)
        width = max(n, 4) if width is None else integer("width", width, 1)
        if width < n:
            raise ConfigError(f"width must be at least n, {n}, to find so many; not {width}")
        spec = Beam(
            n,
            width,
            integer("max_tokens", max_tokens, 1),
            strings("stop", stop),
            number("length_penalty", length_penalty, 0),
        )
        return await self._asked(spec)

    async def _asked(self, spec: NextToken | Score | Beam) -> Any:
        executor: Executor = self._queue.executor("score")
        return await Handle[Any](executor.ask(spec))


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"what is scored must be text, not {text!r}")
    return text
