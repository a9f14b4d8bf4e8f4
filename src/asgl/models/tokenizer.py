"""Text to tokens and back.

One rule says what is a marker and what is data. A *control token* is a token

- that the tokenizer's files call special (GGUF: of the type "control" or "unknown"), or name as the
  beginning or end of a text, as padding, as an additional special token and the like;
- or that was added to the vocabulary (GGUF: "user defined"), looks like a marker (`is_marker`), and
  is written by the model's chat template.

Control tokens come from the engine's own code, where the template writes them. The text of a
program is data: no text whatever is encoded to a control token. Other added tokens are vocabulary,
and found in text as the file says.

Three sources make a `Tokenizer`: `tokenizer_json` (Hugging Face), `tokenizer_gguf` and
`tokenizer_sentencepiece`. They differ in the back end that splits text; ids to bytes is one table
for all of them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from asgl.errors import ModelError

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
        "<turn|>",
        "<|tool_response>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_utterance>",
        "[EOS]",
        "[EOT]",
        "[e~[",
    }
)
"""Texts of control tokens that end a generation in one model family or another, whatever the file
declares as its one."""
_GOES_ON = ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|flush|>", "<|calls|>"}))
"""The end of a message, after which the answer goes on where there are tokens that end it."""


_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""What the `tokenizers` library strips: Unicode's White_Space, of which `str.strip` takes more."""


def is_marker(text: str) -> bool:
    """Whether the text of an added token looks like a marker: neither a character, nor words or
    white space, which templates have in them as text."""
    return len(text) > 2 and re.fullmatch(r"[\w\s]*", text) is None


class Added(NamedTuple):
    """How a control token is found in what a template writes, as the file of the tokenizer says."""

    lstrip: bool = False
    """Whether the white space before it belongs to it."""
    rstrip: bool = False
    """Whether the white space after it belongs to it."""
    late: bool = False
    """Whether it is looked for in what the other ones left."""
    doubtful: str = ""
    """Why it cannot be told whether transformers would find it."""


class Spacing(NamedTuple):
    """Where a tokenizer puts a space before a text."""

    after_control: bool = False
    """Whether also after control tokens, not only at the beginning of a prompt."""
    doubled: bool = False
    """Whether also before a text that begins with a space."""


