"""The oracle: every kernel in plain torch, for any device. Clarity first, yet no Python loop over
tokens.

With dtype float32 all is computed as written. With bfloat16 or float16, weights, keys, values and
the inputs of linear layers are in that dtype; the residual stream, norms, attention, logits and
sampling are float32, as is the weight of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels import ranking
from asgl.kernels.api import ActivationFormat, Batch, QuantizedTensor, SamplingBatch, WeightFormat
from asgl.kernels.ragged import BLOCK, FIXED_QUERIES, Tile, tiles

_ROWS = 16
"""The number of rows that oneDNN lays weights out for; others work as well."""
_GROUP = 32
"""Weights of each row in a group when dense weights are put in int8 or int4."""


def quantize(weight: Tensor, bits: int, group: int = _GROUP) -> QuantizedTensor:
    """Rounds a dense matrix [n, k] to 4 or 8 bits, in groups of `group` along k, from each group's
    least to its greatest.

    ConfigError if k is no multiple of `group`.
    """
    n, k = weight.shape
    if k % group:
        raise ConfigError(
            f"a matrix of {n} x {k} cannot be held in int{bits}: {k} is no multiple of {group}; "
            "use weights='dense'"
        )
    grouped = weight.float().view(n, k // group, group)
    low, high = grouped.aminmax(dim=2)
    scale = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    quants = (
        ((grouped - low.unsqueeze(2)) / scale.unsqueeze(2))
        .round_()
        .clamp_(0, 2**bits - 1)
        .to(torch.uint8)
    )
    return QuantizedTensor(quants.view(n, k), scale, low, 4 if bits == 4 else 8, group)


@dataclass(frozen=True, slots=True)
class Head:
    """The weight of the output layer, as it is and as `head` takes it."""

    dense: Tensor
    packed: Tensor


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)


def _packed_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _packing_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's products with prepacked weights are there and right: they are private to
    torch, hence the test."""
    try:
        weight = torch.linspace(-1, 1, 32 * 64).view(32, 64).to(dtype)
        x = torch.linspace(-1, 1, 3 * 64).view(3, 64).to(dtype)
        found = _packed_linear(x, _pack(weight))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(found, F.linear(x, weight), rtol=0.02, atol=0.02)


