"""The interface of a kernel back end: a few pure functions over tensors, and one description of a
ragged batch.

Conventions, for all back ends: n is the number of new tokens of the step, d the width of the model.
The residual stream, norms, scores, softmax and logits are float32; weights, keys and values are in
the back end's `kv_dtype`/weight format. What a function returns may be a buffer of the back end
that its next call of the same function overwrites: consume it before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from asgl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

WeightFormat = Literal["dense", "int8", "int4"]
ActivationFormat = Literal["auto", "int8"]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Told the name of the kernel that is being compiled, how many are ready, and how many there
are."""

_CACHED = 2**19
"""So many elements are worked on at once: what is in between stays in the CPU's cache."""


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A matrix of n x k in groups along k, as block formats hold it: value = scale * quant +
    offset.

    `quants` uint8 [n, k], one value a byte: 0..15 if `bits` is 4, 0..255 if it is 8. `scale` and
    `offset` float32 [n, k / group]. Symmetric formats are shifted: Q8_0's int8 q is stored as q +
    128, with offset -128 * scale.
    """

    quants: Tensor
    scale: Tensor
    offset: Tensor
    bits: Literal[4, 8]
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.quants.shape[0], self.quants.shape[1])

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The dense matrix [n, k]."""
        n, k = self.shape
        dense = self.scale.new_empty((n, k), dtype=dtype)
        step = max(1, _CACHED // k)
        for begin in range(0, n, step):
            rows = slice(begin, begin + step)
            grouped = self.quants[rows].unflatten(1, (-1, self.group)).to(self.scale.dtype)
            dense[rows] = (
                grouped.mul_(self.scale[rows].unsqueeze(2))
                .add_(self.offset[rows].unsqueeze(2))
                .flatten(1)
            )
        return dense


_GROUP = 32
"""Weights that share a scale and an offset where dense weights are rounded."""


def quantize(weight: Tensor, bits: Literal[4, 8]) -> QuantizedTensor:
    """Rounds a dense matrix [n, k] to 4 or 8 bits in groups of 32 along k, from each group's least
    to its greatest.

    Scales and offsets are numbers of float16, as model files hold them. ConfigError if k is no
    multiple of 32, or the weights are too large for that.
    """
    n, k = weight.shape
    refused = f"a matrix of {n} x {k} cannot be held in int{bits}"
    if k % _GROUP:
        raise ConfigError(f"{refused}: {k} is no multiple of {_GROUP}; use weights='dense'")
    grouped = weight.float().view(n, k // _GROUP, _GROUP)
    low, high = grouped.aminmax(dim=2)
    low = low.half().float()
    scale = ((high - low) / (2**bits - 1)).clamp_min(2.0**-24).half().float()
    if not (low.isfinite().all() and scale.isfinite().all()):
        raise ConfigError(f"{refused}: its weights leave the range of float16; use weights='dense'")
    quants = ((grouped - low.unsqueeze(2)) / scale.unsqueeze(2)).round_().clamp_(0, 2**bits - 1)
    return QuantizedTensor(quants.byte().view(n, k), scale, low, bits, _GROUP)


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a step, in CSR form; see `asgl.plan` for what the fields mean. int32 tensors on
    the back end's device."""

    input_ids: Tensor
    """[n]"""
    positions: Tensor
    """[n]"""
    slots: Tensor
    """[n]: where the keys and values of each new token go."""
    qo_indptr: Tensor
    """[rows + 1]: the new tokens of each row."""
    kv_indptr: Tensor
    """[rows + 1]: the context of each row, its new tokens included."""
    kv_indices: Tensor
    """[sum of contexts]: slots."""
    decode_rows: int
    """The first so many rows have one new token each."""
    max_kv: int
    """The longest context."""
    shared: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """Spans (start, end, rows): these rows have the same slots at positions start:end. A hint; see
    `plan.SharedSpan`."""

    @property
    def rows(self) -> int:
        return self.qo_indptr.shape[0] - 1


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How to sample each of m rows of logits. Tensors of m values unless said otherwise."""

    temperature: Tensor
    """float32; 0 is greedy."""
    top_p: Tensor
    """float32; 1 is off."""
    top_k: Tensor
    """int32; 0 is off."""
    min_p: Tensor
    """float32; 0 is off."""
    key: Tensor
    """int64: the row's random number, from which `asgl.kernels.noise` makes those of its tokens."""
    ids: Tensor | None = None
    """int32 [k]: the tokens that there are logits of, in rising order. None: a column's number is
    its token's id."""
    edits: tuple[Tensor, Tensor, Tensor] | None = None
    """(row int64, column int64, added float32), triples without repetition: logit_bias and
    penalties as additions, -inf for banned tokens. None: nothing to add."""
    repetition: tuple[Tensor, Tensor, Tensor] | None = None
    """(row int64, column int64, penalty float32): before `edits`, positive logits are divided,
    negative multiplied."""
    all_greedy: bool = False
    """All temperatures are 0."""
    unfiltered: bool = False
    """top_p, top_k and min_p are off in every row."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that a back end may be unable to compute."""

    head_dim: int
    group: int
    """Query heads that share a KV head."""
    widths: tuple[int, ...]
    """Inputs of its linear layers."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A layer: weights as `Kernels.pack_linear` gave them; norms and biases are float32."""

    attention_norm: Tensor
    qkv: Any
    qkv_bias: Tensor | None
    o: Any
    mlp_norm: Tensor
    gate_up: Any
    down: Any


class Kernels(Protocol):
    """A back end. Made once per Runtime on its device thread, and called from that thread only."""

    name: str
    device: torch.device
    kv_dtype: torch.dtype
    weights: WeightFormat
    activations: ActivationFormat
    """"int8" if the inputs of linear layers with 4-bit weights are rounded to 8 bits."""

    def pack_linear(self, weight: Tensor | QuantizedTensor) -> Any:
        """Prepares the weight [out, in] of a linear layer; what comes back is only ever given to
        `linear`."""
        ...

    def pack_head(self, weight: Tensor | QuantizedTensor) -> Any:
        """Prepares the weight [vocabulary, d] of the output layer; what comes back is only ever
        given to `head` (and `head_some`). It is not put in fewer bits than it has in the file,
        whatever `weights` says."""
        ...

    def pack_embedding(self, weight: Tensor | QuantizedTensor) -> Any:
        """Prepares the table [vocabulary, d] for `embed`."""
        ...

    def embed(self, table: Any, input_ids: Tensor) -> Tensor:
        """float32 [n, d]: the start of the residual stream. A fresh tensor."""
        ...

    def add_rms_norm(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor:
        """Adds `delta` [n, d] (if any) to the float32 residual stream `hidden` [n, d] in place;
        returns the RMS norm of the sum times `weight` (float32 [d]), in the dtype that `linear`
        takes (Zhang and Sennrich, arXiv 1910.07467)."""
        ...

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        """x [n, in] -> [n, out]."""
        ...

    def rope_and_store(
        self, qkv: Tensor, batch: Batch, rope: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        """Rotates queries and keys, stores keys and values, returns the rotated queries.

        qkv [n, (heads + 2 * kv_heads) * head_dim]: queries, keys, values. rope float32 [context,
        head_dim]: cosines of the head_dim / 2 angles of a position, then their sines; halves are
        rotated (x1, x2 are the two halves of a head). k_cache, v_cache [slots, kv_heads, head_dim]
        of one layer, written at `batch.slots`. Returns [n, heads, head_dim].

        Where a key or a value is not finite, NaN goes into the key and zeros into the value: who
        attends to the token gets NaN, and who must not see it does not, for a weight of 0 times NaN
        would be NaN.
        """
        ...

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, scale: float
    ) -> Tensor:
        """Softmax(q k^T * scale) v for every new token over its row's context, causal among the
        row's new tokens.

        q as `rope_and_store` returns it; query head h reads KV head h // (heads // kv_heads).
        Returns [n, heads * head_dim] in the dtype that `linear` takes.
        """
        ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """gate_up [n, 2 f]: silu(gate) * up -> [n, f] (arXiv 2002.05202)."""
        ...

    def head(self, x: Tensor, weight: Any) -> Tensor:
        """float32 logits [m, vocabulary] of the m rows x."""
        ...

    def log_softmax(self, logits: Tensor) -> Tensor:
        """float32 log-probabilities [m, vocabulary]; `logits` is not changed."""
        ...

    def sample(self, logits: Tensor, how: SamplingBatch) -> Tensor:
        """int64 [m]: a column for each row of float32 logits [m, vocabulary]. May overwrite
        `logits`.

        In this order: `repetition`, `edits`, temperature; tokens are ranked likeliest first, of
        equals the lower id; `top_k` keeps the first k, `top_p` the fewest of those that hold the
        share top_p of *their* probability (at least one), `min_p` those with at least min_p times
        the probability of the likeliest. Of what is left the token is taken whose time
        (`asgl.kernels.noise`) divided by its probability is least. Greedy rows take the first of
        the ranking. A row that is no distribution gives -1: after `edits` one of its logits is NaN
        or +inf, or all are -inf.
        """
        ...

    def synchronize(self) -> None:
        """Waits until everything that was launched is done."""
        ...


@runtime_checkable
class PartialHead(Protocol):
    """A back end that can compute the logits of some tokens alone."""

    def head_some(self, x: Tensor, weight: Any, token_ids: Tensor) -> Tensor | None:
        """float32 logits [m, k] of the tokens `token_ids` (int64 [k]) for the m rows x: of what
        `head` gives, those columns, up to rounding. None if all have to be computed."""
        ...


@runtime_checkable
class FusedKernels(Protocol):
    """A back end that can run all layers in one call, with the same results as its single
    functions."""

    def fuse(
        self,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        rope: Tensor,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> Any:
        """Prepares layers for `run_layers`; None if these cannot be fused. Takes what `Kernels`'
        functions take; `norm` is that after the last layer."""
        ...

    def run_layers(
        self,
        fused: Any,
        hidden: Tensor,
        batch: Batch,
        caches: Sequence[tuple[Tensor, Tensor]],
        at: Tensor | None,
    ) -> Tensor | None:
        """Runs all layers over the new tokens of `batch`, and the last norm for the tokens `at`
        (int64 [m]).

        `hidden` [n, d] is overwritten; `caches` hold the keys and values of each layer. Returns
        what `head` takes, [m, d], or None if `at` is None.
        """
        ...
