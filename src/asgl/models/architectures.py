"""The architectures that are computed: a line for each, which names its page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from asgl.errors import ModelError
from asgl.models import gemma, gpt_oss, granite, llama, mistral, olmo, phi3, qwen, smollm3
from asgl.models.layout import FileLayout
from asgl.models.transformer import NormsAfter, Transformer


class Architecture(NamedTuple):
    """model: computes the forward pass. hugging_face, gguf: how files hold it, None if no file of
    that format says this name."""

    model: type[Transformer]
    hugging_face: FileLayout | None
    gguf: FileLayout | None


ARCHITECTURES = {
    "gemma2": Architecture(NormsAfter, gemma.GEMMA2, gemma.GEMMA2_GGUF),
    "gemma3": Architecture(NormsAfter, None, gemma.GEMMA3_GGUF),
    "gemma3_text": Architecture(NormsAfter, gemma.GEMMA3, None),
    "gpt-oss": Architecture(Transformer, None, gpt_oss.GGUF),
    "gpt_oss": Architecture(Transformer, gpt_oss.HUGGING_FACE, None),
    "granite": Architecture(Transformer, granite.HUGGING_FACE, granite.GGUF),
    "llama": Architecture(Transformer, llama.HUGGING_FACE, llama.GGUF),
    "ministral": Architecture(Transformer, mistral.MINISTRAL, None),
    "ministral3": Architecture(Transformer, mistral.MINISTRAL3, None),
    "mistral": Architecture(Transformer, mistral.MISTRAL, None),
    "mistral3": Architecture(Transformer, None, mistral.MISTRAL3_GGUF),
    "olmo2": Architecture(NormsAfter, olmo.OLMO2, olmo.OLMO2_GGUF),
    "olmo3": Architecture(NormsAfter, olmo.OLMO3, None),
    "phi3": Architecture(Transformer, phi3.HUGGING_FACE, phi3.GGUF),
    "qwen2": Architecture(Transformer, qwen.QWEN2, qwen.QWEN2_GGUF),
    "qwen2_moe": Architecture(Transformer, qwen.QWEN2_MOE, None),
    "qwen2moe": Architecture(Transformer, None, qwen.QWEN2_MOE_GGUF),
    "qwen3": Architecture(Transformer, qwen.QWEN3, qwen.QWEN3_GGUF),
    "qwen3_moe": Architecture(Transformer, qwen.QWEN3_MOE, None),
    "qwen3moe": Architecture(Transformer, None, qwen.QWEN3_MOE_GGUF),
    "smollm3": Architecture(Transformer, smollm3.HUGGING_FACE, smollm3.GGUF),
}
"""By model_type of a config.json, and by general.architecture of a GGUF file."""


def architecture(name: str) -> Architecture:
    """The architecture of that name. ModelError, with those that are computed, if there is none."""
    found = ARCHITECTURES.get(name)
    if found is None:
        raise ModelError(_unknown(name, ARCHITECTURES))
    return found


def hugging_face_layout(path: Path, name: object) -> FileLayout:
    """How a directory holds models of that model_type. ModelError, with `path`, if it is not
    computed."""
    known = {key: page.hugging_face for key, page in ARCHITECTURES.items() if page.hugging_face}
    return _found(path, "model_type", name, known)


def gguf_layout(path: Path, name: object) -> FileLayout:
    """How a GGUF file holds models of that general.architecture. ModelError, with `path`, if it is
    not computed."""
    known = {key: page.gguf for key, page in ARCHITECTURES.items() if page.gguf}
    return _found(path, "general.architecture", name, known)


def _found(path: Path, key: str, name: object, known: dict[str, FileLayout]) -> FileLayout:
    if not isinstance(name, str):
        raise ModelError(f"{path}: {key} is {name!r}: it does not say what model this is")
    if name not in known:
        raise ModelError(f"{path}: {key} is {name!r}: {_unknown(name, known)}")
    return known[name]


def _unknown(name: str, known: Iterable[str]) -> str:
    names = ", ".join(sorted(known))
    return f"models of the architecture {name!r} are not computed; those computed are {names}"
