"""Mistral 7B (arXiv 2310.06825), Ministral 8B and Ministral 3: Llama with sliding windows, the last
with queries that grow with their position. GGUF files call Mistral 7B llama."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from asgl.models import llama
from asgl.models.config import ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.settings import Settings
from asgl.models.windows import by_layer_types, uniform


def _window(settings: Settings, absent: int | None) -> int | None:
    # transformers takes a key that is not there for its default, and null for none
    default = None if settings.mentions("sliding_window") else absent
    return settings.integer("sliding_window", default)


def _mistral(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    return replace(config, windows=uniform(_window(settings, 4096), config.layers))


def _ministral(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    window = _window(settings, 4096)
    every = uniform(window, config.layers)
    return replace(config, windows=by_layer_types(settings, window, config.layers, every))


def _ministral3(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors, eps=1e-5)
    if config.rope.query_growth is None:
        raise settings.error("rope_parameters", "llama_4_scaling_beta is needed")
    return replace(config, windows=uniform(_window(settings, None), config.layers))


def _mistral3_gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.gguf(settings, tensors)
    beta = settings.number("attention.temperature_scale", 0.0)
    if beta:
        length = settings.integer("rope.scaling.original_context_length")
        config = replace(config, rope=replace(config.rope, query_growth=(beta, length)))
    return config


NEUTRAL = {
    "attention_bias": (False,),
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
}
MISTRAL = FileLayout(llama.HUGGING_FACE.names, _mistral, NEUTRAL)
MINISTRAL = FileLayout(llama.HUGGING_FACE.names, _ministral, NEUTRAL)
MINISTRAL3 = FileLayout(llama.HUGGING_FACE.names, _ministral3, NEUTRAL)
MISTRAL3_GGUF = FileLayout(llama.GGUF.names, _mistral3_gguf, interleaved=llama.GGUF.interleaved)
