"""A GGUF file as a checkpoint: config and tokenizer from its metadata, tensors under asgl's
names."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asgl.errors import ModelError
from asgl.kernels.api import QuantizedTensor
from asgl.models.config import ModelConfig, RopeScaling
from asgl.models.gguf import GgufFile
from asgl.models.layout import check_config, check_tensor, expected_shapes
from asgl.models.tokenizer_gguf import chat_template_gguf, tokenizer_gguf

_INTERLEAVED = frozenset({"llama"})
"""Architectures whose q and k rows GGUF stores for a rope of neighbouring pairs."""
_TOP = {"embedding": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"}
_LAYER = {
    "attention_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o": "attn_output.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"


class GgufCheckpoint:
    """See `models.checkpoint.Checkpoint`. ModelError if the file is damaged, or describes a model
    that is not known."""

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self._file = GgufFile(path)
        try:
            metadata = self._file.metadata
            self.name = name or str(metadata.get("general.name") or self._file.path.stem)
            self.config = _config(self._file)
            self._shapes = expected_shapes(self.config)
            self._check_names()
            self.chat_template = chat_template_gguf(metadata)
            self.tokenizer = tokenizer_gguf(self._file.path, metadata, self.chat_template)
            if self.tokenizer.vocabulary != self.config.vocabulary:
                raise ModelError(
                    f"{self._file.path}: the tokenizer has {self.tokenizer.vocabulary} tokens, the "
                    f"embedding {self.config.vocabulary} rows"
                )
        except BaseException:
            self._file.close()
            raise

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """A copy of the tensor of that name."""
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(f"{self._file.path}: the model has no tensor {name!r}")
        stored = _stored_name(name)
        tensor = self._file.tensor(stored)
        check_tensor(self._file.path, stored, tensor, shape)
        part = name.rpartition(".")[2]
        if self.config.architecture in _INTERLEAVED and part in ("q", "k", "q_bias", "k_bias"):
            return _rotate_halves(
                tensor, self.config.heads if part[0] == "q" else self.config.kv_heads
            )
        return tensor

    def close(self) -> None:
        self._file.close()

    def _check_names(self) -> None:
        """Every tensor is there, and none that would be ignored: such a model would answer, and be
        wrong."""
        path, there = self._file.path, self._file.tensors
        needed = {_stored_name(name): shape for name, shape in self._shapes.items()}
        if missing := needed.keys() - there.keys():
            raise ModelError(
                f"{path}: {len(missing)} tensors are missing, among them {min(missing)!r}; the "
                "file is "
                "not a whole model"
            )
        if unknown := there.keys() - needed.keys() - {_ROPE_FACTORS}:
            raise ModelError(
                f"{path}: {len(unknown)} tensors are of no use to a model of the architecture "
                f"{self.config.architecture!r}, among them {min(unknown)!r}; it is a variant that "
                "is not "
                "known"
            )
        for name, shape in needed.items():
            if there[name].shape != shape:
                raise ModelError(
                    f"{path}: tensor {name!r} at offset {there[name].offset} has shape "
                    f"{list(there[name].shape)}, where the model's config needs {list(shape)}"
                )


def _stored_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{_LAYER[part]}"


def _config(file: GgufFile) -> ModelConfig:
    metadata, path = file.metadata, file.path
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(
            f"{path}: general.architecture is {architecture!r}, so it cannot be told what model "
            "this is"
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(
            f"{path}: the model is split over {metadata['split.count']} files; join them with "
            "llama.cpp's "
            "llama-gguf-split --merge"
        )

    def get(key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ModelError(
                f"{path}: the metadata key {architecture}.{key} is {value!r:.50}, where a number "
                "is "
                "needed"
            )
        return value

    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(
            f"{path}: there is no tensor 'token_embd.weight'; the file is not a whole model"
        )
    heads, hidden = get("attention.head_count", int), get("embedding_length", int)
    if heads < 1 or hidden < 1:
        raise ModelError(f"{path}: {heads} attention heads over a width of {hidden}")
    head_dim = get("attention.key_length", int, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, int, head_dim) != head_dim:
            raise ModelError(
                f"{path}: {architecture}.{key} differs from the {head_dim} dimensions of a head, "
                "which is "
                "not known how to compute"
            )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"{path}: rope scaling of the kind {scaling!r} is not known")
    config = ModelConfig(
        architecture=architecture,
        layers=get("block_count", int),
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length", int),
        heads=heads,
        kv_heads=get("attention.head_count_kv", int, heads),
        head_dim=head_dim,
        vocabulary=embedding.shape[0],
        context_length=get("context_length", int),
        rope_theta=float(get("rope.freq_base", (int, float), 10000.0)),
        norm_eps=float(get("attention.layer_norm_rms_epsilon", (int, float))),
        tied_head="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
    )
    check_config(path, config)
    if _ROPE_FACTORS in file.tensors:
        config = dataclasses.replace(config, rope_scaling=_rope_scaling(file, config))
    return config


def _rope_scaling(file: GgufFile, config: ModelConfig) -> RopeScaling:
    """GGUF keeps the factors that Llama 3.1's rope scaling comes to, not its parameters: take the
    released ones, and compare."""
    stored = file.tensor(_ROPE_FACTORS)
    if isinstance(stored, QuantizedTensor) or tuple(stored.shape) != (config.head_dim // 2,):
        raise ModelError(
            f"{file.path}: tensor {_ROPE_FACTORS!r} is not one factor for each of a head's "
            f"{config.head_dim // 2} frequencies"
        )
    factors = stored.double().numpy()
    scaling = RopeScaling(
        factor=float(factors.max()),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context=8192,
    )
    frequencies = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    turns = scaling.original_context * frequencies / (2 * np.pi)
    smooth = np.clip(
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor),
        0,
        1,
    )
    expected = 1 / ((1 - smooth) / scaling.factor + smooth)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ModelError(
            f"{file.path}: the rope factors in {_ROPE_FACTORS!r} are not those of Llama 3.1's "
            "scaling, "
            "and no other is known"
        )
    return scaling


def _rotate_halves(tensor: Tensor | QuantizedTensor, heads: int) -> Tensor | QuantizedTensor:
    """Reorders the rows of each head from pairs (0, h), (1, h + 1), ... to 0, 1, ..., h, h + 1,
    ..., h half a head."""
    rows = tensor.shape[0]
    order = torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(rows)
    if isinstance(tensor, QuantizedTensor):
        return dataclasses.replace(
            tensor,
            quants=tensor.quants[order],
            scale=tensor.scale[order],
            offset=tensor.offset[order],
        )
    return tensor[order]
