"""Sampling parameters: merging and checks."""

from __future__ import annotations

from dataclasses import fields

import pytest

from asgl.errors import ConfigError
from asgl.sampling import LIBRARY_DEFAULTS, SamplingParams, SamplingSpec


def test_levels_are_merged_field_by_field():
    op = SamplingParams(temperature=0, stop=())
    stream = SamplingParams(temperature=0.5, stop="\n", top_p=0.9)
    merged = op.over(stream).over(LIBRARY_DEFAULTS)
    assert (merged.temperature, merged.stop, merged.top_p, merged.max_tokens) == (0, (), 0.9, 128)


def test_the_library_sets_every_field_but_the_seed():
    unset = {
        field.name
        for field in fields(SamplingParams)
        if getattr(LIBRARY_DEFAULTS, field.name) is None
    }
    assert unset == {"seed"}


def test_stops_are_normalised():
    assert SamplingParams(stop="x") == SamplingParams(stop=["x"])
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "3"),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("frequency_penalty", float("inf")),
        ("presence_penalty", None.__class__),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [1]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: float("nan")}),
        ("keep_stop", 1),
        ("ignore_eos", "yes"),
        ("stop", 3),
        ("stop_token_ids", 3),
        ("logit_bias", [1]),
    ],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{field: value})
    assert field in str(caught.value)


def test_min_tokens_above_max_tokens():
    with pytest.raises(ConfigError, match="min_tokens"):
        SamplingParams(min_tokens=3, max_tokens=2)


def test_what_the_sampler_needs_to_know():
    assert SamplingSpec(temperature=0.0).greedy
    assert not SamplingSpec().needs_history
    assert SamplingSpec(repetition_penalty=1.1).needs_history
