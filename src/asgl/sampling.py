"""Sampling parameters: what a user writes, field by field, and what it means once all levels are
merged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from .errors import ConfigError

_MAX_SEED = 2**64 - 1
_MOST = 1e30
"""No parameter is larger: logits are float32, and a sum of what is added to one must stay a
number."""


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if value < low or (high is not None and value > high):
        raise ConfigError(
            f"{name} must be {low} or more"
            + (f", at most {high}" if high else "")
            + f", not {value}"
        )


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {value!r}")
    if value < low or value > high or (open_low and value == low):
        raise ConfigError(
            f"{name} must be {'above' if open_low else 'at least'} {low:g}"
            + (f" and at most {high:g}" if math.isfinite(high) else "")
            + f", not {value!r}"
        )


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a sequence, not {value!r}")
    return tuple(value)


def _strings(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    strings = (value,) if isinstance(value, str) else _items(name, value)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ConfigError(
                f"{name} must be a string or strings, none of them empty, not {value!r}"
            )
    return strings


def _token_ids(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    ids = _items(name, value)
    for token in ids:
        _integer(f"a token id of {name}", token, 0)
    return ids


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
    Runtime, library.

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
        _integer("max_tokens", self.max_tokens, 0)
        _integer("min_tokens", self.min_tokens, 0)
        _integer("top_k", self.top_k, 0)
        _integer("seed", self.seed, 0, _MAX_SEED)
        _number("temperature", self.temperature, 0.0, _MOST)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("frequency_penalty", self.frequency_penalty, -_MOST, _MOST)
        _number("presence_penalty", self.presence_penalty, -_MOST, _MOST)
        _number("repetition_penalty", self.repetition_penalty, 1 / _MOST, _MOST)
        for name in ("keep_stop", "token_healing", "ignore_eos"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise ConfigError(f"{name} must be True or False, not {value!r}")
        # frozen: normalised forms are set past the guard, so that two equal settings compare equal
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_regex", _strings("stop_regex", self.stop_regex))
        object.__setattr__(
            self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids)
        )
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise ConfigError(
                    f"logit_bias must map token ids to numbers, not be {self.logit_bias!r}"
                )
            bias = dict(self.logit_bias)
            for token, value in bias.items():
                _integer("a token id of logit_bias", token, 0)
                _number(f"logit_bias of token {token}", value, -_MOST, _MOST)
            object.__setattr__(self, "logit_bias", bias)
        self._check_limits()

    def over(self, base: SamplingParams) -> SamplingParams:
        """These parameters, with what is unset taken from `base`."""
        merged = object.__new__(
            SamplingParams
        )  # both are checked, so their fields are taken as they are
        for name in _FIELDS:
            value = getattr(self, name)
            object.__setattr__(merged, name, getattr(base, name) if value is None else value)
        merged._check_limits()
        return merged

    def _check_limits(self) -> None:
        if (
            self.max_tokens is not None
            and self.min_tokens is not None
            and self.min_tokens > self.max_tokens
        ):
            raise ConfigError(
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})"
            )


_FIELDS = tuple(field.name for field in fields(SamplingParams))

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
