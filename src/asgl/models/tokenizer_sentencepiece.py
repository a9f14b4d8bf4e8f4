"""Tokenizers of SentencePiece's kind: from a `tokenizer.model`, or from the list of pieces that a
GGUF file carries.

Both go through the SentencePiece library itself, which takes a serialized ModelProto
(sentencepiece_model.proto of the SentencePiece project). Only the few fields below are ever
written, so the encoding is done here, by hand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import (
    Encode,
    Spacing,
    Tokenizer,
    byte_fallback_piece,
    search_for,
    spaced_piece,
)
from asgl.models.tokenizer_json import added_flags, answer_ends, markers_written

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Types of pieces; GGUF numbers them in the same way."""


def tokenizer_model(
    path: Path,
    *,
    vocabulary: int,
    added: Mapping[int, dict[str, Any]] | None = None,
    named: Iterable[str] = (),
    template: ChatTemplate | None = None,
    adds_bos: bool = True,
    end_tokens: Iterable[int] = (),
    legacy: bool = False,
) -> Tokenizer:
    """The tokenizer of a `tokenizer.model` file.

    `added` are tokens that other files add to it, by id, in the form of a tokenizer.json; `named`
    texts that are control tokens; `template` is the model's chat template, which uses added tokens
    as markers. `legacy` is the setting of that name of transformers: a space goes before each text
    after a control token, not only before the first. ModelError if the file cannot be read.
    """
    try:
        proto = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    model = _load(path, proto)
    count = model.vocab_size()
    if count > vocabulary:
        raise ModelError(
            f"{path}: {count} pieces, but the model's vocabulary is {vocabulary}; the tokenizer is "
            "that of another model"
        )
    try:
        texts = [model.id_to_piece(id) for id in range(count)]
        defined = [id for id, kind in enumerate(_types(proto)) if kind == USER_DEFINED]
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path}: the pieces of the tokenizer are damaged: {error}") from error
    tokens = {id: token for id, token in (added or {}).items() if id < vocabulary}
    known = {texts[id]: id for id in defined} | {
        token["content"]: id for id, token in tokens.items()
    }
    markers = {*named, *markers_written(template, known)}
    control = {
        id: text for id, text in enumerate(texts) if model.is_control(id) or model.is_unknown(id)
    }
    control |= {id: text for text, id in known.items() if text in markers and len(text) > 1}
    control |= {id: token["content"] for id, token in tokens.items() if token.get("special")}
    words = {token["content"]: id for id, token in tokens.items() if id not in control}
    pieces = [byte_fallback_piece(text) or spaced_piece(text) for text in texts]
    pieces += [b""] * (vocabulary - count)
    for text, id in words.items():
        pieces[id] = text.encode()
    by_text = {text: id for id, text in control.items()}
    ends = {*end_tokens, *answer_ends(template, by_text)}
    return Tokenizer(
        _encode(_load(path, _without_prefix(_as_control(proto, control))), words),
        pieces,
        control,
        bos=model.bos_id() if model.bos_id() >= 0 else None,
        adds_bos=adds_bos,
        end_tokens=ends | ({model.eos_id()} if model.eos_id() >= 0 else set()),
        space_prefix=" " if model.normalize("a") != "a" else "",
        spacing=Spacing(after_control=legacy),
        added={id: added_flags(token) for id, token in tokens.items() if id in control},
    )


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
    normalizer = _field(1, b"identity") + _number(4, 0)
    proto = b"".join(parts) + _field(2, trainer) + _field(3, normalizer)
    return Tokenizer(
        _encode(_load(path, _without_prefix(proto)), {}),
        [byte_fallback_piece(text) or spaced_piece(text) for text in pieces],
        {id: pieces[id] for id, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)},
        bos=bos,
        adds_bos=adds_bos,
        end_tokens=end_tokens,
        space_prefix=" " if space_prefix else "",
        spacing=Spacing(after_control=True, doubled=True),
    )


def _encode(model: SentencePieceProcessor, words: Mapping[str, int]) -> Encode:
    """Encodes text in which the `words` are tokens of their own."""
    search = search_for(words)

    def encode(text: str) -> list[int]:
        if search is None:
            return model.encode(text)
        ids: list[int] = []
        for place, piece in enumerate(search.split(text)):
            ids += [words[piece]] if place % 2 else model.encode(piece)
        return ids

    return encode


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


def _without_prefix(proto: bytes) -> bytes:
    """The model that puts no space before a text: parsing merges a message that is given again."""
    return proto + _field(3, _number(3, 0))


def _as_control(proto: bytes, control: Mapping[int, str]) -> bytes:
    """The model in which these pieces are control tokens: of a number that is given again, the last
    counts."""
    parts: list[bytes] = []
    id = 0
    for number, field, content in _fields(proto):
        if number == 1:
            field = _field(1, content + _number(3, CONTROL)) if id in control else field
            id += 1
        parts.append(field)
    return b"".join(parts)


def _types(proto: bytes) -> list[int]:
    """The types of all pieces."""
    types: list[int] = []
    for number, _, content in _fields(proto):
        if number == 1:
            types.append(1)
            for key, field, _ in _fields(content):
                if key == 3:
                    types[-1] = field[-1]
    return types


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, bytes and content of each field of a message that the library could parse; the
    content of a number is empty."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _read_varint(message, at)
        content = b""
        if tag & 7 == 0:
            _, at = _read_varint(message, at)
        elif tag & 7 == 2:
            size, at = _read_varint(message, at)
            content, at = message[at : at + size], at + size
        else:
            at += 4 if tag & 7 == 5 else 8
        yield tag >> 3, message[begin:at], content


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


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
