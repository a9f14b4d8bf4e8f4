"""The shape of a model, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """What a stretched context does to rope; `models.rope` computes it from a file's settings."""

    divisors: tuple[float, ...]
    """Each of the head_dim / 2 frequencies is divided by its own."""
    magnitude: float = 1.0
    """The rotated queries and keys are multiplied by this (YaRN)."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes are counts of elements; the rope rotates the two halves of a head."""

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    rope_theta: float
    norm_eps: float
    tied_head: bool
    attention_bias: bool = False
    rope_scaling: RopeScaling | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """With keys and values of two bytes."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2