class ReferenceKernels:
    """`asgl.kernels.api.Kernels` in plain torch.

    `dtype` is float32, bfloat16 or float16: of weights, keys and values. `weights` int8 or int4
    rounds the linear layers to that format (matrices that come with as few bits are taken as they
    are) and then holds them dense: the numbers of the format, not its speed. `deterministic`: the
    logits of a token do not depend, in any bit, on the batch or on what was cached; prefill is
    slower. ConfigError for what is not supported.
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
        self.kv_dtype = dtype
        self.weights: WeightFormat = weights
        # measured on Zen 5: 1.1 to 3 times as fast as F.linear, and rows do not depend on how many
        # there are, from 2 on
        on_cpu = self.device.type == "cpu"
        self._packs = {kind: on_cpu and _packing_works(kind) for kind in {dtype, torch.float32}}
        self._products = {
            kind: torch.float32 if on_cpu and not packs else kind
            for kind, packs in self._packs.items()
        }
        """What products are computed in: torch emulates those of bfloat16, at a hundredth of the
        speed, where oneDNN has none."""
        if deterministic and not (
            all(self._packs[kind] for kind in self._products.values()) and _products_are_fixed()
        ):
            raise ConfigError(
                f"torch {torch.__version__} on {self.device} has no products whose rows do not "
                "depend on the "
                "batch; use deterministic=False"
            )
        self._deterministic = deterministic
        self._tiled: tuple[Batch, list[Tile]] | None = None
        """The tiles of the batch of the last call: all layers of a step ask for the same."""

    def pack_linear(self, weight: Tensor | QuantizedTensor) -> Any:
        if self.weights != "dense":
            bits = 4 if self.weights == "int4" else 8
            if not isinstance(weight, QuantizedTensor) or weight.bits > bits:
                weight = quantize(self._dense(weight, torch.float32), bits)
        return self._packed(weight, self.kv_dtype)

    def pack_head(self, weight: Tensor | QuantizedTensor) -> Head:
        dense = self._dense(weight, torch.float32)
        return Head(dense, _pack(dense) if self._packs[torch.float32] else dense)

    def _packed(self, weight: Tensor | QuantizedTensor, dtype: torch.dtype) -> Tensor:
        dense = self._dense(weight, dtype).to(self._products[dtype])
        return _pack(dense) if self._packs[dense.dtype] else dense

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if (kind := self._products[x.dtype]) != x.dtype:
            return self._product(x.to(kind), weight).to(x.dtype)
        if not self._packs[x.dtype]:
            return F.linear(x, weight)
        if (
            self._deterministic and len(x) == 1
        ):  # of 1536 inputs or so, oneDNN adds up a lone row in another order
            return _packed_linear(x.expand(2, -1).contiguous(), weight)[:1]
        return _packed_linear(x, weight)

    def pack_embedding(self, weight: Tensor | QuantizedTensor) -> Any:
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

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        return self._product(x, weight)

    def rope_and_store(
        self, qkv: Tensor, batch: Batch, rope: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        _, kv_heads, head_dim = k_cache.shape
        heads = qkv.shape[1] // head_dim - 2 * kv_heads
        q, k, v = qkv.view(-1, heads + 2 * kv_heads, head_dim).split(
            (heads, kv_heads, kv_heads), dim=1
        )
        cos, sin = rope[batch.positions].unsqueeze(1).chunk(2, dim=2)
        keys, values = _rotate(k, cos, sin).to(k_cache.dtype), v.to(v_cache.dtype)
        sound = (keys.isfinite() & values.isfinite()).all(dim=2, keepdim=True)
        k_cache[batch.slots] = keys.where(sound, torch.nan)
        v_cache[batch.slots] = values.where(sound, 0.0)
        return _rotate(q, cos, sin)

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, scale: float
    ) -> Tensor:
        if self._tiled is None or self._tiled[0] is not batch:
            self._tiled = (batch, tiles(batch, q.shape[1], fixed=self._deterministic))
        attend = _attend_in_blocks if self._deterministic else _attend
        n, heads, head_dim = q.shape
        out = q.new_empty(n, heads, head_dim)
        for tile in self._tiled[1]:
            out[tile.flat] = attend(q, k_cache, v_cache, tile, scale)
        return out.view(n, heads * head_dim).to(self.kv_dtype)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        return (F.silu(gate.float()) * up.float()).to(self.kv_dtype)

    def head(self, x: Tensor, weight: Head) -> Tensor:
        return self._product(x.float(), weight.packed)

    def head_some(self, x: Tensor, weight: Head, token_ids: Tensor) -> Tensor | None:
        if self._deterministic:  # products of another shape may add up in another order
            return None
        return F.linear(x.float(), weight.dense[token_ids])

    def log_softmax(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, dim=1)

    def sample(self, logits: Tensor, how: SamplingBatch) -> Tensor:
        return ranking.sample(logits, how)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of each head of x [n, heads, head_dim] against each other, in
    float32."""
    first, second = x.float().chunk(2, dim=2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=2)


def _attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, tile: Tile, scale: float) -> Tensor:
    """The outputs [real queries, heads, head_dim] of the queries of a tile."""
    _, heads, head_dim = q.shape
    kv_heads = k_cache.shape[1]
    rows, queries = tile.queries.shape
    shared = heads // kv_heads
    # [rows, queries, kv_heads, shared, head_dim] -> [rows * kv_heads, queries * shared, head_dim]
    grouped = q[tile.queries].view(rows, queries, kv_heads, shared, head_dim).transpose(1, 2)
    grouped = grouped.reshape(rows * kv_heads, queries * shared, head_dim)
    scores = torch.bmm(grouped, _gather(k_cache, tile.slots).transpose(1, 2)).mul_(scale)
    hidden = torch.arange(tile.slots.shape[1], device=q.device) > tile.last.unsqueeze(2)
    scores.view(rows, kv_heads, queries, shared, -1).masked_fill_(
        hidden[:, None, :, None, :], -torch.inf
    )
    mixed = torch.bmm(torch.softmax(scores, dim=2), _gather(v_cache, tile.slots))
    mixed = mixed.view(rows, kv_heads, queries, shared, head_dim).transpose(1, 2)
    return mixed.reshape(rows * queries, heads, head_dim)[tile.real]


