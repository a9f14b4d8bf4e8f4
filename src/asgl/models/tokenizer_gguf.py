"""Tokenizers from the metadata of a GGUF file.

`tokenizer.ggml.model` says the kind ("gpt2" is byte-level BPE, "llama" SentencePiece),
`tokenizer.ggml.pre` how byte-level BPE cuts a text into words before it merges. The cutting is not
in the file: it is known by name only, and a name that is not known must be refused, for a wrong one
gives wrong tokens silently. Names and expressions are those of llama.cpp.
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
    byte_level_piece,
    is_marker,
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

_NAMED = ("bos", "eos", "eot", "eom", "padding", "unknown", "seperator", "cls", "mask")
"""Tokens that metadata names by id; llama.cpp spells the separator so."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    _CASELESS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")

_WORDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ["gpt-2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "modern-bert"], (_GPT2,)
    ),
    **dict.fromkeys(
        ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"], (r"\p{N}", _GPT2)
    ),
    **dict.fromkeys(
        ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"], (_LLAMA3,)
    ),
    **dict.fromkeys(["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"], (_QWEN2,)),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
"""The expressions that cut a text, each cutting further what the ones before it left."""
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"})
"""A word that is a token is taken whole, without merging."""
_BOS_BY_DEFAULT = _WHOLE_WORDS_FIRST - {"falcon3"}


def tokenizer_gguf(
    path: Path, metadata: Mapping[str, Any], template: ChatTemplate | None = None
) -> Tokenizer:
    """The tokenizer of a GGUF file whose chat template is `template`. ModelError if it has none, or
    one that is damaged or not known."""
    kind = _get(path, metadata, "model", str, None)
    if kind is None:
        raise ModelError(f"{path}: the file has no tokenizer (tokenizer.ggml.model is missing)")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"{path}: tokenizers of the kind {kind!r} are not known, only 'gpt2' and 'llama'"
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
            types,
            bos=ids["bos"],
            end_tokens=ends,
            adds_bos=_get(path, metadata, "add_bos_token", bool, True),
            space_prefix=_get(path, metadata, "add_space_prefix", bool, True),
        )
    pre = _get(path, metadata, "pre", str, "default")
    if pre not in _WORDS:
        raise ModelError(
            f"{path}: the pre-tokenizer {pre!r} (tokenizer.ggml.pre) is not known; known are "
            f"{', '.join(sorted(_WORDS))}"
        )
    definition = _byte_level_bpe(pre, tokens, types, _list(path, metadata, "merges", str, None))
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
        adds_bos=_get(path, metadata, "add_bos_token", bool, pre in _BOS_BY_DEFAULT),
        space_prefix=" " if _get(path, metadata, "add_space_prefix", bool, False) else "",
        spacing=Spacing(after_control=True),
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
    markers |= {tokens[id] for id in named if id is not None and is_marker(tokens[id])}
    return [
        CONTROL if text in markers and kind != UNKNOWN else kind
        for text, kind in zip(tokens, types, strict=True)
    ]


def _byte_level_bpe(
    pre: str, tokens: list[str], types: list[int], merges: list[str]
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
    cuts = [
        {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
        for words in _WORDS[pre]
    ]
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    vocab = {text: id for id, text in enumerate(tokens) if text not in control}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, to_bytes]},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS_FIRST,
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
