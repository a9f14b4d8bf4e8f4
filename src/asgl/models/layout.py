"""Which tensors a model of a given config has, and of which shape, under the names of
`models.checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asgl.errors import ModelError
from asgl.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from asgl.kernels.api import QuantizedTensor


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the model needs."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocabulary, d)}
    for i in range(config.layers):
        layer = f"layers.{i}."
        shapes |= {
            layer + "attention_norm": (d,),
            layer + "q": (q, d),
            layer + "k": (kv, d),
            layer + "v": (kv, d),
            layer + "o": (d, q),
            layer + "mlp_norm": (d,),
            layer + "gate": (f, d),
            layer + "up": (f, d),
            layer + "down": (d, f),
        }
        if config.attention_bias:
            shapes |= {layer + "q_bias": (q,), layer + "k_bias": (kv,), layer + "v_bias": (kv,)}
    shapes["norm"] = (d,)
    if not config.tied_head:
        shapes["head"] = (config.vocabulary, d)
    return shapes


def check_config(path: Path, config: ModelConfig) -> ModelConfig:
    """The config itself; ModelError if its numbers cannot be those of a model."""
    sizes = {
        name: getattr(config, name)
        for name in (
            "layers",
            "hidden_size",
            "intermediate_size",
            "heads",
            "kv_heads",
            "head_dim",
            "vocabulary",
            "context_length",
        )
    }
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 31:
            raise ModelError(f"{path}: {name} is {value!r}, not a positive number")
    if config.heads % config.kv_heads:
        raise ModelError(
            f"{path}: {config.heads} attention heads cannot share {config.kv_heads} key and value "
            "heads "
            "evenly"
        )
    if config.head_dim % 2:
        raise ModelError(
            f"{path}: a head of {config.head_dim} dimensions has no two halves to rotate"
        )
    if config.layers > 10_000:
        raise ModelError(f"{path}: {config.layers} layers are more than any model has")
    for name, number in (("rope_theta", config.rope_theta), ("norm_eps", config.norm_eps)):
        if not 0 < number < float("inf"):
            raise ModelError(f"{path}: {name} is {number}, not a positive number")
    return config


def check_tensor(
    path: Path, name: str, tensor: Tensor | QuantizedTensor, shape: tuple[int, ...]
) -> None:
    """ModelError unless the tensor has that shape."""
    if tuple(tensor.shape) != shape:
        raise ModelError(
            f"{path}: tensor {name!r} has shape {list(tensor.shape)}, where the model's config "
            "needs "
            f"{list(shape)}"
        )
