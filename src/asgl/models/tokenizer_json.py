"""Tokenizers from Hugging Face's `tokenizer.json`, changed so that text is data.

What the file does for whole prompts is taken out, for it belongs to the caller: control tokens are
not looked for in text, nothing is put before or after it, and no space before its first word
(`Tokenizer.space_prefix` says that there was one).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from asgl.errors import ModelError
from asgl.models.tokenizer import (
    Encode,
    Tokenizer,
    byte_fallback_piece,
    byte_level_piece,
    spaced_piece,
)

Json = dict[str, Any]


def tokenizer_json(
    path: Path,
    *,
    vocabulary: int,
    bos: str | None = None,
    adds_bos: bool | None = None,
    end_texts: Iterable[str] = (),
    end_tokens: Iterable[int] = (),
) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    `vocabulary` is the number of rows of the model's embedding. What `tokenizer_config.json` and
    its like say goes into `bos`, `adds_bos`, `end_texts` (texts of tokens) and `end_tokens`; unset,
    `adds_bos` is what the file's post-processor does. ModelError if the file is damaged, or of a
    kind that is not known.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _build(path, content, vocabulary, bos, adds_bos, tuple(end_texts), tuple(end_tokens))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"{path}: not a tokenizer.json that can be read: {type(error).__name__}: {error}"
        ) from error


def _build(
    path: Path,
    content: Json,
    vocabulary: int,
    bos: str | None,
    adds_bos: bool | None,
    end_texts: tuple[str, ...],
    end_tokens: tuple[int, ...],
) -> Tokenizer:
    added = {token["id"]: token for token in content.get("added_tokens") or ()}
    pieces = _pieces(path, content, added, vocabulary)
    control = {
        id: token["content"] for id, token in added.items() if token["special"] and id < vocabulary
    }
    by_text = {text: id for id, text in control.items()}
    first = _first_of_prompt(content.get("post_processor"))
    if bos is None and first in by_text:
        bos = first
    if adds_bos is None:
        adds_bos = bos is not None and first == bos
    ends = {by_text[text] for text in end_texts if text in by_text}.union(end_tokens)
    prefixed = _as_data(content, added, pieces)
    return Tokenizer(
        backend_encode(path, json.dumps(content)),
        pieces,
        control,
        bos=by_text.get(bos or ""),
        adds_bos=adds_bos,
        end_tokens=ends,
        space_prefix=" " if prefixed else "",
    )


def backend_encode(path: Path, definition: str) -> Encode:
    """`encode` of the `tokenizers` library for that definition. ModelError if it is refused."""
    try:
        backend = Backend.from_str(definition)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path}: the tokenizer is refused: {error}") from error
    backend.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    return encode


def _pieces(path: Path, content: Json, added: Mapping[int, Json], vocabulary: int) -> list[bytes]:
    """The bytes of every token."""
    model: Json = content["model"]
    table: Mapping[str, int]
    if model.get("type", "BPE") == "BPE":
        table = model["vocab"]
    elif model["type"] == "Unigram":
        table = {piece: id for id, (piece, _) in enumerate(model["vocab"])}
    else:
        raise ModelError(
            f"{path}: tokenizers of the kind {model['type']!r} are not known, only BPE and Unigram"
        )
    byte_level = _has_step(content, "ByteLevel")
    steps = [content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    if not byte_level and "\u2581" not in json.dumps(steps, ensure_ascii=False):
        raise ModelError(
            f"{path}: neither a byte-level tokenizer nor one of SentencePiece's kind; no other is "
            "known"
        )
    largest = max([*table.values(), *(id for id, token in added.items() if not token["special"])])
    if largest >= vocabulary:
        raise ModelError(
            f"{path}: token {largest} is outside the model's vocabulary of {vocabulary}; the "
            "tokenizer is "
            "that of another model"
        )
    pieces = [b""] * vocabulary
    for text, id in table.items():
        pieces[id] = (
            byte_level_piece(text)
            if byte_level
            else byte_fallback_piece(text) or spaced_piece(text)
        )
    for id, token in added.items():
        if id < vocabulary:
            pieces[id] = token["content"].encode()
    return pieces


def _as_data(content: Json, added: Mapping[int, Json], pieces: list[bytes]) -> bool:
    """Changes the definition as the module says. Whether it put a space before the first word."""
    model: Json = content["model"]
    control = {token["content"] for token in added.values() if token["special"]}
    if model.get("type", "BPE") == "BPE":
        data = {token["content"]: id for id, token in added.items() if not token["special"]}
        model["vocab"] = {
            text: id for text, id in model["vocab"].items() if text not in control
        } | data
        model["merges"] = without_control(model["merges"], control)
        model["dropout"] = None
        if model.get("unk_token") in control:
            model["unk_token"] = None
    else:
        # Unigram numbers its pieces by position: a control token stays there, under a name that no
        # text has
        model["vocab"] = [
            ["\0" * (id + 1) if piece in control else piece, score]
            for id, (piece, score) in enumerate(model["vocab"])
        ]
        lowest = min(score for _, score in model["vocab"])
        for id in range(len(model["vocab"]), len(pieces)):
            is_data = id in added and not added[id]["special"]
            model["vocab"].append([added[id]["content"] if is_data else "\0" * (id + 1), lowest])
    content["added_tokens"] = [token for token in added.values() if not token["special"]]
    content["truncation"] = content["padding"] = content["post_processor"] = None
    content["normalizer"], prepends = _without_prepend(content.get("normalizer"))
    return prepends | _without_space_prefix(content.get("pre_tokenizer"))


def without_control(merges: list[Any], control: set[str]) -> list[Any]:
    """The merges, each "left right" or a pair, that neither make nor use a control token."""
    if not control:
        return merges
    kept: list[Any] = []
    for merge in merges:
        left, right = merge.partition(" ")[::2] if isinstance(merge, str) else merge
        if left not in control and right not in control and left + right not in control:
            kept.append(merge)
    return kept


def _steps(part: Json | None) -> list[Json]:
    """A normalizer, pre-tokenizer, decoder or post-processor as the list of its steps."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = (
        part.get("normalizers")
        or part.get("pretokenizers")
        or part.get("decoders")
        or part.get("processors")
        or []
    )
    return [step for one in inner for step in _steps(one)]


def _has_step(content: Json, kind: str) -> bool:
    return any(
        step["type"] == kind
        for part in ("pre_tokenizer", "decoder")
        for step in _steps(content.get(part))
    )


def _without_prepend(normalizer: Json | None) -> tuple[Json | None, bool]:
    steps = _steps(normalizer)
    kept = [
        step for step in steps if not (step["type"] == "Prepend" and step["prepend"] == "\u2581")
    ]
    return ({"type": "Sequence", "normalizers": kept} if kept else None), len(kept) < len(steps)


def _without_space_prefix(pre_tokenizer: Json | None) -> bool:
    prefixed = False
    for step in _steps(pre_tokenizer):
        if step["type"] == "Metaspace":
            prefixed |= step.get("prepend_scheme", "always") != "never" and step.get(
                "add_prefix_space", True
            )
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        elif step["type"] == "ByteLevel":
            prefixed |= step.get("add_prefix_space", True)
            step["add_prefix_space"] = False
    return prefixed


def _first_of_prompt(post_processor: Json | None) -> str | None:
    """The text of the control token that the post-processor puts before a single sequence, if
    any."""
    for step in _steps(post_processor):
        if (
            step["type"] == "TemplateProcessing"
            and step["single"]
            and "SpecialToken" in step["single"][0]
        ):
            return step["single"][0]["SpecialToken"]["id"]
    return None
