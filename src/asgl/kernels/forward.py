"""The verbs that models write their forward pass in, and how a back end does them one by one.

A page of `asgl.models` says what a layer does, in that order, once. What a verb does depends on who
is given: `StepByStep` computes at once, a back end that records writes a line into a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from asgl.kernels.api import Activation, Attending, Batch, ExpertWeights, Kernels, Rotation


class Verbs(Protocol):
    """What a layer can do with the residual stream, which is not named. What verbs return is only
    ever given to other verbs. Weights are as `Kernels.pack_linear` gave them."""

    @property
    def only_stores(self) -> bool:
        """Whether nothing is wanted but the keys and values of all layers."""
        ...

    def start_layer(self, layer: int) -> None:
        """What follows is of that layer: its cache is read and written."""
        ...

    def norm(self, weight: Tensor | None) -> Any:
        """The RMS norm of the residual stream, times `weight`; None: the stream itself."""
        ...

    def linear(self, x: Any, weight: Any) -> Any:
        """x . weight, and the bias."""
        ...

    def gated(self, x: Any, weight: Any, activation: Activation) -> Any:
        """x . weight, of whose two halves the first gates the second."""
        ...

    def rotate_and_store(self, qkv: Any, rotation: Rotation) -> Any:
        """Queries, rotated; keys and values go to the cache."""
        ...

    def attention(self, q: Any, attending: Attending) -> Any:
        """What each token gathers from those it sees."""
        ...

    def keep_wanted(self, x: Any) -> Any:
        """Of x and of the residual stream only the tokens that are wanted go on."""
        ...

    def add(self, x: Any, weight: Any, factor: float = 1.0) -> None:
        """The residual stream grows by factor * (x . weight, and the bias)."""
        ...

    def add_normed(self, x: Any, weight: Any, norm: Tensor) -> None:
        """The residual stream grows by the RMS norm of (x . weight, and the bias), times `norm`."""
        ...

    def add_experts(self, x: Any, experts: ExpertWeights) -> None:
        """The residual stream grows by what each token's experts make of x."""
        ...


class StepByStep:
    """Does verbs at once, by the functions of a back end.

    hidden: the residual stream [n, d], which is changed. batch, caches: as `Kernels` takes them.
    at: int64 [m], the tokens that are wanted; None: none is. eps: of norms.
    """

    def __init__(
        self,
        kernels: Kernels,
        hidden: Tensor,
        batch: Batch,
        caches: Sequence[tuple[Tensor, Tensor]],
        at: Tensor | None,
        eps: float,
    ) -> None:
        self._kernels, self._batch, self._caches = kernels, batch, caches
        self._hidden, self._at, self._eps = hidden, at, eps
        self._delta: Tensor | None = None
        """What is still to be added to the residual stream: norms do that on the way."""
        self._cache = caches[0]

    @property
    def only_stores(self) -> bool:
        return self._at is None

    def start_layer(self, layer: int) -> None:
        self._cache = self._caches[layer]

    def norm(self, weight: Tensor | None) -> Tensor:
        if weight is None:
            self._settle()
            return self._hidden.to(self._kernels.kv_dtype)
        delta, self._delta = self._delta, None
        return self._kernels.add_rms_norm(self._hidden, delta, weight, self._eps)

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        return self._kernels.linear(x, weight)

    def gated(self, x: Tensor, weight: Any, activation: Activation) -> Tensor:
        return self._kernels.gate(self._kernels.linear(x, weight), activation)

    def rotate_and_store(self, qkv: Tensor, rotation: Rotation) -> Tensor:
        return self._kernels.rotate_and_store(qkv, self._batch, rotation, *self._cache)

    def attention(self, q: Tensor, attending: Attending) -> Tensor:
        return self._kernels.attention(q, *self._cache, self._batch, attending)

    def keep_wanted(self, x: Tensor) -> Tensor:
        self._settle()
        self._hidden = self._hidden[self._at]
        return x[self._at]

    def add(self, x: Tensor, weight: Any, factor: float = 1.0) -> None:
        self._settle()
        delta = self._kernels.linear(x, weight)
        self._delta = delta if factor == 1.0 else delta.float() * factor

    def add_normed(self, x: Tensor, weight: Any, norm: Tensor) -> None:
        self._settle()
        delta = self._kernels.linear(x, weight).float()
        scale = delta.square().mean(dim=1, keepdim=True).add_(self._eps).rsqrt_()
        self._hidden += delta * scale * norm

    def add_experts(self, x: Tensor, experts: ExpertWeights) -> None:
        self._settle()
        kernels = self._kernels
        chosen, shares = route(kernels.linear(x, experts.router).float(), experts)
        grown = self._hidden.new_zeros(self._hidden.shape)
        for expert in chosen.unique().tolist():
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            up = kernels.linear(x[tokens], experts.gate_up[expert])
            down = kernels.linear(kernels.gate(up, experts.activation), experts.down[expert])
            grown.index_add_(0, tokens, down.float() * shares[tokens, places, None])
        if experts.shared is not None:
            gate_up, down, router = experts.shared
            share = kernels.linear(x, router).float().sigmoid()
            inner = kernels.gate(kernels.linear(x, gate_up), experts.activation)
            grown += share * kernels.linear(inner, down).float()
        self._hidden += grown

    def _settle(self) -> None:
        """Adds what is still to be added."""
        if self._delta is not None:
            self._hidden += self._delta
            self._delta = None


def route(logits: Tensor, experts: ExpertWeights) -> tuple[Tensor, Tensor]:
    """The experts of each token, int64 [n, used], best first, and their shares, float32; `logits`
    float32 [n, experts]."""
    if experts.over_used:
        best, chosen = logits.topk(experts.used, dim=1)
        return chosen, best.softmax(dim=1)
    shares, chosen = logits.softmax(dim=1).topk(experts.used, dim=1)
    if experts.renormalized:
        shares = shares / shares.sum(dim=1, keepdim=True)
    return chosen, shares
