"""Text on its way to tokens: a run.

Texts appended one after the other are one run, whatever calls they came from, and are tokenized
together, once, when an op seals the run. Control tokens stand between runs:

    appended       <|im_start|>   "user\\n"  "Hi "  "there"   <|im_end|>   "\\n"
    tokenized      1            | "user\\nHi there"         | 2          | "\\n"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

Part: TypeAlias = str | int
"""Text, or the id of a control token."""

SYNCHRONOUS_BYTES = 32 * 1024
"""A longer run is tokenized off the event loop, which it would hold up for milliseconds."""


class Run:
    """What was appended and not yet tokenized. Neighbouring texts are joined."""

    __slots__ = ("_known", "_parts", "_tail")

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self._parts: list[Part] = list(parts)
        self._tail: list[str] = []
        """Texts after the parts, not joined yet: a thousand appends are joined once."""
        self._known: tuple[tuple[Part, ...], str, list[int]] | None = None

    def append(self, part: Part) -> None:
        if isinstance(part, str):
            if part:
                self._tail.append(part)
        else:
            self._join()
            self._parts.append(part)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Texts and control tokens, no two texts next to each other."""
        self._join()
        return tuple(self._parts)

    @property
    def bytes(self) -> int:
        """How much text there is to tokenize, in bytes of UTF-8."""
        return sum(len(part.encode()) for part in self.parts if isinstance(part, str))

    def clear(self) -> None:
        self._parts.clear()
        self._tail.clear()

    def reset(self, parts: Sequence[Part]) -> None:
        """Back to what `parts` were."""
        self._parts = list(parts)
        self._tail.clear()

    def token_ids(self, encode: Callable[[str], list[int]], prefix: str = "") -> list[int]:
        """The tokens of the run, which stays as it is; `prefix` goes before its first text.

        What was once tokenized is remembered as long as nothing is added.
        """
        parts = self.parts
        if self._known is None or not self.knows(parts, prefix):
            self.learn(parts, prefix, token_ids_of(parts, encode, prefix))
            assert self._known is not None
        return self._known[2]

    def learn(self, parts: tuple[Part, ...], prefix: str, token_ids: list[int]) -> None:
        """Remembers the tokens of `parts`."""
        self._known = (parts, prefix, token_ids)

    def knows(self, parts: tuple[Part, ...], prefix: str) -> bool:
        return self._known is not None and self._known[:2] == (parts, prefix)

    def _join(self) -> None:
        if not self._tail:
            return
        text = "".join(self._tail)
        self._tail.clear()
        if self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        else:
            self._parts.append(text)


def token_ids_of(
    parts: Sequence[Part], encode: Callable[[str], list[int]], prefix: str = ""
) -> list[int]:
    """Control tokens as they are, each text tokenized on its own, as data; `prefix` goes before the
    first text."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += encode(prefix + part)
            prefix = ""
    return ids
