"""Words for tokens, and ChatML for a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from asgl.models.chat_template import RoleParts

CONTROL = {"<|bos|>": 0, "<|eos|>": 1, "<|im_start|>": 2, "<|im_end|>": 3}
BOS, EOS = 0, 1
_WORDS = re.compile(r"\s*\S+|\s+")


class WordTokenizer:
    """A token for each word that it meets, with the white space before it."""

    special_tokens: Mapping[str, int] = CONTROL
    end_tokens = (EOS,)
    bos, adds_bos, space_prefix = BOS, False, ""

    def __init__(self) -> None:
        self._words = list(CONTROL)
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.id_of(word) for word in _WORDS.findall(text)]

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
    head = ""
    default_system = None

    def role_parts(self, role: str) -> RoleParts:
        return RoleParts(f"<|im_start|>{role}\n", "<|im_end|>\n")
