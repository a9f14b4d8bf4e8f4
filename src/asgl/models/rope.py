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
from asgl.models.config import Rope
from asgl.models.settings import Settings

_ROWS = 1 << 16
"""So many rows of a table are computed at once, in float64."""
_MOST_DIMENSIONS = 1 << 16
"""No head is larger: bounds what a damaged file can make this module compute."""
KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
"""Of rope scaling, as config.json names them."""


def rope_table(rope: Rope, positions: int) -> Tensor:
    """float32 [positions, dimensions]: the cosines of each position's angles, then their sines."""
    half = rope.dimensions // 2
    frequencies = rope.theta ** (-torch.arange(half, dtype=torch.float64) / half)
    if rope.divisors is not None:
        frequencies = frequencies / torch.tensor(rope.divisors, dtype=torch.float64)
    table = torch.empty(positions, rope.dimensions)
    for begin in range(0, positions, _ROWS):
        rows = table[begin : begin + _ROWS]
        angles = torch.arange(begin, begin + len(rows), dtype=torch.float64)[:, None] * frequencies
        rows[:, :half] = angles.cos() * rope.magnitude
        rows[:, half:] = angles.sin() * rope.magnitude
    return table


def query_scales(rope: Rope, positions: int) -> Tensor | None:
    """float32 [positions]: what queries are multiplied by; None for 1 everywhere."""
    if rope.query_growth is None:
        return None
    beta, length = rope.query_growth
    turns = torch.arange(positions, dtype=torch.float64).div(length, rounding_mode="floor")
    return (1 + beta * torch.log1p(turns)).float()


def hugging_face_rope(
    settings: Settings,
    head_dim: int,
    context: int,
    *,
    kinds: Sequence[str] = KINDS,
    partial: bool = False,
    theta: float = 10_000.0,
    nested: bool = False,
) -> Rope:
    """The rope of a config.json. kinds: of scaling that the architecture's page expects. partial:
    whether a part of a head may be rotated. theta: the base if the file names none. nested: whether
    there is a section for each kind of layers, of which this is that of full_attention.

    As transformers reads it (`modeling_rope_utils.py`, 5.23): `rope_scaling`, the old name, wins
    over `rope_parameters`; what is inside wins over a key of the same name at the top, but for
    original_max_position_embeddings, where the top wins.
    """
    new = settings.section("rope_parameters")
    rope = settings.section("rope_scaling") or new
    if nested:
        rope = new.section("full_attention")
        new.section("sliding_attention")
        new.finish(frozenset(), {})
    theta = settings.positive("rope_theta", theta)
    dimensions = head_dim
    for place in (settings, rope):
        part = place.number("partial_rotary_factor", 1.0)
        if part != 1.0 and not (partial and 0 < part < 1):
            raise place.error("partial_rotary_factor", "only whole heads can be rotated")
        if part != 1.0:
            dimensions = int(head_dim * part)
    return section_rope(settings, rope, dimensions, context, kinds=kinds, theta=theta)


