"""Phi-3, Phi-3.5 (arXiv 2404.14219) and Phi-4: Llama with fused matrices, a rope of a part of each
head, and LongRoPE.

A model with LongRoPE has the context that it was trained with first, and the short factors: keys
for longer texts would be rotated otherwise, and a cache that programs share cannot hold both.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from asgl.models import llama
from asgl.models.config import ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.rope import longrope_magnitude
from asgl.models.settings import Settings
from asgl.models.windows import uniform


def _hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(
        settings, tensors, kinds=("default", "longrope", "su"), partial=True, eps=1e-5
    )
    windows = uniform(settings.integer("sliding_window", None), config.layers)
    original = settings.integer("original_max_position_embeddings", config.context_length)
    if config.rope.divisors is not None:
        config = replace(config, context_length=min(config.context_length, original))
    return replace(config, windows=windows)


def _gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.gguf(settings, tensors, partial=True)
    original = settings.integer("rope.scaling.original_context_length", config.context_length)
    if "rope_factors_short.weight" in tensors:
        factor = config.context_length / original
        magnitude = settings.number(
            "rope.scaling.attn_factor", longrope_magnitude(factor, original)
        )
        config = replace(
            config,
            rope=replace(config.rope, magnitude=magnitude),
            context_length=min(config.context_length, original),
        )
    window = settings.integer("attention.sliding_window", 0) or None
    return replace(config, windows=uniform(window, config.layers))


_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
HUGGING_FACE = FileLayout(
    {
        **llama.HUGGING_FACE.names,
        "qkv": "model.layers.{}.self_attn.qkv_proj.weight",
        "gate_up": "model.layers.{}.mlp.gate_up_proj.weight",
    },
    _hugging_face,
    {
        "attention_bias": (False,),
        "embd_pdrop": (0.0,),
        "resid_pdrop": (0.0,),
        "hidden_act": ("silu", "swish"),
        "lm_head_bias": (False,),
        "mlp_bias": (False,),
    },
    fused=_FUSED,
)
GGUF = FileLayout(
    {
        **llama.GGUF.names,
        "qkv": "blk.{}.attn_qkv.weight",
        "gate_up": "blk.{}.ffn_up.weight",
    },
    _gguf,
    fused=_FUSED,
    rope_factors="rope_factors_short.weight",
    ignored=("rope_factors_long.weight",),
)
