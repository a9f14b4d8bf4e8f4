"""The angles of rope, against transformers' own module, whatever way a config.json writes them; and
by llama.cpp's rules for GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_oracle import all_logprobs
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from asgl.errors import ModelError
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.models.gguf_checkpoint import GgufCheckpoint
from asgl.models.rope import rope_table
from asgl.models.safetensors_checkpoint import SafetensorsCheckpoint
from tiny import tiny_directory, tiny_gguf

POSITIONS = 512
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"type": "linear", "factor": 2.0}
WRITTEN: dict[str, dict[str, Any]] = {
    "nothing": {"rope_theta": None},
    "the base at the top": {"rope_theta": 5e5},
    "the base inside": {"rope_theta": None, "rope_scaling": {**LLAMA3, "rope_theta": 5e5}},
    "the base at both places": {"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "rope_theta": 5e5}},
    "the base at both places, new": {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
    "new names": {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    "both names": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rope_scaling": LINEAR,
    },
    "both names, the old one empty": {
        "rope_theta": None,
        "rope_parameters": {**LLAMA3, "rope_theta": 5e5},
        "rope_scaling": None,
    },
    "the original context at the top": {
        "rope_scaling": {key: LLAMA3[key] for key in list(LLAMA3)[:4]},
        "original_max_position_embeddings": 64,
    },
    "the original context at both places": {
        "rope_scaling": LLAMA3,
        "original_max_position_embeddings": 64,
    },
    "no original context": {"rope_scaling": {key: LLAMA3[key] for key in list(LLAMA3)[:4]}},
    "linear": {"rope_scaling": LINEAR},
    "linear, whole number": {"rope_scaling": {"rope_type": "linear", "factor": 3}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "default": {"rope_scaling": {"rope_type": "default"}},
    "a whole head": {"partial_rotary_factor": 1.0},
    "yarn": {"rope_scaling": YARN},
    "yarn, by the context": {"rope_scaling": {**YARN, "factor": None}},
    "yarn, no original context": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, its magnitude": {"rope_scaling": {**YARN, "attention_factor": 0.8}},
    "yarn, scales": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}},
    "yarn, one scale": {"rope_scaling": {**YARN, "mscale": 0.7}},
    "yarn, other turns": {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2}},
    "yarn, not cut": {"rope_scaling": {**YARN, "truncate": False}},
    "yarn, shrinking": {"rope_scaling": {**YARN, "factor": 0.5}},
}


def transformers_table(settings: dict[str, Any]) -> torch.Tensor:
    """Cosines and sines of transformers' module for a model of this config.json."""
    rope = LlamaRotaryEmbedding(LlamaConfig(**settings))
    cos, sin = rope(torch.zeros(1), torch.arange(POSITIONS)[None])
    half = cos.shape[-1] // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=1)


def table(path: Path) -> torch.Tensor:
    opened = GgufCheckpoint(path) if path.suffix == ".gguf" else SafetensorsCheckpoint(path)
    return rope_table(opened.config.rope, POSITIONS)


def settings_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def written(path: Path, **settings: Any) -> Path:
    """A tiny model whose config.json has these settings, and a rope_theta only if it is one."""
    tiny_directory(path, **settings)
    kept = settings_of(path)
    if kept["rope_theta"] is None:
        del kept["rope_theta"]
    (path / "config.json").write_text(json.dumps(kept))
    return path


@pytest.mark.parametrize("how", WRITTEN)
def test_the_table_is_that_of_transformers(tmp_path: Path, how: str) -> None:
    path = written(tmp_path / "tiny", **WRITTEN[how])
    expected = transformers_table(settings_of(path))
    torch.testing.assert_close(table(path), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "su"}}, "rope_scaling.type is 'su'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is None"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor is 0"),
        ({"rope_scaling": {**YARN, "factor": "4"}}, "rope_scaling.factor is '4'"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor is 1.0"),
        ({"rope_scaling": {**LLAMA3, "attention_factor": 2.0}}, "attention_factor is 2.0"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "rope_scaling.factor is 4.0"),
        ({"rope_scaling": {"mrope_section": [2, 3, 3]}}, r"mrope_section is \[2, 3, 3\]"),
        ({"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": 1.0}}},
         "rope_parameters.sliding_attention"),
        ({"rope_scaling": 2.0}, "rope_scaling is 2.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope scaling that makes no sense"),
        ({"rope_scaling": {**YARN, "factor": 10**400}}, "factor is 1000"),
        ({"rope_scaling": {**YARN, "factor": 1e-320, "rope_theta": 1e300}}, "divisor"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "is 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    path = tiny_directory(tmp_path / "tiny", **overrides)
    with pytest.raises(ModelError, match=message):
        SafetensorsCheckpoint(path)


@pytest.mark.parametrize(
    ("metadata", "settings"),
    [
        ({}, {}),
        ({"rope.scaling.factor": 4.0}, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ({"rope.scale_linear": 4.0}, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scale_linear": 2.0},
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 2.0}, {}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
             "rope.scaling.original_context_length": 128},
            {"rope_scaling": YARN},
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        ),
    ],
)  # fmt: skip
def test_gguf_scaling_by_the_rules_of_llama_cpp(
    tmp_path: Path, metadata: dict[str, Any], settings: dict[str, Any]
) -> None:
    """llama.cpp, `llama-model.cpp`: a factor without a type is linear; rope.scale_linear counts if
    rope.scaling.factor is not there; 0 means none; of the type "none" the factor is not used."""
    named = {f"llama.{key}": value for key, value in metadata.items()}
    found = table(tiny_gguf(tmp_path / "tiny.gguf", metadata=named))
    path = tiny_directory(tmp_path / "tiny", **settings)
    expected = transformers_table(settings_of(path))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'"),
        ({"rope.scaling.factor": -2.0}, "scaling by -2"),
        ({"rope.scaling.factor": float("inf")}, "scaling by inf"),
        ({"rope.scaling.attn_factor": 2.0}, "llama.rope.scaling.attn_factor is 2.0"),
        ({"rope.scaling.yarn_ext_factor": 16.0}, "yarn_ext_factor is 16.0"),
        ({"rope.dimension_sections": [4, 4, 4]}, "dimension_sections"),
        ({"rope.dimension_count": 8}, "rope.dimension_count is 8"),
        (
            dict.fromkeys(
                ("attention.key_length", "attention.value_length", "rope.dimension_count"),
                2**31 - 2,
            ),
            "head_dim is 2147483646",
        ),
    ],
)
def test_gguf_scaling_that_cannot_be_computed(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    named = {f"llama.{key}": value for key, value in metadata.items()}
    with pytest.raises(ModelError, match=message):
        GgufCheckpoint(tiny_gguf(tmp_path / "tiny.gguf", metadata=named))


def test_the_table_is_as_long_as_the_cache(tmp_path: Path) -> None:
    """Not as the context that a model declares, which may be 2**31 - 1 positions."""
    long = SafetensorsCheckpoint(
        tiny_directory(tmp_path / "long", max_position_embeddings=2**31 - 1)
    )
    assert rope_table(long.config.rope, 64).shape == (64, 16)
    tokens = list(range(60))
    found, expected = (
        all_logprobs(SerialRunner(checkpoint, ReferenceKernels(), 64), tokens)
        for checkpoint in (long, SafetensorsCheckpoint(tiny_directory(tmp_path / "usual")))
    )
    assert torch.equal(found, expected)
