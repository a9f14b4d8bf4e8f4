"""Tokenizers of SentencePiece's kind: from a `tokenizer.model`, or from the list of pieces that a
GGUF file carries.

Both go through the SentencePiece library itself, which takes a serialized ModelProto
(sentencepiece_model.proto of the SentencePiece project). Only the few fields below are ever
written, so the encoding is done here, by hand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asgl.errors import ModelError
from asgl.models.tokenizer import Tokenizer, byte_fallback_piece, spaced_piece

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

UNKNOWN, CONTROL, BYTE = 2, 3, 6
"""Types of pieces; GGUF numbers them in the same way."""


def tokenizer_model(
    path: Path,
    *,
    vocabulary: int,
    control: Mapping[int, str] | None = None,
    adds_bos: bool = True,
    end_tokens: Iterable[int] = (),
) -> Tokenizer:
    """The tokenizer of a `tokenizer.model` file; `control` are control tokens that were added to
    it. ModelError if it cannot be read."""
    try:
        proto = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    return _tokenizer(path, proto, vocabulary, control or {}, None, adds_bos, end_tokens, None)


def tokenizer_pieces(
    path: Path,
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    bos: int | None,
    adds_bos: bool,
    end_tokens: Iterable[int],
    space_prefix: bool,
) -> Tokenizer:
    """The BPE tokenizer of these pieces, as GGUF files of the tokenizer model "llama" list them."""
    parts = [
        _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for piece, score, kind in zip(pieces, scores, types, strict=True)
    ]
    trainer = _number(3, 2) + (_number(35, 1) if BYTE in types else b"")
    normalizer = _field(1, b"identity") + _number(3, int(space_prefix)) + _number(4, 0)
    proto = b"".join(parts) + _field(2, trainer) + _field(3, normalizer)
    return _tokenizer(path, proto, len(pieces), {}, bos, adds_bos, end_tokens, space_prefix)


def _tokenizer(
    path: Path,
    proto: bytes,
    vocabulary: int,
    added: Mapping[int, str],
    bos: int | None,
    adds_bos: bool,
    end_tokens: Iterable[int],
    space_prefix: bool | None,
) -> Tokenizer:
    original = _load(path, proto)
    count = original.vocab_size()
    if count > vocabulary:
        raise ModelError(
            f"{path}: {count} pieces, but the model's vocabulary is {vocabulary}; the tokenizer is "
            "that "
            "of another model"
        )
    if space_prefix is None:
        space_prefix = original.normalize("a") != "a"
    texts = [original.id_to_piece(id) for id in range(count)]
    control = {
        id: text
        for id, text in enumerate(texts)
        if original.is_control(id) or original.is_unknown(id)
    }
    control |= {id: text for id, text in added.items() if id < vocabulary}
    pieces = [byte_fallback_piece(text) or spaced_piece(text) for text in texts] + [b""] * (
        vocabulary - count
    )
    # Parsing merges a message that is given again: this one only says that no space goes before a
    # text.
    processor = _load(path, proto + _field(3, _number(3, 0)))

    def encode(text: str) -> list[int]:
        return processor.encode(text)

    ends = {*end_tokens, *([original.eos_id()] if original.eos_id() >= 0 else [])}
    if bos is None and original.bos_id() >= 0:
        bos = original.bos_id()
    return Tokenizer(
        encode,
        pieces,
        control,
        bos=bos,
        adds_bos=adds_bos,
        end_tokens=ends,
        space_prefix=" " if space_prefix else "",
    )


def _load(path: Path, proto: bytes) -> SentencePieceProcessor:
    # imported for models that need it only: its wheel brings a second OpenMP runtime into the
    # process
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: SentencePiece refuses the tokenizer: {error}") from error
    return processor


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)
