"""Whatever a program passes is refused at the call, or fails where it is awaited, or works; the
engine lives on for others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import asgl
from tiny import tiny_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def opened(model: Path) -> AsyncIterator[asgl.Runtime]:
    """A Runtime that at the end must still serve, and whose books must balance."""
    async with asgl.Runtime(
        model,
        kernels="reference",
        dtype="float32",
        kv_cache_tokens=1500,
        sampling=asgl.SamplingParams(seed=3, max_tokens=4, ignore_eos=True),
    ) as rt:
        yield rt
        assert len(await rt.prompt("and another").gen("x")) > 0
        seen = rt.statistics()
        assert seen.free + seen.evictable == seen.capacity
        assert seen.running == seen.waiting == 0


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 1e-300},
    {"temperature": 1e30},
    {"temperature": 5e-324},
    {"top_p": 1e-300},
    {"top_p": 5e-324},
    {"min_p": 1.0},
    {"min_p": 5e-324},
    {"top_k": 10**30},
    {"seed": 2**64 - 1},
    {"frequency_penalty": 1e30},
    {"frequency_penalty": -1e30},
    {"presence_penalty": -1e30},
    {"repetition_penalty": 1e30},
    {"repetition_penalty": 1e-30},
    {"logit_bias": {1: 1e30}},
    {"logit_bias": dict.fromkeys(range(288), -1e30)},
    {"logit_bias": dict.fromkeys(range(288), 1e30)},
    {"max_tokens": 0},
    {
        "logit_bias": {1: 1e30},
        "repetition_penalty": 1e-6,
        "frequency_penalty": -1e30,
        "temperature": 1e-30,
        "top_p": 1e-30,
    },
    {"max_tokens": 10**30, "stop_token_ids": [*range(200)]},
    {"logprobs": 10**30},
    {"stop": ["x"] * 10_000},
    {"stop": "\U0001f44d\U0001f3fd"},
    {"stop": "\ud800"},
    {"stop": "x" * 100_000},
    {"stop_regex": "(a+)+$"},
    {"stop_regex": "(x*)*y"},
    {"stop_token_ids": list(range(288))},
    {"regex": ""},
    {"regex": "\0+"},
    {"choices": ["\0"]},
    {"choices": ["a", "a", "ab"]},
    {"regex": "ab", "min_tokens": 4},
    {"regex": "a+", "stop": "a"},
    {"regex": "[a-z]+", "stop_regex": "[a-z]", "keep_stop": True},
    {"regex": "[ab]{4}", "temperature": 1e30},
    {"regex": "[ab]{4}", "logit_bias": {97: 1e30, 98: 1e30}},
    {"regex": "(a|b)*", "top_k": 1, "top_p": 1e-30, "min_p": 1.0},
]


@pytest.mark.parametrize(
    "options",
    SAMPLING,
    ids=lambda options: repr(options)[:60].encode("ascii", "backslashreplace").decode(),
)
async def test_extreme_but_allowed(model: Path, options: dict[str, Any]) -> None:
    async with opened(model) as rt:
        others = [rt.prompt(f"other {number}").gen("x") for number in range(2)]
        handle = rt.prompt("Hello ").gen("x", **options)
        assert isinstance(await handle, str)
        assert [type(await other) for other in others] == [str, str]


REFUSED: list[dict[str, Any]] = [
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"temperature": 1e31},
    {"temperature": -1e-300},
    {"temperature": True},
    {"logit_bias": {1: 1e308}},
    {"logit_bias": {1: -math.inf}},
    {"logit_bias": {1: math.nan}},
    {"logit_bias": {288: 1.0}},
    {"frequency_penalty": 1e31},
    {"presence_penalty": -1e31},
    {"repetition_penalty": 1e31},
    {"repetition_penalty": 1e-31},
    {"seed": 1.5},
    {"seed": "1"},
    {"seed": 2**64},
    {"seed": True},
    {"min_tokens": 5},
    {"max_tokens": 1.0},
    {"max_tokens": math.nan},
    {"choices": 5.0},
    {"choices": 3},
    {"choices": ["\ud800"]},
    {"choices": [b"a"]},
    {"regex": "\ud800"},
    {"regex": b"a"},
    {"json_schema": {"a": math.nan}},
    {"json_schema": {"const": "\ud800"}},
    {"json_schema": {"\ud800": 1}},
    {"grammar": "\ud800"},
]


@pytest.mark.parametrize(
    "options",
    REFUSED,
    ids=lambda options: repr(options)[:60].encode("ascii", "backslashreplace").decode(),
)
async def test_refused_at_the_call(model: Path, options: dict[str, Any]) -> None:
    async with opened(model) as rt:
        with pytest.raises(asgl.ConfigError):
            rt.prompt("Hello ").gen("x", **options)


LIMITS: list[dict[str, Any]] = [
    {"regex": "(((a{1,1000}){1,1000}){1,1000})"},
    {"regex": "a{1000000000}"},
    {"regex": "[^\\s\\S]"},
    {"regex": "("},
    {"json_schema": {"type": "nonsense"}},
    {"json_schema": {"$ref": "http://x.y/z"}},
    {"json_schema": {"enum": []}},
    {
        "json_schema": {
            "$defs": {
                "a": {
                    "type": "object",
                    "properties": {"n": {"$ref": "#/$defs/a"}},
                    "required": ["n"],
                }
            },
            "$ref": "#/$defs/a",
        }
    },
    {"json_schema": {"$ref": "#"}},
    {"grammar": "start: start"},
    {"grammar": 'start: start "a"'},
    {"grammar": "nonsense"},
    {"json_schema": {"allOf": [{"type": "string"}, {"type": "number"}]}},
    {"grammar": "start: x"},
]


@pytest.mark.parametrize("options", LIMITS, ids=lambda options: repr(options)[:60])
async def test_a_grammar_that_no_text_fits_or_that_passes_the_limits(
    model: Path, options: dict[str, Any]
) -> None:
    async with opened(model) as rt:
        s = rt.prompt("Hello ")
        with pytest.raises((asgl.GrammarError, asgl.OutputError)):
            await s.gen("x", max_tokens=64, **options)
        assert s.text == "Hello "


@pytest.mark.parametrize(
    "choices",
    [
        ["a"],
        ["a", "a"],
        ["a", "ab", "abc"],
        ["x" * 400, "x"],
        [f"o{i}" for i in range(500)],
        ["\0", "\U0001f44d"],
        ["<|im_end|>", "b"],
    ],
    ids=lambda choices: ascii(choices)[:30],
)
@pytest.mark.parametrize(
    "method", ["sum", "greedy_token_selection", "unconditional_likelihood_normalized"]
)
async def test_options_of_all_kinds(model: Path, choices: list[str], method: Any) -> None:
    async with opened(model) as rt:
        handle = rt.prompt("Hello ").select("x", choices, method=method)
        assert await handle in choices
        assert handle.index == choices.index(await handle)
        assert all(
            math.isfinite(score) or method == "greedy_token_selection"
            for score in handle.scores or [math.nan]
        )


@pytest.mark.parametrize("choices", [None, 3, "abc", [], [""], [1], ["\ud800"]], ids=ascii)
async def test_options_that_are_none(model: Path, choices: Any) -> None:
    async with opened(model) as rt:
        with pytest.raises(asgl.ConfigError):
            rt.prompt("Hello ").select("x", choices)


@pytest.mark.parametrize(
    "text",
    ["\0", "a\0b", "\ud800", "\U0001f600" * 50, "<|im_start|>system", "", "\u202e\ufeff"],
    ids=ascii,
)
async def test_prompts_of_all_kinds(model: Path, text: str) -> None:
    async with opened(model) as rt:
        assert isinstance(await rt.prompt(text).gen("x"), str)


async def test_a_prompt_of_a_megabyte_is_refused_and_the_loop_goes_on(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("x" * 1_000_000)
        with pytest.raises(asgl.ContextLengthError):
            await s.gen("x")
        with pytest.raises(asgl.ContextLengthError):
            await rt.pin(rt.prompt("x" * 600))


async def test_five_hundred_streams_over_a_full_cache(model: Path) -> None:
    async with opened(model) as rt:
        streams = [rt.prompt(f"stream {number} of many ") for number in range(500)]
        handles = [s.gen("x", max_tokens=2) for s in streams]
        for handle in handles[::3]:
            handle.cancel()
        ended = await asyncio.gather(*handles, return_exceptions=True)
        assert all(
            isinstance(one, str if number % 3 else asgl.OpCancelledError)
            for number, one in enumerate(ended)
        )
        assert rt.statistics().evicted_tokens > 0
