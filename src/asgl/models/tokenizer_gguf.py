"""Tokenizers from the metadata of a GGUF file.

`tokenizer.ggml.model` says the kind ("gpt2" is byte-level BPE, "llama" SentencePiece, "gemma4" BPE
over characters), `tokenizer.ggml.pre` how byte-level BPE cuts a text into words before it merges.
The cutting is not in the file: it is known by name only (see `tokenizer_words`), and a name that is
not known must be refused, for a wrong one gives wrong tokens silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import (
    END_OF_GENERATION,
    Spacing,
    Tokenizer,
    byte_fallback_piece,
    byte_level_piece,
    is_marker,
    spaced_piece,
)
from asgl.models.tokenizer_json import (
    answer_ends,
    backend_encode,
    markers_written,
    without_control,
)
from asgl.models.tokenizer_sentencepiece import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    tokenizer_pieces,
)
from asgl.models.tokenizer_words import WORDS

_NAMED = ("bos", "eos", "eot", "eom", "padding", "unknown", "seperator", "cls", "mask")
"""Tokens that metadata names by id; llama.cpp spells the separator so."""


def tokenizer_gguf(
    path: Path, metadata: Mapping[str, Any], template: ChatTemplate | None = None
) -> Tokenizer:
    """The tokenizer of a GGUF file whose chat template is `template`. ModelError if it has none, or
    one that is damaged or not known."""
    kind = _get(path, metadata, "model", str, None)
    if kind is None:
        raise ModelError(f"{path}: the file has no tokenizer (tokenizer.ggml.model is missing)")
    if kind not in ("gpt2", "llama", "gemma4"):
        raise ModelError(
            f"{path}: tokenizers of the kind {kind!r} are not known, only 'gpt2', 'llama' and "
            "'gemma4'"
        )
    tokens = _list(path, metadata, "tokens", str, None)
    types = _list(path, metadata, "token_type", int, len(tokens))
    if len(set(tokens)) != len(tokens):
        raise ModelError(f"{path}: tokenizer.ggml.tokens lists a token twice")
    ids = {name: _token_id(path, metadata, name, len(tokens)) for name in _NAMED}
    types = _with_markers(tokens, types, ids.values(), template)
    control = {id: tokens[id] for id, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)}
    ends = {id for name in ("eos", "eot", "eom") if (id := ids[name]) is not None}
    ends |= answer_ends(template, {text: id for id, text in control.items()})
    if kind == "llama":
        scores = _list(path, metadata, "scores", float, len(tokens))
        return tokenizer_pieces(
            path,
            tokens,
            scores,
            _with_one_unknown(types, ids["unknown"]),
            bos=ids["bos"],
            end_tokens=ends,
            adds_bos=_get(path, metadata, "add_bos_token", bool, True),
            space_prefix=_get(path, metadata, "add_space_prefix", bool, True),
        )
    merges = _list(path, metadata, "merges", str, None)
    if kind == "gemma4":
        return _spaced_bpe(path, metadata, tokens, types, merges, control, ids["bos"], ends)
    pre = _get(path, metadata, "pre", str, "default")
    if pre not in WORDS:
        raise ModelError(
            f"{path}: the pre-tokenizer {pre!r} (tokenizer.ggml.pre) is not known; known are "
            f"{', '.join(sorted(WORDS))}"
        )
    definition = byte_level_bpe(pre, tokens, types, merges)
    pieces = [
        text.encode() if kind == USER_DEFINED else byte_level_piece(text)
        for text, kind in zip(tokens, types, strict=True)
    ]
    return Tokenizer(
        backend_encode(path, json.dumps(definition)),
        pieces,
        control,
        bos=ids["bos"],
        end_tokens=ends,
        adds_bos=_get(path, metadata, "add_bos_token", bool, WORDS[pre].adds_bos),
        space_prefix=" " if _get(path, metadata, "add_space_prefix", bool, False) else "",
        spacing=Spacing(after_control=True),
    )


def byte_level_bpe(
    pre: str, tokens: list[str], types: list[int], merges: list[str]
) -> dict[str, Any]:
    """The definition, in the shape of a `tokenizer.json`, of byte-level BPE that cuts words in the
    way called `pre`, without control tokens."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
        for cut in WORDS[pre].expressions
    ]
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return _bpe(
        tokens,
        types,
        merges,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*cuts, to_bytes]},
        whole_first=WORDS[pre].whole_first,
    )


