"""Granite 3 (IBM): Llama with multipliers of the embedding, of scores, of what blocks add, and of
the logits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from asgl.models import llama
from asgl.models.config import ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.settings import Settings


def _hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    return replace(
        config,
        biases=llama.biases(settings),
        attention_scale=settings.positive("attention_multiplier", 1.0),
        embedding_multiplier=settings.positive("embedding_multiplier", 1.0),
        residual_multiplier=settings.positive("residual_multiplier", 1.0),
        logit_divisor=settings.positive("logits_scaling", 1.0),
    )


def _gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.gguf(settings, tensors)
    return replace(
        config,
        attention_scale=settings.number("attention.scale", 0.0) or None,
        embedding_multiplier=settings.number("embedding_scale", 0.0) or 1.0,
        residual_multiplier=settings.number("residual_scale", 0.0) or 1.0,
        logit_divisor=settings.number("logit_scale", 0.0) or 1.0,
    )


HUGGING_FACE = FileLayout(
    llama.HUGGING_FACE.names, _hugging_face, {"hidden_act": ("silu", "swish")}
)
GGUF = FileLayout(llama.GGUF.names, _gguf, interleaved=llama.GGUF.interleaved)
