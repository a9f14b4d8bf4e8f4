"""OLMo 2 (arXiv 2501.00656) and OLMo 3: norms of what each block gives, and of all heads' queries
and keys at once; the latter with windows in three of four layers. GGUF files call both olmo2."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from asgl.models import llama
from asgl.models.config import QKV, ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.rope import section_rope
from asgl.models.settings import Settings
from asgl.models.windows import alternating, by_layer_types, of_gguf

_THETA = 500_000.0
"""The base of OLMo 3's rope where a config.json has none."""


def _after(settings: Settings, config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        biases=QKV | {"o"} if settings.flag("attention_bias", False) else frozenset[str](),
        norms="after",
        qk_norm="all heads",
    )


def _olmo2(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    return _after(settings, llama.hugging_face(settings, tensors, eps=1e-5))


def _olmo3(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    ropes = settings.section("rope_parameters")
    nested = ropes.mentions("full_attention") or ropes.mentions("sliding_attention")
    if ropes and not nested:
        raise settings.error("rope_parameters", "a section for each kind of layers is needed")
    config = llama.hugging_face(settings, tensors, eps=1e-5, nested_rope=nested, theta=_THETA)
    # the layers with windows are not stretched, nor does transformers give them another base
    local_rope = replace(config.rope, theta=_THETA, divisors=None, magnitude=1.0)
    if nested:
        section = ropes.section("sliding_attention")
        local_rope = section_rope(
            settings, section, config.head_dim, config.context_length, theta=_THETA
        )
    window = settings.integer("sliding_window", 4096)
    default = alternating(window, config.layers, 4)
    windows = by_layer_types(settings, window, config.layers, default)
    return replace(_after(settings, config), windows=windows, local_rope=local_rope)


def _gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.gguf(settings, tensors)
    return replace(
        config,
        norms="after",
        qk_norm="all heads",
        windows=of_gguf(settings, config.layers, 4),
        # the layers with windows are not stretched
        local_rope=replace(
            config.rope,
            theta=settings.positive("rope.freq_base_swa", config.rope.theta),
            divisors=None,
            magnitude=1.0,
        ),
    )


_NAMES = {
    **llama.HUGGING_FACE.names,
    "q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "post_attention_norm": "model.layers.{}.post_attention_layernorm.weight",
    "post_mlp_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}
_NEUTRAL = {"hidden_act": ("silu", "swish")}
OLMO2 = FileLayout(_NAMES, _olmo2, _NEUTRAL)
OLMO3 = FileLayout(_NAMES, _olmo3, _NEUTRAL)
OLMO2_GGUF = FileLayout(
    {
        **llama.GGUF.names,
        "q_norm": "blk.{}.attn_q_norm.weight",
        "k_norm": "blk.{}.attn_k_norm.weight",
        "post_attention_norm": "blk.{}.post_attention_norm.weight",
        "post_mlp_norm": "blk.{}.post_ffw_norm.weight",
    },
    _gguf,
)
