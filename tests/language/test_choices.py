"""The scores of a select, with values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fake_engine import BOS, FakeEngine, FakeTokenizer

from asgl.errors import ConfigError, StreamError
from asgl.language import Session
from asgl.language.choices import best, scores_of

# three options of 1, 2 and 4 tokens; the first token of the first two is the same
LOGPROBS = [[-1.0], [-1.0, -0.2], [-2.0, -0.1, -0.1, -0.2]]


def test_token_length_normalized_is_the_mean() -> None:
    scores = scores_of("token_length_normalized", LOGPROBS)
    assert scores == pytest.approx([-1.0, -0.6, -0.6])
    assert best([-1.0, -0.6, -0.6]) == 1  # of equal ones the first


def test_sum_is_the_log_probability_of_the_option() -> None:
    assert scores_of("sum", LOGPROBS) == pytest.approx([-1.0, -1.2, -2.4])


def test_greedy_goes_token_by_token_and_prolongs_the_shorter_by_its_mean() -> None:
    # first token: -1, -1, -2: the third is out. Second: the first goes on with its mean -1, the
    # second has -0.2.
    assert scores_of("greedy_token_selection", LOGPROBS) == pytest.approx([-1.0, -0.2, -math.inf])
    assert scores_of("greedy_token_selection", [[-3.0, 0.0], [-2.0, -9.0]]) == [-3.0, -2.0]
    assert scores_of("greedy_token_selection", [[-1.0, -2.0], [-1.0, -2.0]]) == [-2.0, -2.0]


def test_unconditional_likelihood_is_taken_off() -> None:
    alone = [[-3.0], [-3.0, -2.2], [-2.0, -0.1, -0.1, -0.2]]
    # (2), (2 + 2) / 2, 0
    assert scores_of("unconditional_likelihood_normalized", LOGPROBS, alone) == pytest.approx(
        [2.0, 2.0, 0.0]
    )


@pytest.mark.parametrize("method", ["token_length_normalized", "sum", "greedy_token_selection"])
def test_a_single_option_and_duplicates(method: Any) -> None:
    assert best(scores_of(method, [[-5.0]])) == 0
    assert best(scores_of(method, [[-5.0], [-1.0], [-1.0]])) == 1


def table(**scores: float) -> Any:
    """Log-probabilities by what token is scored, whatever is before it."""
    return lambda before, token: scores[chr(token)]


async def test_a_select_appends_the_tokens_that_were_scored() -> None:
    engine = FakeEngine(logprobs=table(A=-1.0, B=-3.0, C=-0.5))
    s = Session(engine).prompt("q:")
    handle = s.select("x", ["A", "AB", "AC"])
    assert await handle == "AC"
    assert handle.index == 2
    assert handle.scores == pytest.approx([-1.0, -2.0, -0.75])
    assert handle.token_logprobs == [[-1.0], [-1.0, -3.0], [-1.0, -0.5]]
    assert (handle.text, handle.token_ids, s["x"], s.text) == ("AC", [65, 67], "AC", "q:AC")
    assert s.token_ids == [*engine.tokenizer.encode("q:"), 65, 67]
    assert len(engine.requests) == 1
    assert handle.finish_reason is None
    engine.check()


async def test_options_are_tokenized_on_their_own() -> None:
    engine = FakeEngine()
    s = Session(engine).prompt("a")
    await s.select("x", ["bc"])
    assert s.token_ids == [97, *engine.tokenizer.encode("bc")]


async def test_unconditional_scores_the_options_after_the_bos_alone() -> None:
    engine = FakeEngine(
        logprobs=lambda before, token: {65: -4.0, 66: -1.0}[token] if before == (BOS,) else -2.0
    )
    s = Session(engine).prompt("q")
    handle = s.select("x", ["A", "B"], method="unconditional_likelihood_normalized")
    assert await handle == "A"
    assert handle.scores == pytest.approx([2.0, -1.0])
    assert engine.prompts == [[113], [BOS]]
    assert handle.prompt_tokens == 1


async def test_unconditional_without_a_bos_lets_each_option_begin_itself() -> None:
    given = {(113,): -2.0, (113, 65): -1.0, (113, 66): -1.0}
    alone = {(65,): -3.0, (66,): -0.5}
    engine = FakeEngine(
        tokenizer=FakeTokenizer(bos=None), logprobs=lambda before, token: (given | alone)[before]
    )
    s = Session(engine).prompt("q")
    handle = s.select("x", ["AC", "BC", "A"], method="unconditional_likelihood_normalized")
    assert await handle == "AC"
    # ((-2 - 0) + (-1 + 3)) / 2, ((-2 - 0) + (-1 + 0.5)) / 2, -2 - 0
    assert handle.scores == pytest.approx([0.0, -1.25, -2.0])


async def test_bad_arguments_raise_at_the_call() -> None:
    s = Session(FakeEngine()).prompt("q")
    for choices in ([], "yes", ["a", ""], [1]):
        with pytest.raises(ConfigError, match="choices"):
            s.select("x", choices)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="method"):
        s.select("x", ["a"], method="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name"):
        s.select("", ["a"])


async def test_an_option_without_tokens_fails_at_the_await() -> None:
    engine = FakeEngine()
    engine.tokenizer.encode = lambda text: [] if text == "\x04" else [1]  # type: ignore[method-assign]
    s = Session(engine).prompt("q")
    with pytest.raises(StreamError, match="no token"):
        await s.select("x", ["a", "\x04"])
    assert s.text == "q"


async def test_an_empty_prompt_is_scored_after_the_bos() -> None:
    engine = FakeEngine()
    assert await Session(engine).prompt().select(None, ["A"]) == "A"
    assert engine.prompts == [[BOS]]
