"""Trains a small SentencePiece model for tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import sentencepiece


def corpus() -> Iterator[str]:
    words = [
        "the",
        "a",
        "small",
        "thing",
        "that",
        "other",
        "model",
        "token",
        "tokens",
        "stream",
        "of",
        "and",
        "in",
        "is",
        "on",
    ]
    for i in range(400):
        yield " ".join(words[(i * j + i // 7) % len(words)] for j in range(1, 12)) + f" {i}."


@cache
def train(vocab_size: int = 390, kind: str = "bpe", **options: Any) -> bytes:
    """A serialized model with byte fallback, as Llama's."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=out,
        vocab_size=vocab_size,
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **options,
    )
    return out.getvalue()
