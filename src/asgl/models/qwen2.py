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
    settings.integer("sliding_window", 4096)  # without use_sliding_window it is not used
    beyond = settings.integer("max_window_layers", 28) >= config.layers
    if settings.flag("use_sliding_window", False) and not (kinds or beyond):
        llama.check_window(settings, "sliding_window", config.context_length, 4096)
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