class Tokenizer:
    """A vocabulary, and how text is split into it. Immutable; `encode` may be called from several
    threads at once.

    `pieces` are the bytes of every token, b"" where an id is no token; `control` the texts of
    control tokens by id. Their bytes in `pieces` are ignored. `added` says how they are found,
    where that is not as by default. `space_prefix` is " " if texts get a space before them, where
    `spacing` says; `encode_spaced` encodes a text with that space if `encode` of the text with a
    space before it would not do.
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
        spacing: Spacing = Spacing(),  # noqa: B008
        encode_spaced: Encode | None = None,
        added: Mapping[int, Added] | None = None,
    ) -> None:
        self._encode, self._encode_spaced = encode, encode_spaced
        self._bytes = [b"" if token in control else piece for token, piece in enumerate(pieces)]
        self._shown = list(pieces)
        for token, text in control.items():
            self._shown[token] = text.encode()
        self.control_tokens = frozenset(control)
        """The ids that no text of a program and no grammar may give."""
        self.vocabulary = len(self._bytes)
        """How many ids there are; the largest one is one less."""
        self.special_tokens: Mapping[str, int] = MappingProxyType(
            {text: token for token, text in control.items()}
        )
        """The control tokens, by their text."""
        self.bos = bos
        self.adds_bos = adds_bos and bos is not None
        """Whether a prompt of plain text begins with `bos`. What a chat template writes never does
        by this."""
        named = {token for text, token in self.special_tokens.items() if text in END_OF_GENERATION}
        ends = named.union(end_tokens)
        inner, outer = _GOES_ON
        if any(self.special_tokens.keys() >= texts for texts in outer):
            ends.discard(self.special_tokens.get(inner, -1))
        self.end_tokens: tuple[int, ...] = tuple(sorted(id for id in ends if id < self.vocabulary))
        """All tokens that end a generation: of a text, of a turn, of a message."""
        self.space_prefix = space_prefix
        """What the model was trained to find before the first text of a prompt: " " for many
        SentencePiece models, else "". `encode` never adds it, `encode_run` does."""
        self._spacing = spacing
        self._added = added or {}

    def split(self, text: str) -> list[int | str]:
        """Cuts text of a chat template (never of a program) at its markers: ints are control
        tokens, strs plain text, no two of them next to each other.

        ModelError if it cannot be told whether transformers would find a marker.
        """
        parts: list[int | str] = [text] if text else []
        for search in self._searches:
            parts = [
                self.special_tokens.get(piece, piece) if place % 2 else piece
                for part in parts
                for place, piece in enumerate(
                    search.split(part) if isinstance(part, str) and search is not None else [part]
                )
                if piece != ""
            ]
        for part in parts:
            if isinstance(part, int) and (why := self._found(part).doubtful):
                raise ModelError(
                    f"the model's chat template writes {self._shown[part].decode()!r}, which the "
                    f"tokenizer {why}: it cannot be told where it is a control token; write the "
                    "prompt as plain text instead"
                )
        return parts

    def encode_run(self, parts: Sequence[int | str], after: int | None = None) -> list[int]:
        """The tokens of control tokens (ints) and texts between them, no two texts next to each
        other: each text as data, and with the white space between it and its neighbours that the
        tokenizer's files ask for.

        `after` is the token that the run comes after; None at the beginning of a prompt, where
        nothing was written but perhaps a `bos` that `adds_bos` asked for.
        """
        ids: list[int] = []
        for place, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
                after = part
                continue
            follower = parts[place + 1] if place + 1 < len(parts) else None
            if isinstance(follower, int) and self._found(follower).lstrip:
                part = part.rstrip(_WHITE_SPACE)
            if after is not None and self._found(after).rstrip:
                part = part.lstrip(_WHITE_SPACE)
            if not part:
                continue
            spaced = self.space_prefix and (
                after is None or (self._spacing.after_control and after in self.control_tokens)
            )
            tokens = self._spaced(part) if spaced else self.encode(part)
            ids += tokens
            after = tokens[-1] if tokens else after
        return ids

    @cached_property
    def _searches(self) -> list[re.Pattern[str] | None]:
        late = {text for text, id in self.special_tokens.items() if self._found(id).late}
        return [search_for(self.special_tokens.keys() - late), search_for(late)]

    def _found(self, token: int) -> Added:
        return self._added.get(token, _PLAIN)

    def _spaced(self, text: str) -> list[int]:
        if self._encode_spaced is not None:
            return self._as_data(self._encode_spaced, text)
        if self._spacing.doubled or not text.startswith((" ", "\u2581")):
            text = self.space_prefix + text
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """The tokens of the text as data: never a control token. Bytes that the vocabulary lacks
        are left out."""
        return self._as_data(self._encode, text)

    def _as_data(self, encode: Encode, text: str) -> list[int]:
        if not text.isascii():
            # lone surrogates become "?"; no back end takes them
            text = text.encode("utf-8", "replace").decode()
        tokens = encode(text)
        if self.control_tokens.isdisjoint(tokens):
            return tokens
        # "unknown", in most vocabularies
        return [token for token in tokens if token not in self.control_tokens]

    def decode(self, ids: Iterable[int], *, control: bool = True) -> str:
        """The text of the tokens; control tokens are shown, or left out if not `control`. Invalid
        bytes become U+FFFD."""
        table = self._shown if control else self._bytes
        return b"".join([table[token] for token in ids]).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text; b"" for control tokens."""
        return self._bytes[token_id]

    def detokenizer(self, *, control: bool = True, begun: bytes = b"") -> Detokenizer:
        """A new incremental decoder. What it gives, joined, is `decode(ids, control=control)`.

        `begun` are the bytes of a character that earlier tokens began (`cut_bytes`): the decoder
        goes on in the middle of it.
        """
        return Detokenizer(self._shown if control else self._bytes, begun)

    def cut_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of a character at the end of the tokens whose other bytes are still to come;
        b"" if they end with a whole one. `decode` shows them as one U+FFFD."""
        tail = b""
        for token in reversed(ids):
            tail = self._shown[token] + tail
            if len(tail) >= _LONGEST_CHARACTER:
                break
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        return decoder.getstate()[0]


class Detokenizer:
    """Decodes tokens as they come: a character is given when its last byte came, never half of
    one."""

    __slots__ = ("_decoder", "_table")

    def __init__(self, table: Sequence[bytes], begun: bytes = b"") -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.setstate((begun, 0))

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


_PLAIN = Added()
_LONGEST_CHARACTER = 4


def search_for(texts: Iterable[str]) -> re.Pattern[str] | None:
    """What `split` cuts a text with at the texts, of two at one place at the longer; None if there
    are none."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


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
