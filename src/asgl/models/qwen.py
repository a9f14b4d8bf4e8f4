"""Qwen2, Qwen2.5 (arXiv 2407.10671) and Qwen3 (arXiv 2505.09388): Llama, the one with biases on
queries, keys and values, the other with norms of each head's queries and keys; and both with
experts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from asgl.models import llama
from asgl.models.config import QKV, Experts, ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.settings import Settings
from asgl.models.windows import by_layer_types


def _windowed(settings: Settings, config: ModelConfig) -> ModelConfig:
    """With the windows of the layers after the first max_window_layers, unless layer_types says
    it."""
    first = settings.integer("max_window_layers", 28)
    window = settings.integer("sliding_window", 4096)
    if not settings.flag("use_sliding_window", False):
        window = None
    after = tuple(window if i >= first else None for i in range(config.layers))
    return replace(config, windows=by_layer_types(settings, window, config.layers, after))


def _qwen2(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    return _windowed(settings, replace(config, biases=QKV))


def _qwen3(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors, head_dim=128)
    biases = QKV | {"o"} if settings.flag("attention_bias", False) else frozenset[str]()
    return _windowed(settings, replace(config, biases=biases, qk_norm="head"))


def _qwen2_gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    return replace(llama.gguf(settings, tensors), biases=QKV)


def _qwen3_gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    return replace(llama.gguf(settings, tensors), qk_norm="head")


def _experts(settings: Settings, config: ModelConfig, shared: int, default: int) -> ModelConfig:
    """With the experts of a config.json: so many by default."""
    step = settings.integer("decoder_sparse_step", 1)
    dense = settings.items("mlp_only_layers")
    count = settings.integer("num_experts", settings.integer("num_local_experts", default))
    layers = range(config.layers)
    with_experts = frozenset(i for i in layers if i not in dense and (i + 1) % max(step, 1) == 0)
    if not count or not with_experts:
        return config
    return replace(
        config,
        experts=Experts(
            count=count,
            used=settings.integer("num_experts_per_tok", 4 if shared else 8),
            width=settings.integer("moe_intermediate_size", 1408 if shared else 768),
            renormalized=settings.flag("norm_topk_prob", False),
            shared_width=shared,
            layers=with_experts,
        ),
    )


def _qwen2_moe(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    window = settings.integer("sliding_window", 4096)
    if not settings.flag("use_sliding_window", False):
        window = None
    first = settings.integer("max_window_layers", 28)
    every = tuple(window if i % 2 == 0 and i < first else None for i in range(config.layers))
    config = replace(
        config,
        biases=QKV if settings.flag("qkv_bias", True) else frozenset[str](),
        windows=by_layer_types(settings, window, config.layers, every),
    )
    return _experts(settings, config, settings.integer("shared_expert_intermediate_size", 5632), 60)


def _qwen3_moe(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    window = settings.integer("sliding_window", 4096)
    if not settings.flag("use_sliding_window", False):
        window = None
    config = replace(
        config,
        qk_norm="head",
        biases=QKV | {"o"} if settings.flag("attention_bias", False) else frozenset[str](),
        windows=() if window is None else (window,) * config.layers,
    )
    return _experts(settings, config, 0, 128)


def _moe_gguf(settings: Settings, config: ModelConfig, shared: int) -> ModelConfig:
    return replace(
        config,
        experts=Experts(
            count=settings.integer("expert_count"),
            used=settings.integer("expert_used_count"),
            width=settings.integer("expert_feed_forward_length"),
            renormalized=shared == 0,  # what a file does not say: so are all of these models
            shared_width=shared,
        ),
    )


def _qwen2_moe_gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    shared = settings.integer("expert_shared_feed_forward_length")
    return _moe_gguf(settings, _qwen2_gguf(settings, tensors), shared)


def _qwen3_moe_gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    return _moe_gguf(settings, _qwen3_gguf(settings, tensors), 0)


_NEUTRAL = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "use_mrope": (False,),
}
_HF_NORMS = {
    "q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{}.self_attn.k_norm.weight",
}
_HF_EXPERTS = {
    "router": "model.layers.{}.mlp.gate.weight",
    "experts_gate": "model.layers.{}.mlp.experts.{}.gate_proj.weight",
    "experts_up": "model.layers.{}.mlp.experts.{}.up_proj.weight",
    "experts_down": "model.layers.{}.mlp.experts.{}.down_proj.weight",
    "shared_gate": "model.layers.{}.mlp.shared_expert.gate_proj.weight",
    "shared_up": "model.layers.{}.mlp.shared_expert.up_proj.weight",
    "shared_down": "model.layers.{}.mlp.shared_expert.down_proj.weight",
    "shared_router": "model.layers.{}.mlp.shared_expert_gate.weight",
}
_GGUF_NORMS = {"q_norm": "blk.{}.attn_q_norm.weight", "k_norm": "blk.{}.attn_k_norm.weight"}
_GGUF_EXPERTS = {
    "router": "blk.{}.ffn_gate_inp.weight",
    "experts_gate": "blk.{}.ffn_gate_exps.weight",
    "experts_up": "blk.{}.ffn_up_exps.weight",
    "experts_down": "blk.{}.ffn_down_exps.weight",
    "shared_gate": "blk.{}.ffn_gate_shexp.weight",
    "shared_up": "blk.{}.ffn_up_shexp.weight",
    "shared_down": "blk.{}.ffn_down_shexp.weight",
    "shared_router": "blk.{}.ffn_gate_inp_shexp.weight",
}
_HF, _GGUF = llama.HUGGING_FACE.names, llama.GGUF.names
QWEN2 = FileLayout(_HF, _qwen2, {"attention_bias": (True,), **_NEUTRAL})
QWEN2_GGUF = FileLayout(_GGUF, _qwen2_gguf)
QWEN3 = FileLayout({**_HF, **_HF_NORMS}, _qwen3, _NEUTRAL)
QWEN3_GGUF = FileLayout({**_GGUF, **_GGUF_NORMS}, _qwen3_gguf)
QWEN2_MOE = FileLayout({**_HF, **_HF_EXPERTS}, _qwen2_moe, _NEUTRAL)
QWEN2_MOE_GGUF = FileLayout({**_GGUF, **_GGUF_EXPERTS}, _qwen2_moe_gguf)
QWEN3_MOE = FileLayout({**_HF, **_HF_NORMS, **_HF_EXPERTS}, _qwen3_moe, _NEUTRAL)
QWEN3_MOE_GGUF = FileLayout({**_GGUF, **_GGUF_NORMS, **_GGUF_EXPERTS}, _qwen3_moe_gguf)
