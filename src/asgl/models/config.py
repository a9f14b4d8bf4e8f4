"""The shape of a model, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's stretching of low rope frequencies (Hugging Face: rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


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
