"""Mistral 7B and its like (arXiv 2310.06825): Llama, without the sliding window, which is refused
where it would be felt. GGUF files call them llama."""

from __future__ import annotations

from collections.abc import Collection

from asgl.models import llama
from asgl.models.config import ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.settings import Settings


def _hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = llama.hugging_face(settings, tensors)
    # transformers takes a key that is not there for a window of 4096, and null for none
    absent = None if settings.mentions("sliding_window") else 4096
    window = settings.integer("sliding_window", absent)
    llama.check_window(settings, "sliding_window", window, config.context_length)
    return config


HUGGING_FACE = FileLayout(llama.HUGGING_FACE.names, _hugging_face, llama.HUGGING_FACE.neutral)
