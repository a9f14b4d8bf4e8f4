"""Sampling parameters: what a user writes, field by field, and what it means once all levels are
merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from asgl.checks import flag, integer, number, strings, token_ids
from asgl.errors import ConfigError

_MAX_SEED = 2**64 - 1
_MOST = 1e30
"""No parameter is larger: logits are float32, and a sum of what is added to one must stay a
number."""


class SamplingSpec(NamedTuple):
    """What the sampler needs to know of a request. All fields have values; `seed` is the request's
    own."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside the sampled one; None reports nothing at
    all."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_history(self) -> bool:
        """Whether the sampler must see the tokens so far."""
        return (
            self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to generate. A field left None is unset, and is taken from the next level: op, stream,
    Runtime, library. A Runtime without any takes those that the model's makers recommend.

    Raises ConfigError for a value out of range, naming it.
    """

    max_tokens: int | None = None
    """Generate at most so many tokens (library: 128)."""
    min_tokens: int | None = None
    """Generate at least so many: until then, end tokens and stop tokens are not sampled and stop
    strings do not stop."""
    stop: str | Sequence[str] | None = None
    """End before the earliest match of any of these strings; `()` clears what another level set."""
    stop_regex: str | Sequence[str] | None = None
    """End before the first match of any of these regular expressions: see `asgl.engine.stop_regex`;
    `()` clears."""
    stop_token_ids: Sequence[int] | None = None
    """End when one of these tokens is sampled."""
    keep_stop: bool | None = None
    """Keep the matched stop in the text."""
    token_healing: bool | None = None
    """Generate the last tokens of the prompt once more, if a longer token begins as they do: see
    `asgl.engine.healing`. Without effect where the text is constrained."""
    ignore_eos: bool | None = None
    """Do not end at the model's end token."""
    temperature: float | None = None
    """0 is greedy; 1 is the model's own distribution (library: 1)."""
    top_p: float | None = None
    """Sample from the smallest set of tokens whose probabilities sum to this (Holtzman et al.,
    arXiv 1904.09751)."""
    top_k: int | None = None
    """Sample from the k likeliest tokens; 0 is off."""
    min_p: float | None = None
    """Drop tokens less likely than this share of the likeliest (arXiv 2407.01082)."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit for each time that it was generated."""
    presence_penalty: float | None = None
    """Subtracted from a token's logit if it was generated at all."""
    repetition_penalty: float | None = None
    """Divides positive and multiplies negative logits of tokens in prompt or output (CTRL, arXiv
    1909.05858); 1 is off."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these tokens; -1e30 forbids one."""
    seed: int | None = None
    """Makes sampling reproducible. Given to an op it is used as it is; inherited, each op derives
    its own from it."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                # past the guard of a frozen class: normalised, so that equal settings compare equal
                object.__setattr__(self, name, check(name, value))
        self._check_limits()

    def spec(self, *, seed: int, logprobs: int | None = None) -> SamplingSpec:
        """What the sampler needs to know: these parameters, which must be complete but for the
        seed (ConfigError), with the request's own `seed` and `logprobs`."""
        if unset := [name for name in _CHECKS if getattr(self, name) is None and name != "seed"]:
            raise ConfigError(
                f"{', '.join(unset)} of the sampling parameters are unset: merge them over the "
                "library's defaults"
            )
        # a field that both have means the same
        values: dict[str, Any] = {
            name: getattr(self, name) for name in SamplingSpec._fields if name in _CHECKS
        }
        values["logit_bias"] = tuple(values["logit_bias"].items())
        values["seed"], values["logprobs"] = seed, logprobs
        return SamplingSpec(**values)

    def over(self, base: SamplingParams) -> SamplingParams:
        """These parameters, with what is unset taken from `base`."""
        # both are checked already, so their fields are taken as they are
        merged = object.__new__(SamplingParams)
        for name in _CHECKS:
            value = getattr(self, name)
            object.__setattr__(merged, name, getattr(base, name) if value is None else value)
        merged._check_limits()
        return merged

    def seeded(self, seed: int) -> SamplingParams:
        """These parameters with another seed."""
        changed = copy(self)
        object.__setattr__(changed, "seed", seed)
        return changed

    def _check_limits(self) -> None:
        if (
            self.max_tokens is not None
            and self.min_tokens is not None
            and self.min_tokens > self.max_tokens
        ):
            raise ConfigError(
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})"
            )


def _logit_bias(name: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must map token ids to numbers, not be {value!r}")
    return {
        integer(f"a token id of {name}", token, 0): number(
            f"{name} of token {token}", bias, -_MOST, _MOST
        )
        for token, bias in value.items()
    }


_integer = partial(integer, low=0)
_penalty = partial(number, low=-_MOST, high=_MOST)
_CHECKS: dict[str, Callable[[str, object], object]] = {
    "max_tokens": _integer,
    "min_tokens": _integer,
    "stop": strings,
    "stop_regex": strings,
    "stop_token_ids": token_ids,
    "keep_stop": flag,
    "token_healing": flag,
    "ignore_eos": flag,
    "temperature": partial(number, low=0, high=_MOST),
    "top_p": partial(number, low=0, high=1, above=True),
    "top_k": _integer,
    "min_p": partial(number, low=0, high=1),
    "frequency_penalty": _penalty,
    "presence_penalty": _penalty,
    "repetition_penalty": partial(number, low=1 / _MOST, high=_MOST),
    "logit_bias": _logit_bias,
    "seed": partial(integer, low=0, high=_MAX_SEED),
}
"""Every field of `SamplingParams`, and what checks it and brings it into its one form."""

LIBRARY_DEFAULTS = SamplingParams(
    max_tokens=128,
    min_tokens=0,
    stop=(),
    stop_regex=(),
    stop_token_ids=(),
    keep_stop=False,
    token_healing=False,
    ignore_eos=False,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    repetition_penalty=1.0,
    logit_bias={},
)
"""The last level of every merge. It has no seed: an op without one draws its own from the
system."""