def _attend_in_blocks(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tile: Tile, scale: float
) -> Tensor:
    """As `_attend`, from a fixed tile: partial results of blocks of absolute positions, merged in
    order.

    All products have the same shape, and a block that a query does not see adds exactly nothing: so
    a query's result does not depend on what else is in the tile, nor on the tile's length.
    """
    _, heads, head_dim = q.shape
    kv_heads = k_cache.shape[1]
    rows, queries = tile.queries.shape
    shared, blocks = heads // kv_heads, tile.slots.shape[1] // BLOCK
    stacked = rows * kv_heads * blocks
    grouped = q[tile.queries].view(rows, queries, kv_heads, shared, head_dim).transpose(1, 2)
    grouped = grouped.reshape(rows * kv_heads, 1, queries * shared, head_dim).expand(
        -1, blocks, -1, -1
    )
    keys, values = (
        _gather(cache, tile.slots).reshape(stacked, BLOCK, head_dim) for cache in (k_cache, v_cache)
    )
    scores = torch.bmm(
        grouped.reshape(stacked, queries * shared, head_dim), keys.transpose(1, 2)
    ).mul_(scale)
    hidden = torch.arange(blocks * BLOCK, device=q.device) > tile.last.unsqueeze(2)
    hidden = hidden.view(rows, 1, queries, blocks, 1, BLOCK).transpose(2, 3)
    scores.view(rows, kv_heads, blocks, queries, shared, BLOCK).masked_fill_(hidden, -torch.inf)
    highest = scores.amax(dim=2, keepdim=True)
    weights = torch.exp(scores - highest.clamp_min(torch.finfo(torch.float32).min))
    mass = weights.sum(dim=2, keepdim=True)
    tops, masses, mixtures = (
        part.view(rows * kv_heads, blocks, queries * shared, -1).unbind(dim=1)
        for part in (highest, mass, torch.bmm(weights, values))
    )
    top, total, mixed = tops[0], masses[0], mixtures[0]
    for block in range(1, blocks):
        higher = torch.maximum(top, tops[block])
        old, new = torch.exp(top - higher), torch.exp(tops[block] - higher)
        top, total, mixed = (
            higher,
            total * old + masses[block] * new,
            mixed * old + mixtures[block] * new,
        )
    mixed = (mixed / total).view(rows, kv_heads, queries, shared, head_dim).transpose(1, 2)
    return mixed.reshape(rows * queries, heads, head_dim)[tile.real]


def _products_are_fixed() -> bool:
    """Whether a row of a product of attention's shape has the same bits in each place, and in each
    batch of products."""
    queries = torch.linspace(-1, 1, 3 * FIXED_QUERIES * 64).mul(1e4).sin().view(-1, 64)
    keys = torch.linspace(-1, 1, BLOCK * 64).mul(1e4).cos().view(64, BLOCK)
    expected = torch.bmm(queries.unsqueeze(0), keys.unsqueeze(0))[0]
    turns = range(len(queries))
    found = torch.bmm(
        torch.stack([queries.roll(turn, 0) for turn in turns]), keys.expand(len(queries), -1, -1)
    )
    return all(torch.equal(found[turn], expected.roll(turn, 0)) for turn in turns)


def _gather(cache: Tensor, slots: Tensor) -> Tensor:
    """float32 [rows * kv_heads, context, head_dim] of the slots [rows, context]."""
    rows, context = slots.shape
    _, kv_heads, head_dim = cache.shape
    taken = (
        cache.index_select(0, slots.view(-1))
        .view(rows, context, kv_heads, head_dim)
        .transpose(1, 2)
    )
    return taken.to(torch.float32, memory_format=torch.contiguous_format).reshape(
        rows * kv_heads, context, head_dim
    )
