"""SmolLM3 (Hugging Face): Llama without a rope in every fourth layer (arXiv 2501.18795)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from asgl.models import llama
from asgl.models.config import ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.settings import Settings
from asgl.models.windows import by_layer_types

_EVERY = 4


def _hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    layers = range(config.layers)
    every = settings.integer("no_rope_layer_interval", _EVERY)
    # 1 is for a layer that has a rope
    roped = settings.items("no_rope_layers") or [int((i + 1) % max(every, 1) != 0) for i in layers]
    if len(roped) != config.layers or any(mark not in (0, 1) for mark in roped):
        raise settings.error("no_rope_layers", f"{config.layers} marks of 0 or 1 are needed")
    window = settings.integer("sliding_window", None)
    if not settings.flag("use_sliding_window", False):
        window = None
    default = tuple(None if mark else window for mark in roped)
    return replace(
        config,
        biases=llama.biases(settings),
        unrotated=frozenset(i for i in layers if not roped[i]),
        windows=by_layer_types(settings, window, config.layers, default),
        tied_head=settings.flag("tie_word_embeddings", True),
    )


def _gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.gguf(settings, tensors)
    unrotated = frozenset(range(_EVERY - 1, config.layers, _EVERY))
    return replace(config, unrotated=unrotated)


HUGGING_FACE = FileLayout(
    llama.HUGGING_FACE.names, _hugging_face, {"hidden_act": ("silu", "swish")}
)
GGUF = FileLayout(llama.GGUF.names, _gguf, interleaved=llama.GGUF.interleaved)
