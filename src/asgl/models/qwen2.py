"""Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases on queries, keys and values. Sliding
windows, which no released model turns on, are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from asgl.models import llama
from asgl.models.config import ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.settings import Settings

_FULL = ("full_attention", "attention")


def _hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    kinds = settings.items("layer_types")
    if any(kind not in _FULL for kind in kinds):
        raise settings.error("layer_types", "only full_attention can be computed")
    # the layers after the first max_window_layers have the window, unless layer_types says it
    windowed = settings.integer("max_window_layers", 28) < config.layers and not kinds
    window = settings.integer("sliding_window", 4096)
    if settings.flag("use_sliding_window", False) and windowed:
        llama.check_window(settings, "sliding_window", window, config.context_length)
    return dataclasses.replace(config, attention_bias=True)


def _gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    return dataclasses.replace(llama.gguf(settings, tensors), attention_bias=True)


HUGGING_FACE = FileLayout(
    llama.HUGGING_FACE.names,
    _hugging_face,
    {
        "attention_bias": (True,),
        "hidden_act": ("silu", "swish"),
        "mlp_bias": (False,),
        "use_mrope": (False,),
    },
)
GGUF = FileLayout(llama.GGUF.names, _gguf)
