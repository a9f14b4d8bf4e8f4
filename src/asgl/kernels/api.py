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

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from asgl.kernels.quantized import QuantizedTensor

WeightFormat = Literal["dense", "int8", "int4"]
ActivationFormat = Literal["auto", "int8"]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Told the name of the kernel that is being compiled, how many are ready, and how many there
are."""


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
    """What of a model a back end may be unable to compute."""

    head_dim: int
    group: int
    """Query heads that share a KV head."""
    widths: tuple[int, ...]
    """Inputs of its linear layers."""
    features: frozenset[str] = frozenset()
    """What it has that not every back end has: "sliding windows", "caps of attention", "sinks of
    attention" (see `Attending`), "experts"."""


Activation = Literal["silu", "gelu_tanh", "clamped"]
"""What a gate g does to a value u: silu(g) * u (arXiv 2002.05202), gelu(g) * u with the gelu of
tanh (arXiv 1606.08415), or, as gpt-oss does, (u + 1) * g * sigmoid(1.702 g) with g at most 7 and u
within 7 of 0."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What becomes of a layer's queries and keys between their product and the cache. In this
    order: norms, rope, scale."""

    kv_heads: int
    head_dim: int
    rope: Tensor | None
    """float32 [positions, dimensions]: cosines of the dimensions / 2 angles of a position, then
    their sines. The first so many dimensions of a head are rotated, their two halves against each
    other. None: no rotation."""
    q_norm: Tensor | None = None
    """float32 [head_dim], for each head, or [heads * head_dim], for all at once: weights of an RMS
    norm."""
    k_norm: Tensor | None = None
    eps: float = 0.0
    q_scale: Tensor | None = None
    """float32 [positions]: queries are multiplied by that."""


@dataclass(frozen=True, slots=True)
class Attending:
    """How a layer attends."""

    scale: float
    """Of the scores."""
    window: int | None = None
    """How many tokens a token sees, itself among them; None: all."""
    softcap: float | None = None
    """Scores s, scaled, become cap * tanh(s / cap)."""
    sinks: Tensor | None = None
    """float32 [heads]: of each query head a logit more in its softmax, of no value."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """A mixture of experts: see `models.config.Experts` for what is not a weight."""

    router: Any
    """[count, d], as `Kernels.pack_linear` gave it."""
    gate_up: Sequence[Any]
    """For each expert, as `Kernels.pack_linear` gave it."""
    down: Sequence[Any]
    used: int
    over_used: bool
    """Whether the softmax is over the used experts only."""
    renormalized: bool
    activation: Activation
    shared: tuple[Any, Any, Any] | None = None
    """(gate_up, down, router [1, d]) of an expert that all tokens have, times the sigmoid of its
    router."""


class Kernels(Protocol):
    """A back end. Made once per Runtime on its device thread, and called from that thread only."""

    name: str
    device: torch.device
    kv_dtype: torch.dtype
    weights: WeightFormat
    activations: ActivationFormat
    """"int8" if the inputs of linear layers with 4-bit weights are rounded to 8 bits."""

    def pack_linear(self, *parts: Tensor | QuantizedTensor, bias: Tensor | None = None) -> Any:
        """Prepares the weight [out, in] of a linear layer, the rows of all `parts` one below the
        other, and its bias float32 [out]; what comes back is only ever given to `linear`."""
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

    def rotate_and_store(
        self, qkv: Tensor, batch: Batch, rotation: Rotation, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        """Rotates queries and keys, stores keys and values, returns the rotated queries.

        qkv [n, (heads + 2 * kv_heads) * head_dim]: queries, keys, values. k_cache, v_cache [slots,
        kv_heads, head_dim] of one layer, written at `batch.slots`. Returns [n, heads, head_dim].

        Where a key or a value is not finite, NaN goes into the key and zeros into the value: who
        attends to the token gets NaN, and who must not see it does not, for a weight of 0 times NaN
        would be NaN.
        """
        ...

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, attending: Attending
    ) -> Tensor:
        """Softmax(q k^T * scale) v for every new token over its row's context, causal among the
        row's new tokens.

        q as `rotate_and_store` returns it; query head h reads KV head h // (heads // kv_heads).
        Returns [n, heads * head_dim] in the dtype that `linear` takes.
        """
        ...

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """gate_up [n, 2 f]: the gate's activation, times up -> [n, f]."""
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
class RecordingKernels(Protocol):
    """A back end that can run all layers in one call, with the same results as its single
    functions."""

    def record(self, forward: Callable[[Any], object], width: int, eps: float) -> Any:
        """Writes down what `forward` does with the `kernels.forward.Verbs` that it is given, for
        `run`; None if that cannot be done. width, eps: of the residual stream and its norms."""
        ...

    def run(
        self,
        recorded: Any,
        hidden: Tensor,
        batch: Batch,
        caches: Sequence[tuple[Tensor, Tensor]],
        at: Tensor | None,
    ) -> Tensor | None:
        """Does it for the new tokens of `batch`, and from where it keeps the wanted tokens on for
        the tokens `at` (int64 [m]).

        `hidden` [n, d] is overwritten; `caches` hold the keys and values of each layer. Returns
        what `forward` returned, [m, d], or None if `at` is None.
        """
        ...
