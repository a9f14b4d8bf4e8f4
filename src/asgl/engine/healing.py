"""Token healing: the end of a prompt is generated once more, so that a word that goes on is
tokenized as the model knows it.

    prompt   "http:"    tokens  "http" ":"    the model, which knows "://" as one token, never saw
                                              ":" before "//"
    healed                      "http"        generation begins here; its text begins with ":"

Which tokens are taken off: the most at the end of the prompt, `MOST` at most and never all, none of
them a control token, whose bytes together are whole characters and the beginning of a longer token
of the vocabulary. None, if there are none such.

What is generated then must begin with the bytes that were taken off: until they are all there, only
tokens are allowed that go on with what is missing of them, by a part of it, by all of it, or by all
of it and more. The output's text begins after them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

MOST = 8


class Vocabulary(Protocol):
    vocabulary: int

    def token_bytes(self, token_id: int, /) -> bytes: ...


class Healer:
    """Heals prompts of one tokenizer. Making one sorts the vocabulary."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._bytes = tokenizer.token_bytes
        self.mask_bytes = (tokenizer.vocabulary + 7) // 8
        tokens = [
            (text, token)
            for token in range(tokenizer.vocabulary)
            if (text := tokenizer.token_bytes(token))
        ]
        tokens.sort()
        self._texts = [text for text, _ in tokens]
        self._ids = [token for _, token in tokens]

    def tail(self, prompt: Sequence[int]) -> tuple[int, str]:
        """How many tokens at the end of the prompt to generate once more, and their text."""
        best, healed, data = 0, "", b""
        for count in range(1, min(MOST, len(prompt) - 1) + 1):
            piece = self._bytes(prompt[-count])
            if not piece:
                break
            data = piece + data
            try:
                text = data.decode()
            except UnicodeDecodeError:
                continue
            start, end = self._range(data)
            if any(len(self._texts[place]) > len(data) for place in range(start, end)):
                best, healed = count, text
        return best, healed

    def allowed(self, missing: bytes) -> list[int]:
        """The tokens that go on with what is missing."""
        start, end = self._range(missing)
        tokens = self._ids[start:end]
        for length in range(1, len(missing)):
            part = missing[:length]
            place = bisect_left(self._texts, part)
            while place < len(self._texts) and self._texts[place] == part:
                tokens.append(self._ids[place])
                place += 1
        return tokens

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes(token_id)

    def _range(self, beginning: bytes) -> tuple[int, int]:
        """Where in the sorted vocabulary the tokens with that beginning stand."""
        start = bisect_left(self._texts, beginning)
        above = beginning.rstrip(b"\xff")
        end = (
            bisect_left(self._texts, above[:-1] + bytes((above[-1] + 1,)), lo=start)
            if above
            else len(self._texts)
        )
        return start, end


class HealedBeginning:
    """What the tokens of a generation must be until the text that was taken off is there again;
    then nothing.

    Speaks as `asgl.scheduling.request.Grammar`.
    """

    error: str | None = None
    accepting = True
    complete = False

    def __init__(self, healer: Healer, text: str) -> None:
        self._healer, self._missing = healer, text.encode()

    @property
    def free(self) -> bool:
        """Whether all of the text is there."""
        return not self._missing

    def ends(self, token_id: int, /) -> bool:
        return False

    def forced(self) -> Sequence[int]:
        return ()

    def mask(self, banned: Iterable[int], /) -> bytes | None:
        """None once all of the text is there. What is banned only says how a generation may not
        end, and here it cannot."""
        if not self._missing:
            return None
        mask = bytearray(self._healer.mask_bytes)
        for token in self._healer.allowed(self._missing):
            mask[token // 8] |= 1 << token % 8
        return bytes(mask)

    def push(self, token_id: int, /) -> None:
        self._missing = self._missing[len(self._healer.token_bytes(token_id)) :]
