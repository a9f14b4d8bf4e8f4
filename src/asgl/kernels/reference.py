"""The oracle: every kernel in plain torch, for any device, as near to its definition as it reads.

With dtype float32 all is computed as written. With bfloat16 or float16, weights, keys, values and
the inputs of linear layers are in that dtype; the residual stream, norms, attention, logits and
sampling are float32, as is the weight of the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels import ranking
from asgl.kernels.api import (
    Activation,
    ActivationFormat,
    Attending,
    Batch,
    Rotation,
    SamplingBatch,
    WeightFormat,
)
from asgl.kernels.quantized import QuantizedTensor, quantize

_QUERIES = 128
"""Tokens of a row that attend at once: the memory for scores grows with the context alone."""


class ReferenceKernels:
    """`asgl.kernels.api.Kernels` in plain torch.

    `dtype` is float32, bfloat16 or float16: of weights, keys and values. `weights` int8 or int4
    rounds the linear layers to that format (matrices that come with as few bits are taken as they
    are) and then holds them dense: the numbers of the format, not its speed. `deterministic`
    computes each token by itself, so that its results do not depend, in any bit, on the batch or on
    what was cached; prefill is then as slow as decoding. ConfigError for what is not supported.
    """

    name = "reference"
    activations: ActivationFormat = "auto"

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: WeightFormat = "dense",
        deterministic: bool = False,
    ) -> None:
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(
                f"the reference kernels compute in float32, bfloat16 or float16, not in {dtype}"
            )
        self.device = torch.device(device)
        if deterministic and self.device.type != "cpu":
            raise ConfigError(
                f"the reference kernels are deterministic on the CPU only, not on {self.device}; "
                "use deterministic=False"
            )
        self.kv_dtype = dtype
        self.weights: WeightFormat = weights
        self._deterministic = deterministic
        self._held = torch.float32 if _emulated(dtype, self.device) else dtype

    def pack_linear(
        self, *parts: Tensor | QuantizedTensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        dense = [self._rounded(part) for part in parts]
        weight = dense[0] if len(dense) == 1 else torch.cat(dense)
        return weight, None if bias is None else bias.to(self.device, self._held)

    def _rounded(self, weight: Tensor | QuantizedTensor) -> Tensor:
        if self.weights != "dense":
            bits = 8 if self.weights == "int8" else 4
            if not isinstance(weight, QuantizedTensor) or weight.bits > bits:
                weight = quantize(self._dense(weight, torch.float32), bits)
        return self._dense(weight, self.kv_dtype).to(self._held)

    def pack_head(self, weight: Tensor | QuantizedTensor) -> Tensor:
        return self._dense(weight, torch.float32)

    def pack_embedding(self, weight: Tensor | QuantizedTensor) -> Tensor:
        return self._dense(weight, self.kv_dtype)

    def _dense(self, weight: Tensor | QuantizedTensor, dtype: torch.dtype) -> Tensor:
        """A tensor of our own: what a checkpoint gave is gone when the checkpoint is closed."""
        if isinstance(weight, QuantizedTensor):
            return weight.dequantize(dtype).to(self.device)
        return torch.empty(weight.shape, dtype=dtype, device=self.device).copy_(weight)

    def embed(self, table: Any, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, table).to(torch.float32, copy=True)

    def add_rms_norm(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor:
        if delta is not None:
            hidden += delta
        scale = torch.rsqrt(hidden.square().mean(dim=1, keepdim=True) + eps)
        return (hidden * scale * weight).to(self.kv_dtype)

    def linear(self, x: Tensor, weight: tuple[Tensor, Tensor | None]) -> Tensor:
        return self._product(x.to(self._held), *weight).to(self.kv_dtype)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._deterministic:
            # libraries choose how to add up by the number of rows, and by alignment: hence the copy
            return torch.cat([F.linear(row.clone(), weight, bias) for row in x.split(1)])
        return F.linear(x, weight, bias)

    def rotate_and_store(
        self, qkv: Tensor, batch: Batch, rotation: Rotation, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        q, k, v = rotated(qkv, batch, rotation)
        keys, values = k.to(k_cache.dtype), v.to(v_cache.dtype)
        sound = (keys.isfinite() & values.isfinite()).all(dim=2, keepdim=True)
        k_cache[batch.slots] = keys.where(sound, torch.nan)
        v_cache[batch.slots] = values.where(sound, 0.0)
        return q

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, attending: Attending
    ) -> Tensor:
        n, heads, head_dim = q.shape
        kv_heads = k_cache.shape[1]
        out = q.new_empty(n, kv_heads, heads // kv_heads, head_dim)
        grouped = q.float().view_as(out)
        for tokens, slots in self._pieces(batch):
            queries = grouped[tokens].clone()
            keys, values = k_cache[slots].float(), v_cache[slots].float()
            scores = torch.einsum("nhgd,chd->hgnc", queries, keys) * attending.scale
            if (cap := attending.softcap) is not None:
                scores = torch.tanh(scores / cap) * cap
            unseen = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device)
            last = len(slots) - len(queries)
            if (window := attending.window) is None:
                unseen = unseen.triu(last + 1)
            else:
                unseen = unseen.triu(last + 1) | unseen.tril(last - window)
            scores = scores.masked_fill_(unseen, -torch.inf)
            if attending.sinks is not None:
                sinks = attending.sinks.view(kv_heads, -1, 1, 1).expand(*scores.shape[:3], 1)
                scores = torch.cat((scores, sinks), dim=3)
            weights = torch.softmax(scores, dim=3)[..., : len(slots)]
            out[tokens] = torch.einsum("hgnc,chd->nhgd", weights, values)
        return out.view(n, heads * head_dim).to(self.kv_dtype)

    def _pieces(self, batch: Batch) -> Iterator[tuple[slice, Tensor]]:
        """The new tokens of each row, some at a time, and the slots up to the last of them."""
        qo, kv, indices = (
            batch.qo_indptr.tolist(),
            batch.kv_indptr.tolist(),
            batch.kv_indices.long(),
        )
        most = 1 if self._deterministic else _QUERIES
        for row in range(batch.rows):
            for first in range(qo[row], qo[row + 1], most):
                last = min(first + most, qo[row + 1])
                yield slice(first, last), indices[kv[row] : kv[row + 1] - (qo[row + 1] - last)]

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return gated(gate_up, activation).to(self.kv_dtype)

    def head(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._product(x.float(), weight)

    def head_some(self, x: Tensor, weight: Tensor, token_ids: Tensor) -> Tensor | None:
        if self._deterministic:  # products of another shape may add up in another order
            return None
        return F.linear(x.float(), weight[token_ids])

    def log_softmax(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, dim=1)

    def sample(self, logits: Tensor, how: SamplingBatch) -> Tensor:
        return ranking.sample(logits, how)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def rotated(qkv: Tensor, batch: Batch, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """(queries, keys, values) float32 [n, heads, head_dim] of the product qkv, normed, rotated and
    scaled as `rotation` says."""
    kv_heads, head_dim = rotation.kv_heads, rotation.head_dim
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    parts = qkv.float().split([count * head_dim for count in (heads, kv_heads, kv_heads)], dim=1)
    q, k = (
        _normed(part, weight, head_dim, rotation.eps).view(len(qkv), -1, head_dim)
        for part, weight in zip(parts, (rotation.q_norm, rotation.k_norm), strict=False)
    )
    if rotation.rope is not None:
        cos, sin = rotation.rope[batch.positions].unsqueeze(1).chunk(2, dim=2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if rotation.q_scale is not None:
        q = q * rotation.q_scale[batch.positions].view(-1, 1, 1)
    return q, k, parts[2].reshape(len(qkv), -1, head_dim)


def _normed(x: Tensor, weight: Tensor | None, head_dim: int, eps: float) -> Tensor:
    """The RMS norm of x [n, heads * head_dim] over as much of it as `weight` is long."""
    if weight is None:
        return x
    grouped = x.unflatten(1, (-1, weight.shape[0]))
    scale = torch.rsqrt(grouped.square().mean(dim=2, keepdim=True) + eps)
    return (grouped * scale * weight).flatten(1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of the first dimensions of each head of x [n, heads, head_dim] against
    each other: as many as there are cosines and sines."""
    half = cos.shape[2]
    first, second, rest = x.split((half, half, x.shape[2] - 2 * half), dim=2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=2)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """float32: see `Activation`."""
    gate, up = gate_up.float().chunk(2, dim=1)
    if activation == "silu":
        return F.silu(gate) * up
    if activation == "gelu_tanh":
        return F.gelu(gate, approximate="tanh") * up
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def _emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch emulates products of this dtype, at a hundredth of the speed of float32."""
    if device.type != "cpu" or dtype == torch.float32:
        return False
    has_bfloat16, has_float16 = (
        torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.ops.mkldnn._is_mkldnn_fp16_supported,
    )
    return not (has_bfloat16() if dtype == torch.bfloat16 else has_float16())
