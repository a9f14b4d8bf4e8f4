"""Asking the model about a point of a stream: the next token, the likelihood of a text, beams. The
oracle is what generations and selects report of the same model."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import EOS, FakeEngine, FakeTemplate

import asgl
from asgl.errors import BudgetError, ConfigError
from asgl.language import Session
from tiny import tiny_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def rt(model: Path) -> AsyncIterator[asgl.Runtime]:
    async with asgl.Runtime(
        model, kernels="reference", dtype="float32", kv_cache_tokens=3000
    ) as rt:
        yield rt
        await rt.prompt("x").gen(max_tokens=1)
        seen = rt.statistics()
        assert seen.free + seen.evictable == seen.capacity


async def test_the_next_token_is_what_a_generation_reports(rt: asgl.Runtime) -> None:
    s = rt.prompt("the quick brown")
    before = (s.text, s.token_ids)
    likely = await s.next_token(top=5)
    assert (s.text, s.token_ids) == before
    handle = s.gen(max_tokens=1, temperature=0, logprobs=5, ignore_eos=True)
    await handle
    assert handle.logprobs is not None
    assert [one.token_id for one in likely] == [one.token_id for one in handle.logprobs[0].top]
    assert [one.logprob for one in likely] == pytest.approx(
        [one.logprob for one in handle.logprobs[0].top], abs=1e-4
    )
    assert likely[0].token_id == handle.logprobs[0].token_id
    assert [one.logprob for one in likely] == sorted((one.logprob for one in likely), reverse=True)


async def test_all_tokens_add_up(rt: asgl.Runtime) -> None:
    likely = await rt.prompt("a").next_token(top=rt.model.vocabulary)
    assert len(likely) == rt.model.vocabulary
    assert math.fsum(math.exp(one.logprob) for one in likely) == pytest.approx(1, abs=1e-4)


async def test_a_text_is_scored_as_a_select_scores_it(rt: asgl.Runtime) -> None:
    s = rt.prompt("the quick")
    scored = await s.score(" brown fox")
    picked = s.copy().select(None, [" brown fox", " dog"])
    await picked
    assert [one.logprob for one in scored] == pytest.approx(picked.token_logprobs[0], abs=1e-4)
    assert "".join(one.text for one in scored) == " brown fox"
    assert all(one.top == () for one in scored)
    assert s.text == "the quick"
    assert await s.score("") == []


async def test_text_that_is_appended_with_its_log_probabilities(rt: asgl.Runtime) -> None:
    s = rt.prompt("the quick")
    scored = await s.score(" brown fox", top=3)
    handle = s.extend(" brown fox", logprobs=3)
    appended = await handle
    assert [one.token_id for one in appended] == handle.token_ids
    assert (s.text, handle.text) == ("the quick brown fox", " brown fox")
    assert [one.logprob for one in appended] == pytest.approx(
        [one.logprob for one in scored], abs=1e-4
    )
    for one, other in zip(appended, scored, strict=True):
        assert len(one.top) == 3
        assert [top.token_id for top in one.top] == [top.token_id for top in other.top]
        same = [top.logprob for top in one.top if top.token_id == one.token_id]
        assert same in ([], [pytest.approx(one.logprob, abs=1e-4)])
    first = (await rt.prompt("the quick").next_token(top=3))[0]
    assert first.token_id == appended[0].top[0].token_id


async def test_a_beam_that_is_wide_enough_finds_the_best_of_all(rt: asgl.Runtime) -> None:
    s = rt.prompt("the quick")
    ends = set(rt.tokenizer.end_tokens)
    vocabulary = range(rt.model.vocabulary)
    first = {one.token_id: one.logprob for one in await s.next_token(top=len(vocabulary))}
    best: list[tuple[float, tuple[int, ...]]] = []
    likely = sorted(first, key=lambda token: -first[token])[:12]
    for one in likely:
        t = s.copy()
        handle = t.extend(rt.tokenizer.decode([one]), logprobs=0)
        await handle
        if handle.token_ids != [one] or one in ends:
            continue
        for two in await t.next_token(top=12):
            if two.token_id not in ends:
                best.append((first[one] + two.logprob, (one, two.token_id)))
    best.sort(reverse=True)
    found = await s.beam(3, width=len(vocabulary), max_tokens=2, length_penalty=0)
    whole = [beam for beam in found if beam.finish_reason == "length"]
    for beam, (logprob, tokens) in zip(whole, best, strict=False):
        assert beam.token_ids == tokens
        assert beam.logprob == pytest.approx(logprob, abs=1e-3)
    assert whole
    assert [beam.score for beam in found] == sorted((beam.score for beam in found), reverse=True)
    assert s.text == "the quick"


async def test_a_beam_of_one_is_greedy(rt: asgl.Runtime) -> None:
    s = rt.prompt("the quick")
    (beam,) = await s.beam(1, width=1, max_tokens=8)
    text = await s.copy().gen(max_tokens=8, temperature=0)
    assert beam.text == text
    t = rt.prompt("the quick" + text)
    assert beam.score == pytest.approx(beam.logprob / 8)
    await t.aclose()


# --- on an engine whose distribution is known: token + rank, with -0.5 - rank


class Chain(FakeEngine):
    """Says these distributions, whatever the prompt was."""

    def __init__(self, table: dict[tuple[int, ...], dict[int, float]], **options: Any) -> None:
        super().__init__(**options)
        self.table = table

    def _generate_one(self, ticket: Any, left: list[int]) -> None:
        _, prompt, details = self.requests[ticket.request_id]
        row = self.table[tuple(prompt[1:])]
        top = sorted(row.items(), key=lambda one: -one[1])[: details["logprobs"]]
        ticket.tokens.append(asgl.plan.SampledToken(top[0][0], top[0][1], tuple(top)))  # type: ignore[attr-defined]
        self.settle(ticket, reason="length")


A, B = ord("A"), ord("B")
TABLE: dict[tuple[int, ...], dict[int, float]] = {
    (): {A: -0.5, B: -1.0},
    (A,): {A: -3.0, EOS: -2.5},
    (B,): {A: -0.1, B: -4.0},
}
TABLE |= {pair: {EOS: -0.1, A: -2.5} for pair in itertools.product((A, B), repeat=2)}


async def test_a_beam_finds_what_greedy_misses() -> None:
    engine = Chain(TABLE)
    s = Session(engine).prompt("q")
    best, *_ = await s.beam(2, width=2, max_tokens=3)
    assert (best.text, best.finish_reason) == ("BA", "eos")
    assert best.logprob == pytest.approx(-1.2)
    assert best.score == pytest.approx(-0.4)
    greedy, *_ = await s.beam(1, width=1, max_tokens=3)
    assert greedy.text.startswith("A")
    engine.check()


async def test_a_stop_ends_a_beam_and_is_cut_off() -> None:
    s = Session(Chain(TABLE)).prompt("q")
    found = await s.beam(2, width=2, max_tokens=3, stop="BA")
    (stopped,) = [beam for beam in found if beam.finish_reason == "stop"]
    assert stopped.text == ""
    assert stopped.token_ids == (B, A)


async def test_in_a_message_the_end_of_the_turn_ends_a_beam() -> None:
    engine = FakeEngine(template=FakeTemplate())
    s = Session(engine).prompt()
    s.user("hi")
    with s.role("assistant"):
        assert await s.next_token(top=2)
        await s.gen("x")
    assert s.text == "<|start|>user\nhi<|end|>\n<|start|>assistant\nok<|end|>\n"


async def test_beams_are_counted_by_budgets() -> None:
    s = Session(Chain(TABLE)).prompt("q")
    with asgl.budget(tokens=100) as budget:
        await s.beam(2, width=2, max_tokens=3)
    assert budget.spent == 1 + 2 + 2
    with pytest.raises(BudgetError), asgl.budget(tokens=1):
        await s.beam(2, width=2, max_tokens=3)


async def test_seeds_do_not_depend_on_what_was_asked() -> None:
    seeds = []
    for asks in (False, True):
        engine = FakeEngine()
        s = Session(engine).prompt("q", sampling=asgl.SamplingParams(seed=5))
        if asks:
            await s.next_token()
            await s.score("x", top=1)
        await s.gen()
        seeds.append(engine.seeds[-1])
    assert seeds[0] == seeds[1]


async def test_what_cannot_be_asked() -> None:
    s = Session(FakeEngine()).prompt("q")
    for asked, match in (
        (lambda: s.next_token(top=0), "top"),
        (lambda: s.score(b"x"), "must be text"),  # type: ignore[arg-type]
        (lambda: s.beam(3, width=2), "width must be at least n"),
        (lambda: s.beam(1, max_tokens=0), "max_tokens"),
        (lambda: s.extend(asgl.gen(), logprobs=1), "those of a text"),  # type: ignore[call-overload]
    ):
        with pytest.raises(ConfigError, match=match):
            await asked()
