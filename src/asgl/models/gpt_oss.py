"""gpt-oss (OpenAI, arXiv 2508.10925): experts with biases and clamped gates, a sink for each head,
windows in every other layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from asgl.kernels.quantized import QuantizedTensor
from asgl.models import llama
from asgl.models.config import QKV, Experts, ModelConfig
from asgl.models.layout import FileLayout, both
from asgl.models.settings import Settings
from asgl.models.windows import alternating, by_layer_types, of_gguf


def _with_experts(config: ModelConfig, count: int, used: int, width: int) -> ModelConfig:
    return replace(
        config,
        biases=QKV | {"o"},
        sinks=True,
        activation="clamped",
        experts=Experts(count, used, width, score="softmax of the used", biases=True),
    )


def _hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors, head_dim=64, theta=150_000.0, eps=1e-5)
    window = settings.integer("sliding_window", 128)
    default = alternating(window, config.layers, 2)
    config = replace(config, windows=by_layer_types(settings, window, config.layers, default))
    used = settings.integer("num_experts_per_tok", settings.integer("experts_per_token", 4))
    count = settings.integer("num_local_experts", 128)
    return _with_experts(config, count, used, config.intermediate_size)


def _gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    # not truncated, as transformers does it, and other than llama.cpp
    config = llama.gguf(settings, tensors, truncated=False)
    config = replace(config, windows=of_gguf(settings, config.layers, 2))
    return _with_experts(
        config,
        settings.integer("expert_count"),
        settings.integer("expert_used_count"),
        settings.integer("expert_feed_forward_length"),
    )


def _rows(whole: Tensor | QuantizedTensor) -> Tensor | QuantizedTensor:
    """Experts [count, in, out] as rows [count * out, in]; quantized ones are rows."""
    return whole.transpose(1, 2).flatten(0, 1) if isinstance(whole, Tensor) else whole


def _every_other(whole: Tensor | QuantizedTensor, first: int) -> Tensor | QuantizedTensor:
    """The gates (0) or the other factors (1) of experts: rows take turns."""
    if isinstance(whole, QuantizedTensor):
        return whole.rows(slice(first, None, 2))
    return _rows(whole[..., first::2])


HUGGING_FACE = FileLayout(
    {
        **llama.HUGGING_FACE.names,
        **both("router", "model.layers.{}.mlp.router"),
        "sinks": "model.layers.{}.self_attn.sinks",
        "experts_gate_up": "model.layers.{}.mlp.experts.gate_up_proj",
        "experts_gate_up_bias": "model.layers.{}.mlp.experts.gate_up_proj_bias",
        "experts_down": "model.layers.{}.mlp.experts.down_proj",
        "experts_down_bias": "model.layers.{}.mlp.experts.down_proj_bias",
    },
    _hugging_face,
    views={
        "experts_gate": ("experts_gate_up", lambda whole: _every_other(whole, 0)),
        "experts_up": ("experts_gate_up", lambda whole: _every_other(whole, 1)),
        "experts_gate_bias": ("experts_gate_up_bias", lambda whole: whole[:, 0::2].flatten()),
        "experts_up_bias": ("experts_gate_up_bias", lambda whole: whole[:, 1::2].flatten()),
        "experts_down": ("experts_down", _rows),
        "experts_down_bias": ("experts_down_bias", lambda whole: whole.flatten()),
    },
    neutral={
        "attention_bias": (True,),
        "hidden_act": ("silu", "swish"),
        "initial_context_length": (4096,),
        "swiglu_alpha": (1.702,),
        "swiglu_limit": (7.0,),
    },
)
GGUF = FileLayout(
    {
        **llama.GGUF.names,
        "mlp_norm": "blk.{}.post_attention_norm.weight",
        "sinks": "blk.{}.attn_sinks.weight",
        **both("router", "blk.{}.ffn_gate_inp"),
        **both("experts_gate", "blk.{}.ffn_gate_exps"),
        **both("experts_up", "blk.{}.ffn_up_exps"),
        **both("experts_down", "blk.{}.ffn_down_exps"),
    },
    _gguf,
)
