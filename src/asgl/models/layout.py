"""Which tensors a model has, of which shape, under the names of `models.checkpoint`; and under
which names files have them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asgl.errors import ModelError
from asgl.models.config import ModelConfig
from asgl.models.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from asgl.kernels.quantized import QuantizedTensor

_SIZES = (
    "layers",
    "hidden_size",
    "intermediate_size",
    "heads",
    "kv_heads",
    "head_dim",
    "vocabulary",
    "context_length",
)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """How the files of one format hold the models of one architecture.

    names: of tensors, this package's to the file's, where {} stands for the layer. config: reads
    the settings of a file, given the names of its tensors. neutral: settings that `config` does
    not read, with the values that mean nothing to the architecture; all others are refused.
    interleaved: parts whose rows are in the order of a rope of neighbouring pairs, (0, h), (1, h +
    1), ..., with h half a head.
    """

    names: Mapping[str, str]
    config: Callable[[Settings, Collection[str]], ModelConfig]
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    interleaved: frozenset[str] = frozenset()

    def stored(self, name: str) -> str:
        """The name in the file of the tensor of that name."""
        first, _, rest = name.partition(".")
        if first != "layers":
            return self.names[name]
        layer, _, part = rest.partition(".")
        return self.names[part].format(layer)


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
    for name in _SIZES:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 31:
            raise ModelError(f"{path}: {name} is {value!r}, not a positive number")
    if config.heads % config.kv_heads:
        raise ModelError(
            f"{path}: {config.heads} attention heads cannot share {config.kv_heads} key and value "
            "heads evenly"
        )
    if config.head_dim % 2:
        raise ModelError(
            f"{path}: a head of {config.head_dim} dimensions has no two halves to rotate"
        )
    if config.layers > 10_000:
        raise ModelError(f"{path}: {config.layers} layers are more than any model has")
    numbers = {"rope_theta": config.rope_theta, "norm_eps": config.norm_eps}
    if (scaling := config.rope_scaling) is not None:
        numbers["the magnitude of rope scaling"] = scaling.magnitude
        numbers |= {f"rope divisor {i}": number for i, number in enumerate(scaling.divisors)}
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ModelError(f"{path}: {name} is {number}, not a positive number")
    return config


def check_tensor(
    path: Path, name: str, tensor: Tensor | QuantizedTensor, shape: tuple[int, ...]
) -> None:
    """ModelError unless the tensor has that shape."""
    if tuple(tensor.shape) != shape:
        raise ModelError(
            f"{path}: tensor {name!r} has shape {list(tensor.shape)}, where the model's config "
            f"needs {list(shape)}"
        )


def check_tensor_names(
    path: Path, config: ModelConfig, needed: Collection[str], there: Collection[str]
) -> None:
    """ModelError if a tensor is missing from a model's file, or one would be ignored: such a model
    would answer, and be wrong."""
    if missing := set(needed) - set(there):
        raise ModelError(f"{path}: {_listed(missing)} missing; it is not a whole model")
    if unknown := set(there) - set(needed):
        raise ModelError(
            f"{path}: {_listed(unknown)} of no use to a model of the architecture "
            f"{config.architecture!r}; it is a variant that is not computed"
        )


def _listed(names: set[str]) -> str:
    """The first of some tensors, and how many there are."""
    if len(names) == 1:
        return f"tensor {min(names)!r} is"
    return f"{len(names)} tensors ({', '.join(sorted(names)[:3])}, ...) are"


@contextlib.contextmanager
def panics_refused(path: Path) -> Generator[None]:
    """Raises ModelError for what a library in Rust raises past every `except Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3 exports no such name
            raise
        raise ModelError(f"{path}: the tokenizer cannot be read: {error}") from error
