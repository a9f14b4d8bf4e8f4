"""Which tensors a model has, of which shape, under the names of `models.checkpoint`; and under
which names files have them."""

from __future__ import annotations

import contextlib
import itertools
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

    names: of tensors, this package's to the file's, where {} stands for the layer, and a second {}
    for the expert if each has a tensor of its own. config: reads the settings of a file, given the
    names of its tensors. neutral: settings that `config` does not read, with the values that mean
    nothing to the architecture; all others are refused. interleaved: parts whose rows are in the
    order of a rope of neighbouring pairs, (0, h), (1, h + 1), ..., with h half a head. fused: parts
    that files hold as one, by the name of that in `names`. less_one: whether norms are stored as
    what is added to 1. ignored: the ends of names of tensors that are not needed. rope_factors: the
    tensor that the frequencies of the rope are divided by, if it is there. views: parts that are
    made of another, by its name in `names`, and how.
    """

    names: Mapping[str, str]
    config: Callable[[Settings, Collection[str]], ModelConfig]
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    interleaved: frozenset[str] = frozenset()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    less_one: bool = False
    ignored: tuple[str, ...] = ()
    rope_factors: str = "rope_freqs.weight"
    views: Mapping[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)

    def stored(self, name: str) -> str:
        """The name in the file of the tensor of that name, or of the one that it is a part of;
        still with a {} for the expert, if each has one."""
        first, _, rest = name.partition(".")
        if first != "layers":
            return self.names[name]
        layer, _, part = rest.partition(".")
        part, _ = self.views.get(part, (part, None))
        whole = next((whole for whole, parts in self.fused.items() if part in parts), part)
        return self.names[whole].replace("{}", layer, 1)

    def stored_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of the file, as matrices: parts of one, and the experts of
        one, lie one below the other."""
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            stored = self.stored(name)
            found[stored] = (found.get(stored, (0,))[0] + shape[0], *shape[1:])
        return found

    def rows(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> slice:
        """Which rows of the stored tensor are the tensor of that name."""
        before, _, part = name.rpartition(".")
        for parts in self.fused.values():
            if part in parts:
                ends = itertools.accumulate(shapes[f"{before}.{other}"][0] for other in parts)
                starts = dict(zip(parts, (0, *ends), strict=False))
                return slice(starts[part], starts[part] + shapes[name][0])
        return slice(None)


def both(part: str, stored: str) -> dict[str, str]:
    """The names of a matrix and of its bias."""
    return {part: f"{stored}.weight", f"{part}_bias": f"{stored}.bias"}


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the model needs."""
    d, head_dim = config.hidden_size, config.head_dim
    q, kv = config.heads * head_dim, config.kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocabulary, d)}
    for i in range(config.layers):
        layer: dict[str, tuple[int, ...]] = {}
        if config.norms != "after":
            layer["attention_norm"] = (d,)
        layer |= {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        if config.qk_norm == "head":
            layer |= {"q_norm": (head_dim,), "k_norm": (head_dim,)}
        elif config.qk_norm is not None:
            layer |= {"q_norm": (q,), "k_norm": (kv,)}
        if config.sinks:
            layer["sinks"] = (config.heads,)
        if config.norms != "before":
            layer["post_attention_norm"] = (d,)
        if config.norms != "after":
            layer["mlp_norm"] = (d,)
        if config.has_experts(i):
            layer |= _expert_shapes(config)
        else:
            f = config.intermediate_size
            layer |= {"gate": (f, d), "up": (f, d), "down": (d, f)}
        if config.norms != "before":
            layer["post_mlp_norm"] = (d,)
        biases = {f"{part}_bias": (layer[part][0],) for part in config.biases & layer.keys()}
        shapes |= {f"layers.{i}.{part}": shape for part, shape in (layer | biases).items()}
    shapes["norm"] = (d,)
    if not config.tied_head:
        shapes["head"] = (config.vocabulary, d)
    return shapes


def _expert_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Experts lie one below the other."""
    experts, d = config.experts, config.hidden_size
    assert experts is not None
    count, f = experts.count, experts.width
    shapes: dict[str, tuple[int, ...]] = {
        "router": (count, d),
        "experts_gate": (count * f, d),
        "experts_up": (count * f, d),
        "experts_down": (count * d, f),
    }
    if experts.biases:
        parts = ("router", "experts_gate", "experts_up", "experts_down")
        shapes |= {f"{part}_bias": shapes[part][:1] for part in parts}
    if shared := experts.shared_width:
        shapes |= {"shared_gate": (shared, d), "shared_up": (shared, d), "shared_down": (d, shared)}
        shapes["shared_router"] = (1, d)
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
    if (experts := config.experts) is not None:
        sizes = (experts.count, experts.used, experts.width)
        if min(sizes) < 1 or experts.used > experts.count or max(sizes) > 1 << 20:
            raise ModelError(
                f"{path}: {experts.used} of {experts.count} experts of width {experts.width} make "
                "no sense"
            )
    for window in config.windows:
        if window is not None and window < 1:
            raise ModelError(f"{path}: a sliding window of {window} tokens makes no sense")
    if config.layers > 10_000:
        raise ModelError(f"{path}: {config.layers} layers are more than any model has")
    numbers = {"norm_eps": config.norm_eps}
    for rope in filter(None, (config.rope, config.local_rope)):
        numbers |= {"rope_theta": rope.theta, "the magnitude of rope scaling": rope.magnitude}
        numbers |= {f"rope divisor {i}": number for i, number in enumerate(rope.divisors or ())}
    for name in ("embedding_multiplier", "residual_multiplier", "logit_divisor"):
        numbers[name] = getattr(config, name)
    for name in ("attention_scale", "attention_softcap", "logit_softcap"):
        if (number := getattr(config, name)) is not None:
            numbers[name] = number
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
