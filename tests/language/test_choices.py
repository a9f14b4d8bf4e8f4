"""The scores of a select, with values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from fake_engine import BOS, FakeEngine, FakeTemplate, FakeTokenizer

import asgl
from asgl.errors import ConfigError, StreamError
from asgl.language import Session
from asgl.language.choices import best, probabilities, scores_of

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
    s = Session(engine).prompt("-")
    await s.select("x", ["bc"])
    assert s.token_ids == [45, *engine.tokenizer.encode("bc")]


async def test_unconditional_scores_the_options_after_the_bos_alone() -> None:
    engine = FakeEngine(
        logprobs=lambda before, token: {65: -4.0, 66: -1.0}[token] if before == (BOS,) else -2.0
    )
    s = Session(engine).prompt("-")
    handle = s.select("x", ["A", "B"], method="unconditional_likelihood_normalized")
    assert await handle == "A"
    assert handle.scores == pytest.approx([2.0, -1.0])
    assert engine.prompts == [[45], [BOS]]
    assert handle.prompt_tokens == 1


async def test_unconditional_without_a_bos_lets_each_option_begin_itself() -> None:
    given = {(45,): -2.0, (45, 65): -1.0, (45, 66): -1.0}
    alone = {(65,): -3.0, (66,): -0.5}
    engine = FakeEngine(
        tokenizer=FakeTokenizer(bos=None), logprobs=lambda before, token: (given | alone)[before]
    )
    s = Session(engine).prompt("-")
    handle = s.select("x", ["AC", "BC", "A"], method="unconditional_likelihood_normalized")
    assert await handle == "AC"
    # ((-2 - 0) + (-1 + 3)) / 2, ((-2 - 0) + (-1 + 0.5)) / 2, -2 - 0
    assert handle.scores == pytest.approx([0.0, -1.25, -2.0])


async def test_bad_arguments_raise_at_the_call() -> None:
    s = Session(FakeEngine()).prompt("-")
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
    s = Session(engine).prompt("-")
    with pytest.raises(StreamError, match="no token"):
        await s.select("x", ["a", "\x04"])
    assert s.text == "-"


async def test_an_empty_prompt_is_scored_after_the_bos() -> None:
    engine = FakeEngine()
    assert await Session(engine).prompt().select(None, ["A"]) == "A"
    assert engine.prompts == [[BOS]]


# --- a space before words


@pytest.mark.parametrize(
    ("before", "choices", "after"),
    [
        ("it is", ["Paris", "Rome"], "it is Paris"),
        ("it is ", ["Paris", "Rome"], "it is Paris"),
        ("it is:", ["Paris", "Rome"], "it is:Paris"),
        ("it is (", ["Paris", "Rome"], "it is (Paris"),
        ("it is", [" Paris", " Rome"], "it is Paris"),
        ("it is", ["Paris", "?"], "it isParis"),
        ("n", ["7"], "n 7"),
    ],
)
async def test_a_word_after_a_word_has_a_space_before_it(
    before: str, choices: list[str], after: str
) -> None:
    engine = FakeEngine(logprobs=lambda prompt, token: -0.1 if token in (80, 32, 55) else -9.0)
    s = Session(engine).prompt(before)
    handle = s.select("x", choices)
    assert await handle == s["x"] == choices[0]
    assert s.text == after
    assert s.info("x").text == choices[0]
    assert engine.tokenizer.decode(handle.token_ids) == after.removeprefix(before)


async def test_with_token_healing_an_option_goes_on_in_the_word() -> None:
    engine = FakeEngine()
    engine.heal = lambda prompt: (0, "")  # type: ignore[attr-defined]
    s = Session(engine).prompt("un")
    await s.select("x", ["do", "zip"], token_healing=True)
    assert s.text in ("undo", "unzip")


# --- methods and probabilities


async def test_a_function_as_a_method() -> None:
    engine = FakeEngine(logprobs=table(A=-1.0, B=-3.0, C=-0.5))
    s = Session(engine).prompt("q:")
    seen: list[asgl.Option] = []

    def last(options: Sequence[asgl.Option]) -> list[float]:
        seen.extend(options)
        return [option.logprobs[-1] for option in options]

    handle = s.select("x", ["A", "AB", "AC"], method=last)
    assert await handle == "AC"
    assert handle.scores == [-1.0, -3.0, -0.5]
    assert [(option.text, list(option.logprobs)) for option in seen] == [
        ("A", [-1.0]),
        ("AB", [-1.0, -3.0]),
        ("AC", [-1.0, -0.5]),
    ]


@pytest.mark.parametrize("wrong", [[1.0], None, 3, [1.0, math.nan], ["x", "y"]])
async def test_a_method_that_gives_no_scores(wrong: Any) -> None:
    s = Session(FakeEngine()).prompt("q:")
    with pytest.raises(ConfigError, match="a number for each of the 2 options"):
        await s.select("x", ["A", "B"], method=lambda _: wrong)
    assert (s.text, "x" in s) == ("q:", False)


async def test_a_method_that_raises() -> None:
    s = Session(FakeEngine()).prompt("q:")
    with pytest.raises(ZeroDivisionError):
        await s.select("x", ["A"], method=lambda options: [1 / 0])
    assert s.text == "q:"


async def test_probabilities_are_shares_of_whole_options() -> None:
    engine = FakeEngine(logprobs=table(A=-1.0, B=-3.0, C=-0.5))
    s = Session(engine).prompt("q:")
    handle = s.select("x", ["A", "AB", "C"])
    with pytest.raises(asgl.StreamError, match="await it first"):
        handle.probabilities  # noqa: B018
    await handle
    weights = [math.exp(-1.0), math.exp(-4.0), math.exp(-0.5)]
    assert handle.probabilities == pytest.approx([one / sum(weights) for one in weights])
    assert s.info("x").probabilities == handle.probabilities


def test_probabilities_of_what_cannot_be() -> None:
    assert probabilities([[-math.inf], [-1.0]]) == [0.0, 1.0]
    assert probabilities([[-math.inf], [-math.inf]]) == [0.5, 0.5]
    assert probabilities([[-1e6], [-1e6]]) == [0.5, 0.5]


async def test_a_select_in_a_message_tells_its_scores() -> None:
    s = Session(FakeEngine(template=FakeTemplate())).prompt()
    await s.assistant(asgl.select("x", ["A", "B"]))
    assert len(s.info("x").scores) == 2
    assert s.info("x").index is not None
