"""The sampling that a model's makers recommend: what a Runtime takes where its user says nothing.

generation_config.json has it for Hugging Face directories, the metadata below general.sampling for
GGUF files. Both may say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asgl.errors import ConfigError, ModelError
from asgl.sampling import SamplingParams

_GGUF = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_HUGGING_FACE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def recommended_hugging_face(path: Path, generation: Mapping[str, Any]) -> SamplingParams:
    """What the content of a generation_config.json recommends: with do_sample false, the likeliest
    tokens. ModelError, with `path`, for values that cannot be."""
    said = {key: value for key in _HUGGING_FACE if (value := generation.get(key)) is not None}
    if generation.get("do_sample") is False:
        penalty = said.get("repetition_penalty")
        said = {"temperature": 0.0} | ({} if penalty is None else {"repetition_penalty": penalty})
    return _params(path, said)


def recommended_gguf(path: Path, metadata: Mapping[str, Any]) -> SamplingParams:
    """What the metadata of a GGUF file recommends. ModelError, with `path`, for values that cannot
    be."""
    return _params(
        path,
        {
            name: value
            for key, name in _GGUF.items()
            if (value := metadata.get(f"general.sampling.{key}")) is not None
        },
    )


def _params(path: Path, said: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**said)
    except ConfigError as error:
        raise ModelError(f"{path}: the sampling that it recommends cannot be: {error}") from error
