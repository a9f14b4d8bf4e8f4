"""The shape of a model, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from asgl.kernels.api import ModelShape

QKV = frozenset({"q", "k", "v"})
"""Parts that may have biases: the most usual ones."""


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary position embedding; `models.rope` computes it from a file's settings."""

    theta: float
    dimensions: int
    """The first so many dimensions of a head are rotated, their two halves against each other."""
    divisors: tuple[float, ...] | None = None
    """Each of the dimensions / 2 frequencies is divided by its own."""
    magnitude: float = 1.0
    """The rotated queries and keys are multiplied by this (YaRN)."""
    query_growth: tuple[float, int] | None = None
    """(beta, length): queries at a position are multiplied by
    1 + beta * log(1 + floor(position / length)) (Llama 4, Ministral 3)."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in place of a layer's feed-forward network (arXiv 1701.06538)."""

    count: int
    used: int
    """Experts of a token."""
    width: int
    """Of each: as `intermediate_size`."""
    score: Literal["softmax", "softmax of the used"] = "softmax"
    """Softmax over all experts before the best are taken, or over those that are."""
    renormalized: bool = False
    """Whether the weights of a token's experts are divided by their sum."""
    shared_width: int = 0
    """Of an expert that every token has; 0 if there is none."""
    biases: bool = False
    """Whether router and experts have biases."""
    layers: frozenset[int] | None = None
    """The layers that have experts; None: all."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes are counts of elements."""

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    rope: Rope
    norm_eps: float
    tied_head: bool
    biases: frozenset[str] = field(default_factory=frozenset)
    """Of q, k, v, o, gate, up, down those that have a bias."""
    norms: Literal["before", "after", "both"] = "before"
    """Where a block's RMS norms are: of its input, of its output, or both."""
    qk_norm: Literal["head", "all heads"] | None = None
    """Whether queries and keys are normed before they are rotated: each head, or all at once."""
    attention_scale: float | None = None
    """Of scores; None: 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    """Scores s become cap * tanh(s / cap)."""
    sinks: bool = False
    """Whether each head has a logit that takes part in its softmax (gpt-oss)."""
    windows: tuple[int | None, ...] = ()
    """For each layer how many tokens one sees, itself among them; None: all. Empty: all layers
    see all."""
    local_rope: Rope | None = None
    """Of the layers with a window, if it is another."""
    unrotated: frozenset[int] = field(default_factory=frozenset)
    """Layers without a rope."""
    activation: Literal["silu", "gelu_tanh", "clamped"] = "silu"
    """Of the gate: see `kernels.api.Activation`."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """Of what each block adds."""
    logit_divisor: float = 1.0
    logit_softcap: float | None = None
    experts: Experts | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """With keys and values of two bytes."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2

    @property
    def shape(self) -> ModelShape:
        """What a back end may be unable to compute."""
        experts = self.experts
        widths = [self.hidden_size, self.heads * self.head_dim]
        if experts is None or experts.layers is not None:
            widths.append(self.intermediate_size)
        if experts is not None:
            widths += filter(None, (experts.width, experts.shared_width))
        features = {
            "sliding windows": any(window is not None for window in self.windows),
            "caps of attention": self.attention_softcap is not None,
            "sinks of attention": self.sinks,
            "experts": experts is not None,
        }
        return ModelShape(
            self.head_dim,
            self.heads // self.kv_heads,
            tuple(widths),
            frozenset(name for name, has in features.items() if has),
        )

    def window(self, layer: int) -> int | None:
        """How many tokens a token of that layer sees; None: all."""
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> Rope | None:
        """How that layer rotates; None: not."""
        if layer in self.unrotated:
            return None
        local = self.local_rope is not None and self.window(layer) is not None
        return self.local_rope if local else self.rope

    def has_experts(self, layer: int) -> bool:
        """Whether that layer has experts in place of one feed-forward network."""
        experts = self.experts
        return experts is not None and (experts.layers is None or layer in experts.layers)
