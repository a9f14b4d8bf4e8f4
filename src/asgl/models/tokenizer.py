"""Text to tokens and back. The text of a program is data: no text whatever is encoded to a control
token.

Three sources make a `Tokenizer`: `tokenizer_json` (Hugging Face), `tokenizer_gguf` and
`tokenizer_sentencepiece`. They differ in the back end that splits text; ids to bytes is one table
for all of them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

Encode = Callable[[str], list[int]]

END_OF_GENERATION = frozenset(
    {
        "<|endoftext|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<eos>",
        "</s>",
        "<EOT>",
        "<|EOT|>",
        "<|end▁of▁sentence|>",
        "<|eot|>",
        "<|endofturn|>",
    }
)
"""Texts of control tokens that end a generation in one model family or another, whatever the file
declares as its one."""


class Tokenizer:
    """A vocabulary, and how text is split into it. Immutable; `encode` may be called from several
    threads at once.

    `pieces` are the bytes of every token, b"" where an id is no token; `control` the texts of
    control tokens by id. Their bytes in `pieces` are ignored.
    """

    def __init__(
        self,
        encode: Encode,
        pieces: Sequence[bytes],
        control: Mapping[int, str],
        *,
        bos: int | None,
        adds_bos: bool,
        end_tokens: Iterable[int],
        space_prefix: str = "",
    ) -> None:
        self._encode = encode
        self._bytes = [b"" if token in control else piece for token, piece in enumerate(pieces)]
        self._shown = list(pieces)
        for token, text in control.items():
            self._shown[token] = text.encode()
        self._control = frozenset(control)
        self.vocabulary = len(self._bytes)
        """How many ids there are; the largest one is one less."""
        self.special_tokens: Mapping[str, int] = MappingProxyType(
            {text: token for token, text in control.items()}
        )
        """The control tokens, by their text."""
        self.bos = bos
        self.adds_bos = adds_bos and bos is not None
        """Whether a prompt begins with `bos`."""
        named = {token for text, token in self.special_tokens.items() if text in END_OF_GENERATION}
        self.end_tokens: tuple[int, ...] = tuple(
            sorted(id for id in named.union(end_tokens) if id < self.vocabulary)
        )
        """All tokens that end a generation: of a text, of a turn, of a message."""
        self.space_prefix = space_prefix
        """What the model was trained to find before the first text of a prompt: " " for many
        SentencePiece models, else "". `encode` never adds it."""

    def encode(self, text: str) -> list[int]:
        """The tokens of the text as data: never a control token. Bytes that the vocabulary lacks
        are left out."""
        if not text.isascii():
            text = text.encode(
                "utf-8", "replace"
            ).decode()  # lone surrogates become "?"; no back end takes them
        tokens = self._encode(text)
        if self._control.isdisjoint(tokens):
            return tokens
        return [
            token for token in tokens if token not in self._control
        ]  # "unknown", in most vocabularies

    def decode(self, ids: Iterable[int], *, control: bool = True) -> str:
        """The text of the tokens; control tokens are shown, or left out if not `control`. Invalid
        bytes become U+FFFD."""
        table = self._shown if control else self._bytes
        return b"".join([table[token] for token in ids]).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text; b"" for control tokens."""
        return self._bytes[token_id]

    def detokenizer(self, *, control: bool = False) -> Detokenizer:
        """A new incremental decoder. What it gives, joined, is `decode(ids, control=control)`."""
        return Detokenizer(self._shown if control else self._bytes)


class Detokenizer:
    """Decodes tokens as they come: a character is given when its last byte came, never half of
    one."""

    __slots__ = ("_decoder", "_table")

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int, /) -> str:
        return self._decoder.decode(self._table[token_id])

    @property
    def pending(self) -> bool:
        """Whether the last tokens end in the middle of a character."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """What incomplete bytes are left, as U+FFFD. Afterwards the detokenizer is as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes bytes as (GPT-2, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(0x100 + order): byte for order, byte in enumerate(others)}


BYTE_ALPHABET: Mapping[str, int] = MappingProxyType(_byte_alphabet())


def byte_level_piece(text: str) -> bytes:
    """The bytes of a token of byte-level BPE. A text with characters outside the alphabet stands
    for itself."""
    try:
        return bytes([BYTE_ALPHABET[character] for character in text])
    except KeyError:
        return text.encode()


def byte_fallback_piece(text: str) -> bytes | None:
    """The byte of a token such as "<0x0A>", else None."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            return None
    return None


def spaced_piece(text: str) -> bytes:
    """The bytes of a SentencePiece token: U+2581 stands for a space."""
    return text.replace("\u2581", " ").encode()