def section_rope(
    settings: Settings,
    rope: Settings,
    dimensions: int,
    context: int,
    *,
    kinds: Sequence[str] = KINDS,
    theta: float = 10_000.0,
) -> Rope:
    """The rope that a section of a config.json describes, of so many dimensions."""
    theta = rope.positive("rope_theta", theta)
    kind = rope.text("rope_type", rope.text("type", "default"))
    original = rope.integer("original_max_position_embeddings", context)
    original = settings.integer("original_max_position_embeddings", original)
    growth = rope.number("llama_4_scaling_beta", 0.0)
    with _checked(settings, dimensions, original):
        found = Rope(theta, dimensions)
        if kind not in kinds:
            raise rope.error(
                "rope_type" if rope.mentions("rope_type") else "type",
                f"only {', '.join(kinds[:-1])} and {kinds[-1]} can be computed",
            )
        if kind == "linear":
            found = replace(found, divisors=(rope.positive("factor"),) * (dimensions // 2))
        elif kind == "llama3":
            found = _llama3(rope, found, original)
        elif kind == "yarn":
            found = _yarn(rope, found, context, original)
        elif kind in ("longrope", "su"):
            found = _longrope(rope, found, context, original)
        elif kind == "dynamic":  # stretches only beyond the declared context, where nobody gets
            rope.positive("factor")
    if growth:
        found = replace(found, query_growth=(growth, original))
    rope.finish(frozenset(), {"factor": (1, 1.0), "partial_rotary_factor": (1, 1.0)})
    return found


def gguf_rope(settings: Settings, dimensions: int, context: int, *, truncated: bool = True) -> Rope:
    """The rope of a GGUF file's metadata, by llama.cpp's rules (`llama-model.cpp`): a factor
    without a type is linear, and so is that of the old key rope.scale_linear; 0 means none.
    truncated: whether YaRN's ramp begins and ends at whole dimensions."""
    theta = settings.positive("rope.freq_base", 10_000.0)
    kind = settings.text("rope.scaling.type", "linear")
    old = settings.number("rope.scale_linear", 0.0)
    factor = settings.number("rope.scaling.factor", old) or 1.0
    original = settings.integer("rope.scaling.original_context_length", context)
    if not 0 < factor < math.inf:
        raise ModelError(f"{settings.path}: rope scaling by {factor} makes no sense")
    with _checked(settings, dimensions, original):
        found = Rope(theta, dimensions)
        if kind == "linear":
            if factor != 1.0:
                found = replace(found, divisors=(factor,) * (dimensions // 2))
        elif kind == "yarn":
            found = _yarn_scaled(
                found,
                original,
                factor,
                fast=settings.number("rope.scaling.yarn_beta_fast", 0.0) or 32.0,
                slow=settings.number("rope.scaling.yarn_beta_slow", 0.0) or 1.0,
                truncate=truncated,
            )
            if multiplier := settings.number("rope.scaling.yarn_log_multiplier", 0.0):
                magnitude = _yarn_magnitude(factor) / _yarn_magnitude(factor, multiplier)
                found = replace(found, magnitude=magnitude)
        elif kind != "none":
            raise settings.error("rope.scaling.type", "only none, linear and yarn can be computed")
    return found


def with_rope_factors(rope: Rope, factors: Sequence[float]) -> Rope:
    """The rope whose frequencies are divided by these factors too, one for each (GGUF:
    rope_freqs.weight, which is what Llama 3's scaling comes to)."""
    before = rope.divisors or (1.0,) * (rope.dimensions // 2)
    return replace(rope, divisors=tuple(a * b for a, b in zip(before, factors, strict=True)))


@contextlib.contextmanager
def _checked(settings: Settings, dimensions: int, original: int) -> Generator[None]:
    """Raises ModelError for numbers of which no frequencies can be computed."""
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        raise ModelError(f"{settings.path}: head_dim is {dimensions}, which no model has")
    if dimensions % 2:
        raise ModelError(
            f"{settings.path}: {dimensions} dimensions of a head have no two halves to rotate"
        )
    if original < 1:
        raise ModelError(f"{settings.path}: the original context of rope is {original} tokens")
    try:
        yield
    except (ArithmeticError, ValueError) as error:
        raise ModelError(f"{settings.path}: rope scaling that makes no sense: {error}") from error


def _llama3(rope: Settings, found: Rope, original: int) -> Rope:
    """Keeps waves that fit often into the original context, stretches those that hardly fit, with
    a ramp between (Llama 3.1)."""
    factor, low = rope.positive("factor"), rope.number("low_freq_factor")
    high = rope.number("high_freq_factor")
    if not high > low:
        raise rope.error("high_freq_factor", f"it must be above low_freq_factor, {low}")

    def kept(j: int) -> float:
        turns = original * found.theta ** (-2 * j / found.dimensions) / (2 * math.pi)
        return (turns - low) / (high - low)

    return _blended(found, factor, kept)


def _longrope(rope: Settings, found: Rope, context: int, original: int) -> Rope:
    """LongRoPE (arXiv 2402.13753), its factors for sequences of up to the original context: a page
    that has it declares no longer one, for a cache cannot hold keys of both."""
    factors = rope.items("short_factor")
    for key in ("short_factor", "long_factor"):
        numbers = rope.items(key)
        good = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
        if not good or len(numbers) != found.dimensions // 2:
            raise rope.error(key, f"{found.dimensions // 2} numbers are needed")
    factor = rope.positive("factor", context / original)
    return replace(
        found,
        divisors=tuple(map(float, factors)),
        magnitude=rope.number("attention_factor", longrope_magnitude(factor, original)),
    )


def longrope_magnitude(factor: float, original: int) -> float:
    """What LongRoPE multiplies queries and keys by where a context is `factor` times longer."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _yarn(rope: Settings, found: Rope, context: int, original: int) -> Rope:
    factor = rope.positive("factor", context / original)
    magnitude, all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    inferred = None
    if magnitude and all_dim:
        inferred = _yarn_magnitude(factor, magnitude) / _yarn_magnitude(factor, all_dim)
    return _yarn_scaled(
        found,
        original,
        factor,
        fast=rope.positive("beta_fast", 32.0),
        slow=rope.positive("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        magnitude=rope.number("attention_factor", inferred),
    )


def _yarn_scaled(
    found: Rope,
    original: int,
    factor: float,
    *,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
    magnitude: float | None = None,
) -> Rope:
    """YaRN (arXiv 2309.00071): a ramp between the dimensions that turn `fast` and `slow` times in
    the original context; `magnitude` None is the paper's."""
    dimensions = found.dimensions

    def dimension(turns: float) -> float:
        turned = original / (turns * 2 * math.pi)
        return dimensions * math.log(turned) / (2 * math.log(found.theta))

    begin, end = dimension(fast), dimension(slow)
    if truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, dimensions - 1)
    width = end - begin or 0.001
    divided = _blended(found, factor, lambda j: 1 - (j - begin) / width)
    return replace(divided, magnitude=_yarn_magnitude(factor) if magnitude is None else magnitude)


def _yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _blended(found: Rope, factor: float, kept: Callable[[int], float]) -> Rope:
    """Frequencies of which the share `kept`, cut off to 0..1, stays, and the rest is divided by
    `factor`."""
    shares = [min(max(kept(j), 0.0), 1.0) for j in range(found.dimensions // 2)]
    return replace(found, divisors=tuple(1 / (share + (1 - share) / factor) for share in shares))