def _spaced_bpe(
    path: Path,
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: list[int],
    merges: list[str],
    control: Mapping[int, str],
    bos: int | None,
    ends: set[int],
) -> Tokenizer:
    """Gemma 4's: BPE over characters, with U+2581 for a space, and bytes of those it lacks."""
    lines = {"type": "Split", "pattern": {"Regex": r"\n+"}, "behavior": "Isolated", "invert": False}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    definition = _bpe(
        tokens, types, merges, pre_tokenizer=lines, normalizer=spaces, byte_fallback=True
    )
    return Tokenizer(
        backend_encode(path, json.dumps(definition)),
        [byte_fallback_piece(text) or spaced_piece(text) for text in tokens],
        control,
        bos=bos,
        end_tokens=ends,
        adds_bos=_get(path, metadata, "add_bos_token", bool, True),
    )


def chat_template_gguf(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template of a GGUF file, if it has one."""
    source, tokens = (metadata.get(f"tokenizer.{key}") for key in ("chat_template", "ggml.tokens"))
    if not isinstance(source, str):
        return None
    texts = {"bos": "", "eos": ""}
    for name in texts:
        id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(id, int) and isinstance(tokens, list) and 0 <= id < len(tokens):
            texts[name] = tokens[id]
    return ChatTemplate(source, bos=texts["bos"], eos=texts["eos"])


def _with_markers(
    tokens: list[str],
    types: list[int],
    named: Iterable[int | None],
    template: ChatTemplate | None,
) -> list[int]:
    """The types of tokens, where user-defined tokens that are markers are control tokens, and those
    that are named or known to end a generation."""
    defined = [text for text, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    markers = markers_written(template, defined) | END_OF_GENERATION
    named_texts = {tokens[id] for id in named if id is not None and is_marker(tokens[id])}
    if "<eos>" in named_texts:  # where that ends texts, HTML's tags are words, and "</s>" is one
        markers -= {"</s>"}
    markers |= named_texts
    return [
        CONTROL if text in markers and kind != UNKNOWN else kind
        for text, kind in zip(tokens, types, strict=True)
    ]


def _with_one_unknown(types: list[int], unknown: int | None) -> list[int]:
    """The types of tokens, where one alone is the unknown one: that which is named, or the first
    one; files call tokens so that nobody uses."""
    if unknown is None:
        unknown = types.index(UNKNOWN) if UNKNOWN in types else -1
    return [
        UNKNOWN if id == unknown else CONTROL if kind == UNKNOWN else kind
        for id, kind in enumerate(types)
    ]


def _bpe(
    tokens: list[str],
    types: list[int],
    merges: list[str],
    *,
    pre_tokenizer: dict[str, Any],
    normalizer: dict[str, Any] | None = None,
    whole_first: bool = False,
    byte_fallback: bool = False,
) -> dict[str, Any]:
    """The definition in the shape of a `tokenizer.json`, without control tokens. User-defined
    tokens are found in text."""
    control = {text for text, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN)}
    added = [
        {
            "id": id,
            "content": text,
            "special": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for id, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == USER_DEFINED
    ]
    vocab = {text: id for id, text in enumerate(tokens) if text not in control}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": byte_fallback,
            "ignore_merges": whole_first,
            "vocab": vocab,
            "merges": without_control(merges, control),
        },
    }


def _get(path: Path, metadata: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = metadata.get("tokenizer.ggml." + key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ModelError(
            f"{path}: tokenizer.ggml.{key} is {value!r:.50}, not of the type {kind.__name__}"
        )
    return value


def _list(
    path: Path, metadata: Mapping[str, Any], key: str, kind: type, length: int | None
) -> list[Any]:
    values = _get(path, metadata, key, list, [])
    if (
        not values
        or not isinstance(values[0], kind)
        or (length is not None and len(values) != length)
    ):
        raise ModelError(
            f"{path}: tokenizer.ggml.{key} must list {length or 'some'} values of the type "
            f"{kind.__name__}, it lists {len(values)}"
        )
    return values


def _token_id(path: Path, metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    id = _get(path, metadata, f"{name}_token_id", int, None)
    if id is not None and not 0 <= id < count:
        raise ModelError(
            f"{path}: tokenizer.ggml.{name}_token_id is {id}, outside the vocabulary of {count}"
        )
    return id
