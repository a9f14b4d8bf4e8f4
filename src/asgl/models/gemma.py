"""Gemma 2 (arXiv 2408.00118) and Gemma 3 (arXiv 2503.19786): norms around both blocks, windows in
most layers, gates of gelu; the one with caps of tanh, the other with norms of each head's queries
and keys, and a rope of its own in the layers with windows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from asgl.models import llama
from asgl.models.config import QKV, ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.rope import section_rope
from asgl.models.settings import Settings
from asgl.models.windows import alternating, by_layer_types, of_gguf

_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def _common(settings: Settings, config: ModelConfig, full_every: int) -> ModelConfig:
    """What both have in a config.json."""
    window = settings.integer("sliding_window", 4096)
    layers = config.layers
    default = alternating(window, layers, full_every) or (None,) * layers
    activation = settings.text("hidden_activation", "gelu_pytorch_tanh")
    if activation not in _GELU:
        raise settings.error("hidden_activation", f"only {_GELU[0]} can be computed")
    return replace(
        config,
        biases=QKV | {"o"} if settings.flag("attention_bias", False) else frozenset[str](),
        norms="both",
        attention_scale=settings.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=settings.number("attn_logit_softcapping", None),
        logit_softcap=settings.number("final_logit_softcapping", None),
        windows=by_layer_types(settings, window, layers, default),
        activation="gelu_tanh",
        embedding_multiplier=config.hidden_size**0.5,
        tied_head=settings.flag("tie_word_embeddings", True),
    )


def _gemma2(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = _common(settings, llama.hugging_face(settings, tensors, head_dim=256), 2)
    # transformers takes keys that are not there for its defaults, and null for none
    for key, cap in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        if not settings.mentions(key):
            field = "attention_softcap" if key.startswith("attn") else "logit_softcap"
            config = replace(config, **{field: cap})
    return config


def _gemma3(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    ropes = settings.section("rope_parameters")
    nested = ropes.mentions("full_attention") or ropes.mentions("sliding_attention")
    if ropes and not nested:
        raise settings.error("rope_parameters", "a section for each kind of layers is needed")
    config = llama.hugging_face(
        settings, tensors, head_dim=256, theta=1_000_000.0, nested_rope=nested
    )
    local = settings.positive("rope_local_base_freq", 10_000.0)
    if nested:
        section = ropes.section("sliding_attention")
        local_rope = section_rope(
            settings, section, config.head_dim, config.context_length, theta=local
        )
    else:
        local_rope = replace(config.rope, theta=local, divisors=None, magnitude=1.0)
    pattern = settings.integer("sliding_window_pattern", 6)
    pattern = settings.integer("_sliding_window_pattern", pattern)
    return replace(_common(settings, config, pattern), qk_norm="head", local_rope=local_rope)


def _gguf(settings: Settings, tensors: Collection[str], full_every: int) -> ModelConfig:
    config = llama.gguf(settings, tensors)
    return replace(
        config,
        norms="both",
        windows=of_gguf(settings, config.layers, full_every),
        activation="gelu_tanh",
        embedding_multiplier=config.hidden_size**0.5,
    )


def _gemma2_gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = _gguf(settings, tensors, 2)
    # llama.cpp: 27B, the only one of 46 layers, has another scale than its heads suggest
    size = config.hidden_size / config.heads if config.layers == 46 else config.head_dim
    return replace(
        config,
        attention_scale=size**-0.5,
        attention_softcap=settings.number("attn_logit_softcapping", 50.0),
        logit_softcap=settings.number("final_logit_softcapping", 30.0),
    )


def _gemma3_gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = _gguf(settings, tensors, 6)
    # llama.cpp: 27B, the only one of 62 layers, has another scale than its heads suggest
    size = config.hidden_size / config.heads if config.layers == 62 else config.head_dim
    local = settings.positive("rope.freq_base_swa", 10_000.0)
    return replace(
        config,
        qk_norm="head",
        attention_scale=size**-0.5,
        logit_softcap=settings.number("final_logit_softcapping", 0.0) or None,
        local_rope=replace(config.rope, theta=local, divisors=None, magnitude=1.0),
    )


_NAMES = {
    **llama.HUGGING_FACE.names,
    "q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "post_attention_norm": "model.layers.{}.post_attention_layernorm.weight",
    "mlp_norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "post_mlp_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}
_GGUF_NAMES = {
    **llama.GGUF.names,
    "q_norm": "blk.{}.attn_q_norm.weight",
    "k_norm": "blk.{}.attn_k_norm.weight",
    "post_attention_norm": "blk.{}.post_attention_norm.weight",
    "post_mlp_norm": "blk.{}.post_ffw_norm.weight",
}
_NEUTRAL = {
    "hidden_act": _GELU,
    "use_bidirectional_attention": (False,),
}
GEMMA2 = FileLayout(_NAMES, _gemma2, _NEUTRAL, less_one=True)
GEMMA3 = FileLayout(_NAMES, _gemma3, _NEUTRAL, less_one=True)
GEMMA2_GGUF = FileLayout(_GGUF_NAMES, _gemma2_gguf)
GEMMA3_GGUF = FileLayout(_GGUF_NAMES, _gemma3_gguf)
