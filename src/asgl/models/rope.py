"""Rotary position embeddings (RoFormer, arXiv 2104.09864): the table of angles, and what files say
of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asgl.errors import ModelError
from asgl.models.config import ModelConfig, RopeScaling
from asgl.models.settings import Settings

_ROWS = 1 << 16
"""So many rows of a table are computed at once, in float64."""
_MOST_DIMENSIONS = 1 << 16
"""No head is larger: bounds what a damaged file can make this module compute."""


def rope_table(config: ModelConfig, positions: int) -> Tensor:
    """float32 [n, head_dim]: the cosines of each position's angles, then their sines.

    n is `positions`, or the context's length if that is smaller.
    """
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    magnitude = 1.0
    if (scaling := config.rope_scaling) is not None:
        frequencies = frequencies / torch.tensor(scaling.divisors, dtype=torch.float64)
        magnitude = scaling.magnitude
    table = torch.empty(min(positions, config.context_length), config.head_dim)
    for begin in range(0, len(table), _ROWS):
        rows = table[begin : begin + _ROWS]
        angles = torch.arange(begin, begin + len(rows), dtype=torch.float64)[:, None] * frequencies
        rows[:, :half] = angles.cos() * magnitude
        rows[:, half:] = angles.sin() * magnitude
    return table


def hugging_face_rope(
    settings: Settings, head_dim: int, context: int
) -> tuple[float, RopeScaling | None]:
    """The base and the scaling of a config.json.

    As transformers reads it (`modeling_rope_utils.py`, 5.23): `rope_scaling`, the old name, wins
    over `rope_parameters`; what is inside wins over a key of the same name at the top, but for
    original_max_position_embeddings, where the top wins.
    """
    new = settings.section("rope_parameters")
    rope = settings.section("rope_scaling") or new
    theta = settings.positive("rope_theta", 10_000.0)
    theta = rope.positive("rope_theta", theta)
    kind = rope.text("rope_type", rope.text("type", "default"))
    original = rope.integer("original_max_position_embeddings", context)
    original = settings.integer("original_max_position_embeddings", original)
    for place in (settings, rope):
        if place.number("partial_rotary_factor", 1.0) != 1.0:
            raise place.error("partial_rotary_factor", "only whole heads can be rotated")
    scaling: RopeScaling | None = None
    with _checked(settings, head_dim, original):
        if kind == "linear":
            scaling = _linear(head_dim, rope.positive("factor"))
        elif kind == "llama3":
            scaling = _llama3(rope, theta, head_dim, original)
        elif kind == "yarn":
            scaling = _yarn(rope, theta, head_dim, context, original)
        elif kind == "dynamic":  # stretches only beyond the declared context, where nobody gets
            rope.positive("factor")
        elif kind != "default":
            raise rope.error(
                "rope_type" if rope.mentions("rope_type") else "type",
                "only default, linear, dynamic, llama3 and yarn can be computed",
            )
    rope.finish(frozenset(), {"factor": (1, 1.0)})
    return theta, scaling


def gguf_rope(settings: Settings, head_dim: int, context: int) -> tuple[float, RopeScaling | None]:
    """The base and the scaling of a GGUF file's metadata, by llama.cpp's rules
    (`llama-model.cpp`): a factor without a type is linear, and so is that of the old key
    rope.scale_linear; 0 means none."""
    theta = settings.positive("rope.freq_base", 10_000.0)
    kind = settings.text("rope.scaling.type", "linear")
    old = settings.number("rope.scale_linear", 0.0)
    factor = settings.number("rope.scaling.factor", old) or 1.0
    original = settings.integer("rope.scaling.original_context_length", context)
    if not 0 < factor < math.inf:
        raise ModelError(f"{settings.path}: rope scaling by {factor} makes no sense")
    scaling: RopeScaling | None = None
    with _checked(settings, head_dim, original):
        if kind == "linear":
            scaling = _linear(head_dim, factor) if factor != 1.0 else None
        elif kind == "yarn":
            scaling = _yarn_scaling(theta, head_dim, original, factor)
        elif kind != "none":
            raise settings.error("rope.scaling.type", "only none, linear and yarn can be computed")
    return theta, scaling


def with_rope_factors(config: ModelConfig, factors: Sequence[float]) -> ModelConfig:
    """The config whose frequencies are divided by these factors too, one for each (GGUF:
    rope_freqs.weight, which is what Llama 3's scaling comes to)."""
    before = config.rope_scaling or _linear(config.head_dim, 1.0)
    divisors = tuple(a * b for a, b in zip(before.divisors, factors, strict=True))
    return replace(config, rope_scaling=RopeScaling(divisors, before.magnitude))


@contextlib.contextmanager
def _checked(settings: Settings, head_dim: int, original: int) -> Generator[None]:
    """Raises ModelError for numbers of which no frequencies can be computed."""
    if not 0 < head_dim <= _MOST_DIMENSIONS:
        raise ModelError(f"{settings.path}: head_dim is {head_dim}, which no model has")
    if original < 1:
        raise ModelError(f"{settings.path}: the original context of rope is {original} tokens")
    try:
        yield
    except (ArithmeticError, ValueError) as error:
        raise ModelError(f"{settings.path}: rope scaling that makes no sense: {error}") from error


def _linear(head_dim: int, factor: float) -> RopeScaling:
    return RopeScaling((factor,) * (head_dim // 2))


def _llama3(rope: Settings, theta: float, head_dim: int, original: int) -> RopeScaling:
    """Keeps waves that fit often into the original context, stretches those that hardly fit, with
    a ramp between (Llama 3.1)."""
    factor, low = rope.positive("factor"), rope.number("low_freq_factor")
    high = rope.number("high_freq_factor")
    if not high > low:
        raise rope.error("high_freq_factor", f"it must be above low_freq_factor, {low}")

    def kept(j: int) -> float:
        turns = original * theta ** (-2 * j / head_dim) / (2 * math.pi)
        return (turns - low) / (high - low)

    return _blended(head_dim, factor, kept)


def _yarn(rope: Settings, theta: float, head_dim: int, context: int, original: int) -> RopeScaling:
    factor = rope.positive("factor", context / original)
    magnitude, all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    inferred = None
    if magnitude and all_dim:
        inferred = _yarn_magnitude(factor, magnitude) / _yarn_magnitude(factor, all_dim)
    return _yarn_scaling(
        theta,
        head_dim,
        original,
        factor,
        fast=rope.positive("beta_fast", 32.0),
        slow=rope.positive("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        magnitude=rope.number("attention_factor", inferred),
    )


def _yarn_scaling(
    theta: float,
    head_dim: int,
    original: int,
    factor: float,
    *,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
    magnitude: float | None = None,
) -> RopeScaling:
    """YaRN (arXiv 2309.00071): a ramp between the dimensions that turn `fast` and `slow` times in
    the original context; `magnitude` None is the paper's."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    begin, end = dimension(fast), dimension(slow)
    if truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, head_dim - 1)
    width = end - begin or 0.001
    divided = _blended(head_dim, factor, lambda j: 1 - (j - begin) / width)
    return RopeScaling(
        divided.divisors, _yarn_magnitude(factor) if magnitude is None else magnitude
    )


def _yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _blended(head_dim: int, factor: float, kept: Callable[[int], float]) -> RopeScaling:
    """Frequencies of which the share `kept`, cut off to 0..1, stays, and the rest is divided by
    `factor`."""
    shares = [min(max(kept(j), 0.0), 1.0) for j in range(head_dim // 2)]
    return RopeScaling(tuple(1 / (share + (1 - share) / factor) for share in shares))
