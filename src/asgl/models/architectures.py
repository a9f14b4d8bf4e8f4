"""The architectures that are computed: a line for each, which names its page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from asgl.errors import ModelError
from asgl.models import llama, mistral, qwen2
from asgl.models.layout import FileLayout
from asgl.models.llama import Llama


class Architecture(NamedTuple):
    """model: computes the forward pass. hugging_face, gguf: how files hold it, None if no file of
    that format says this name."""

    model: type[Llama]
    hugging_face: FileLayout | None
    gguf: FileLayout | None


ARCHITECTURES = {
    "llama": Architecture(Llama, llama.HUGGING_FACE, llama.GGUF),
    "mistral": Architecture(Llama, mistral.HUGGING_FACE, None),
    "qwen2": Architecture(Llama, qwen2.HUGGING_FACE, qwen2.GGUF),
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
