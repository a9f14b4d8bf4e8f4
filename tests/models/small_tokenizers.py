"""Directories with a small tokenizer of one kind or another, as Hugging Face lays them out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny import MERGES, tokenizer_definition, vocabulary

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [chr(code) for code in range(33, 127)]
PAIRS = ["▁ t", "▁ a", "h e", "▁t he", "▁ U", "i s", "▁ ▁", "▁▁ ▁▁", "e r", "▁ H", "▁H i", "o n"]
WORDS = [pair.replace(" ", "") for pair in PAIRS]
SCHEMES = ("bytes", "bytes, spaced", "first", "always", "never", "prepend", "unigram")
VOCABULARY = 512


def added_token(id: int, text: str, special: bool, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": text, "special": special, **plain, **flags}


def definition(scheme: str) -> dict[str, Any]:
    """The content of a tokenizer.json without added tokens."""
    content = tokenizer_definition()
    content["added_tokens"] = []
    if scheme.startswith("bytes"):
        content["pre_tokenizer"]["add_prefix_space"] = scheme == "bytes, spaced"
        tokens, _ = vocabulary()
        kept = tokens[: 256 + len(MERGES)]
        content["model"]["vocab"] = {
            text: id for id, text in enumerate(kept) if not text.startswith("<|")
        }
        return content
    pieces = ["<unk>", *BYTES, "▁", *LETTERS, *WORDS]
    if scheme == "unigram":
        model: dict[str, Any] = {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[piece, -1.0 - len(pieces) / (50.0 * len(piece))] for piece in pieces],
            "byte_fallback": True,
        }
    else:
        model = {
            **content["model"],
            "vocab": {piece: id for id, piece in enumerate(pieces)},
            "merges": PAIRS,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        }
    content["model"] = model
    content["added_tokens"] = [added_token(0, "<unk>", True)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if scheme == "prepend":
        prepend = {"type": "Prepend", "prepend": "▁"}
        content["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
        content["pre_tokenizer"] = None
    else:
        content["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always" if scheme == "unigram" else scheme,
            "split": False,
        }
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    content["decoder"] = {"type": "Sequence", "decoders": steps}
    return content


def directory(
    path: Path,
    scheme: str,
    *,
    special: Sequence[str] = (),
    plain: Sequence[str] = (),
    flags: Mapping[str, bool] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a tokenizer of that scheme, with added tokens that are special or not, and settings
    for tokenizer_config.json."""
    content = definition(scheme)
    table = content["model"]["vocab"]
    known = table if isinstance(table, dict) else {}
    following = len(table)
    for text in dict.fromkeys((*special, *plain)):
        id = known.get(text, following)
        following += id == following
        content["added_tokens"].append(added_token(id, text, text in special, **(flags or {})))
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return path
