"""Words for tokens, and ChatML for a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asgl.errors import ModelError
from asgl.types import RoleParts

CONTROL = {"<|bos|>": 0, "<|eos|>": 1, "<|im_start|>": 2, "<|im_end|>": 3}
BOS, EOS = 0, 1
_WORDS = re.compile(r"\s*\S+|\s+")


class WordTokenizer:
    """A token for each word that it meets, with the white space before it."""

    special_tokens: Mapping[str, int] = CONTROL
    end_tokens = (EOS,)
    bos, adds_bos = BOS, False

    def __init__(self) -> None:
        self._words = list(CONTROL)
        self._ids: dict[str, int] = {}

    @property
    def vocabulary(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        return [self.id_of(word) for word in _WORDS.findall(text)]

    def encode_run(self, parts: Sequence[int | str], after: int | None = None) -> list[int]:
        return [
            token
            for part in parts
            for token in ([part] if isinstance(part, int) else self.encode(part))
        ]

    def split(self, text: str) -> list[int | str]:
        pieces = re.split(f"({'|'.join(map(re.escape, CONTROL))})", text)
        return [CONTROL.get(piece, piece) for piece in pieces if piece]

    def cut_bytes(self, ids: Sequence[int]) -> bytes:
        """No word is cut."""
        return b""

    def token_bytes(self, token_id: int, /) -> bytes:
        return self._words[token_id].encode() if token_id >= len(CONTROL) else b""

    def decode(self, ids: Iterable[int], *, control: bool = True) -> str:
        return "".join(self._words[token] for token in ids if control or token >= len(CONTROL))

    def id_of(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]


class Words:
    """The detokenizer of words."""

    pending = False

    def __init__(self, tokenizer: WordTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, token_id: int, /) -> str:
        return self._tokenizer.decode([token_id], control=False)

    def flush(self) -> str:
        return ""


class ChatML:
    """The chat template: it knows every role, and no tools."""

    head, tool_parts = "", None

    def parts(self, before: Sequence[str], role: str) -> RoleParts:
        return RoleParts(f"<|im_start|>{role}\n", "<|im_end|>\n")

    def generation(self, before: Sequence[str]) -> str:
        return self.parts(before, "assistant").prefix

    def with_arguments(self, arguments: Mapping[str, Any], /) -> ChatML:
        return self

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> RoleParts:
        raise ModelError("ChatML tells the model of tools in text")
