"""A directory in Hugging Face's layout as a checkpoint: config.json, *.safetensors, a tokenizer, a
chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asgl.errors import ModelError
from asgl.models.config import ModelConfig, RopeScaling
from asgl.models.layout import check_config, check_tensor, expected_shapes
from asgl.models.tokenizer_directory import open_tokenizer, read_json

_TOP = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})


class SafetensorsCheckpoint:
    """See `models.checkpoint.Checkpoint`. ModelError names the file of the directory that is
    missing or wrong."""

    def __init__(self, directory: str | os.PathLike[str], name: str | None = None) -> None:
        self._directory = Path(directory)
        self.name = name or self._directory.resolve().name
        config = read_json(self._directory / "config.json")
        self._files: dict[str, Any] = {}
        self._where = self._find_tensors()
        self.config = _config(self._directory / "config.json", config, _TOP["head"] in self._where)
        self._shapes = expected_shapes(self.config)
        self._check_names()
        generation = read_json(self._directory / "generation_config.json", optional=True)
        self.tokenizer, self.chat_template = open_tokenizer(
            self._directory,
            vocabulary=self.config.vocabulary,
            end_tokens=_ids(config) | _ids(generation),
        )

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, in the dtype of the file."""
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(f"{self._directory}: the model has no tensor {name!r}")
        stored = _stored_name(name)
        path = self._where[stored]
        try:
            tensor: Tensor = self._files[str(path)].get_tensor(stored)
        except (SafetensorError, KeyError, OSError) as error:
            raise ModelError(f"{path}: tensor {stored!r} cannot be read: {error}") from error
        check_tensor(path, stored, tensor, shape)
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{path}: tensor {stored!r} is of {tensor.dtype}; only float32, float16 and "
                "bfloat16 can "
                "be read"
            )
        return tensor

    def close(self) -> None:
        self._files.clear()

    def _find_tensors(self) -> dict[str, Path]:
        """The file of each tensor, as the index says, or as the files themselves do."""
        index = self._directory / "model.safetensors.index.json"
        if index.exists():
            named: Any = read_json(index).get("weight_map")
            if not isinstance(named, dict) or any(
                file != Path(str(file)).name for file in named.values()
            ):
                raise ModelError(
                    f"{index}: weight_map does not map tensors to files of the same directory"
                )
            where = {str(tensor): self._directory / file for tensor, file in named.items()}
            there = {name for path in sorted(set(where.values())) for name in self._open(path)}
            if missing := where.keys() - there:
                raise ModelError(f"{index}: {min(missing)!r} is in none of the files")
            return where
        files = sorted(self._directory.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"{self._directory}: there is no *.safetensors file; other formats "
                "(pytorch_model.bin) "
                "are not read, convert them"
            )
        return {name: path for path in files for name in self._open(path)}

    def _open(self, path: Path) -> list[str]:
        try:
            self._files[str(path)] = safe_open(path, framework="pt")
            return list(self._files[str(path)].keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: not a whole safetensors file: {error}; fetch it again"
            ) from error

    def _check_names(self) -> None:
        """Every tensor is there, and none that would be ignored: such a model would answer, and be
        wrong."""
        needed = {_stored_name(name) for name in self._shapes}
        if missing := needed - self._where.keys():
            raise ModelError(
                f"{self._directory}: {len(missing)} tensors are missing, among them "
                f"{min(missing)!r}"
            )
        ignorable = {_TOP["head"]} | {
            name for name in self._where if name.endswith("rotary_emb.inv_freq")
        }
        if unknown := self._where.keys() - needed - ignorable:
            raise ModelError(
                f"{self._where[min(unknown)]}: {len(unknown)} tensors are of no use to a model of "
                "the "
                f"architecture {self.config.architecture!r}, among them {min(unknown)!r}; it is a "
                "variant "
                "that is not known"
            )


def _stored_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}"


def _ids(config: Mapping[str, Any]) -> set[int]:
    """The end tokens of a config.json or generation_config.json: one, several or none."""
    ids = config.get("eos_token_id")
    return {
        id for id in (ids if isinstance(ids, list) else [ids]) if isinstance(id, int) and id >= 0
    }


def _config(path: Path, config: Mapping[str, Any], has_head: bool) -> ModelConfig:
    def get(key: str, kind: type | tuple[type, ...] = int, default: Any = None) -> Any:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ModelError(f"{path}: {key} is {value!r:.50}, which it may not be")
        return value

    if get("hidden_act", str, "silu") not in ("silu", "swish"):
        raise ModelError(f"{path}: hidden_act is {config['hidden_act']!r}; only silu is known")
    if config.get("quantization_config"):
        raise ModelError(
            f"{path}: the weights are quantized (quantization_config), which is read from GGUF "
            "files only"
        )
    rope = get("rope_parameters", dict, {})
    scaling = {**get("rope_scaling", dict, {}), **rope}
    heads, hidden = get("num_attention_heads"), get("hidden_size")
    if heads < 1:
        raise ModelError(f"{path}: num_attention_heads is {heads}")
    return check_config(
        path,
        ModelConfig(
            architecture=get("model_type", str),
            layers=get("num_hidden_layers"),
            hidden_size=hidden,
            intermediate_size=get("intermediate_size"),
            heads=heads,
            kv_heads=get("num_key_value_heads", int, heads),
            head_dim=get("head_dim", int, hidden // heads),
            vocabulary=get("vocab_size"),
            context_length=get("max_position_embeddings"),
            rope_theta=float(rope.get("rope_theta") or get("rope_theta", (int, float), 10000.0)),
            norm_eps=float(get("rms_norm_eps", (int, float), 1e-6)),
            tied_head=get("tie_word_embeddings", bool, False) or not has_head,
            attention_bias=get("attention_bias", bool, False),
            rope_scaling=_rope_scaling(path, scaling),
        ),
    )


def _rope_scaling(path: Path, scaling: Mapping[str, Any]) -> RopeScaling | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(f"{path}: rope scaling of the kind {kind!r} is not known, only 'llama3'")
    try:
        return RopeScaling(
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_context=int(scaling["original_max_position_embeddings"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the rope scaling lacks a number: {error}") from error
