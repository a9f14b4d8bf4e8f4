"""The Llama architecture (arXiv 2302.13971, 2407.21783), and those that differ from it in numbers
and biases only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asgl.errors import ModelError
from asgl.kernels.api import (
    Batch,
    FusedKernels,
    Kernels,
    LayerWeights,
    PartialHead,
    QuantizedTensor,
)
from asgl.models.checkpoint import Checkpoint
from asgl.models.config import ModelConfig


class Llama:
    """A model on the device of `kernels`. Reads all tensors of the checkpoint, and keeps copies
    only.

    `parameters` counts the elements of the checkpoint's tensors.
    """

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels) -> None:
        self.config = config = checkpoint.config
        self.parameters = 0
        self._kernels = kernels
        self._scale = config.head_dim**-0.5

        def read(name: str) -> Tensor | QuantizedTensor:
            tensor = checkpoint.tensor(name)
            self.parameters += math.prod(tensor.shape)
            return tensor

        def dense(*names: str) -> Tensor:
            parts = [_dense(read(name)) for name in names]
            return torch.cat(parts).to(kernels.device)

        embedding = read("embedding")
        self._embedding = kernels.pack_embedding(embedding)
        self._layers: list[LayerWeights] = []
        for i in range(config.layers):
            at = f"layers.{i}."
            self._layers.append(
                LayerWeights(
                    attention_norm=dense(at + "attention_norm"),
                    qkv=kernels.pack_linear(
                        _stacked([read(at + name) for name in ("q", "k", "v")])
                    ),
                    qkv_bias=dense(at + "q_bias", at + "k_bias", at + "v_bias")
                    if config.attention_bias
                    else None,
                    o=kernels.pack_linear(read(at + "o")),
                    mlp_norm=dense(at + "mlp_norm"),
                    gate_up=kernels.pack_linear(
                        _stacked([read(at + name) for name in ("gate", "up")])
                    ),
                    down=kernels.pack_linear(read(at + "down")),
                )
            )
        self._norm = dense("norm")
        self._head = kernels.pack_head(embedding if config.tied_head else read("head"))
        self._rope = rope_table(config).to(kernels.device)
        self._fused: Any = None
        if isinstance(kernels, FusedKernels):
            self._fused = kernels.fuse(
                self._layers,
                self._norm,
                self._rope,
                config.heads,
                config.kv_heads,
                config.head_dim,
                config.norm_eps,
            )

    def forward(
        self, batch: Batch, caches: Sequence[tuple[Tensor, Tensor]], at: Tensor | None
    ) -> Tensor | None:
        """Computes keys and values of the new tokens of `batch`, and the last hidden states of some
        of them.

        `caches` are the keys and the values of each layer, [slots, kv_heads, head_dim]; the batch's
        slots are written. `at` int64 [m]: flattened tokens; returns what `head` takes, [m, d], or
        None if `at` is None.
        """
        kernels, eps = self._kernels, self.config.norm_eps
        hidden = kernels.embed(self._embedding, batch.input_ids)
        if self._fused is not None and isinstance(
            kernels, FusedKernels
        ):  # the loop below, in one call
            return kernels.run_layers(self._fused, hidden, batch, caches, at)
        delta: Tensor | None = None
        last = len(self._layers) - 1
        for i, (layer, (k_cache, v_cache)) in enumerate(zip(self._layers, caches, strict=True)):
            qkv = kernels.linear(
                kernels.add_rms_norm(hidden, delta, layer.attention_norm, eps), layer.qkv
            )
            if layer.qkv_bias is not None:
                qkv = qkv + layer.qkv_bias.to(qkv.dtype)
            q = kernels.rope_and_store(qkv, batch, self._rope, k_cache, v_cache)
            if i == last and at is None:
                return None
            attended = kernels.attention(q, k_cache, v_cache, batch, self._scale)
            if i == last:  # from here on tokens no longer see each other
                hidden, attended = hidden[at], attended[at]
            delta = kernels.linear(attended, layer.o)
            gate_up = kernels.linear(
                kernels.add_rms_norm(hidden, delta, layer.mlp_norm, eps), layer.gate_up
            )
            delta = kernels.linear(kernels.silu_and_mul(gate_up), layer.down)
        return kernels.add_rms_norm(hidden, delta, self._norm, eps)

    def head(self, hidden: Tensor) -> Tensor:
        """float32 logits [m, vocabulary] of hidden states [m, d]. May be a buffer that the next
        call overwrites."""
        return self._kernels.head(hidden, self._head)

    def head_some(self, hidden: Tensor, token_ids: Tensor) -> Tensor | None:
        """The logits [m, k] of the tokens `token_ids` (int64 [k]) alone; None if the back end
        computes all or none."""
        kernels = self._kernels
        return (
            kernels.head_some(hidden, self._head, token_ids)
            if isinstance(kernels, PartialHead)
            else None
        )


def _dense(tensor: Tensor | QuantizedTensor) -> Tensor:
    return (
        tensor.dequantize(torch.float32) if isinstance(tensor, QuantizedTensor) else tensor.float()
    )


def _stacked(parts: Sequence[Tensor | QuantizedTensor]) -> Tensor | QuantizedTensor:
    """One matrix of the rows of all parts, in the parts' format if they have one in common."""
    quantized = [part for part in parts if isinstance(part, QuantizedTensor)]
    if len(quantized) == len(parts) and len({(part.bits, part.group) for part in quantized}) == 1:
        return QuantizedTensor(
            torch.cat([part.quants for part in quantized]),
            torch.cat([part.scale for part in quantized]),
            torch.cat([part.offset for part in quantized]),
            quantized[0].bits,
            quantized[0].group,
        )
    return torch.cat([part if isinstance(part, Tensor) else _dense(part) for part in parts])


def rope_table(config: ModelConfig) -> Tensor:
    """float32 [context, head_dim]: the cosines of each position's angles, then their sines
    (RoFormer, arXiv 2104.09864)."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    if (scaling := config.rope_scaling) is not None:
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise ModelError(
                f"rope scaling: high_freq_factor {scaling.high_freq_factor} must be above "
                "low_freq_factor "
                f"{scaling.low_freq_factor}"
            )
        # waves that fit often into the original context stay; those that hardly fit are stretched;
        # a ramp between
        turns = scaling.original_context * frequencies / (2 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        kept = kept.clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    angles = torch.outer(torch.arange(config.context_length, dtype=torch.float64), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=1).float()
