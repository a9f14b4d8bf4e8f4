"""Validators: what is not valid is generated again from the same point; only what is valid becomes
the op's."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

import pytest
from fake_engine import START, FakeEngine, FakeTemplate

import asgl
from asgl.errors import ConfigError, OutputError
from asgl.language import PromptStream, Session


def start(*answers: object, **options) -> tuple[FakeEngine, PromptStream]:
    engine = FakeEngine(list(answers), **options)  # type: ignore[arg-type]
    return engine, Session(engine).prompt("a")


@pytest.mark.parametrize(
    "options",
    [
        {"validate": 3},
        {"retries": 1},
        {"validate": int, "retries": -1},
        {"validate": int, "retries": True},
        {"validate": start.__class__, "retries": 1.5},
    ],
)
def test_bad_arguments(options) -> None:
    with pytest.raises(ConfigError):
        asgl.gen("x", **options)


def test_a_validator_is_a_plain_function() -> None:
    async def validate(text: str) -> None: ...

    with pytest.raises(ConfigError, match="plain function"):
        asgl.gen("x", validate=validate)


async def test_a_coroutine_is_no_verdict() -> None:
    async def validate(text: str) -> bool:
        return False

    engine, s = start("x")
    with pytest.raises(OutputError, match="it gave a coroutine") as caught:
        await s.gen("n", validate=lambda text: validate(text))
    assert isinstance(caught.value.__cause__, TypeError)
    engine.check()


async def test_it_is_generated_again_from_the_same_point() -> None:
    engine, s = start("x", "7", "8")
    handle = s.gen("n", validate=int, retries=2, seed=5)
    assert await handle == "7"
    assert (s.text, s["n"], handle.text) == ("a7", "7", "7")
    assert engine.texts == ["a", "a"]
    assert engine.seeds[0] == 5
    assert len(set(engine.seeds)) == 2
    again = Session(other := FakeEngine(["x", "y", "7"])).prompt("a")
    await again.gen(validate=int, retries=2, seed=5)
    assert other.seeds[:2] == engine.seeds
    assert len(set(other.seeds)) == 3
    engine.check()


async def test_no_retry_made_it_valid() -> None:
    engine, s = start("x", "y")
    handle = s.gen("n", validate=int, retries=1)
    with pytest.raises(OutputError, match=r"2 tries; the last: 'y'") as caught:
        await handle
    assert (caught.value.text, caught.value.finish_reason) == ("y", "eos")
    assert isinstance(caught.value.__cause__, ValueError)
    assert "'y'" in str(caught.value.__cause__)
    assert (s.text, "n" in s, handle.text) == ("a", False, "")
    assert len(engine.requests) == 2
    assert await s.gen() == "ok"


@pytest.mark.parametrize("said", [True, 0, 3.5, "", []])
async def test_anything_but_false_and_a_string_is_valid(said: object) -> None:
    engine, s = start("x")
    assert await s.gen(validate=lambda _: said) == "x"
    assert len(engine.requests) == 1


def says_nothing(text: str) -> None:
    if text == "no":
        raise ValueError("no")


def says_what_is_wrong(text: str) -> str | None:
    return None if text == "12" else "digits!"


@pytest.mark.parametrize("validate", [says_nothing, says_what_is_wrong])
async def test_a_validator_without_a_return_is_content(validate: Any) -> None:
    assert await start("12")[1].gen(validate=validate) == "12"


@pytest.mark.parametrize(
    "validate",
    [
        re.compile("[0-9]+").fullmatch,
        lambda text: re.fullmatch("[0-9]+", text),
        functools.partial(re.fullmatch, "[0-9]+"),
        {"12": True}.get,
    ],
)
async def test_none_from_what_a_validator_calls_means_no(validate: Any) -> None:
    engine, s = start("ab", "12")
    assert await s.gen(validate=validate, retries=1) == "12"
    assert len(engine.requests) == 2


async def test_false_is_not_valid_and_has_no_cause() -> None:
    _, s = start("x")
    with pytest.raises(OutputError, match="returned False") as caught:
        await s.gen(validate=str.isdigit)
    assert caught.value.__cause__ is None


async def test_a_string_is_seen_by_the_next_try_alone() -> None:
    def validate(text: str) -> str | None:
        return None if text.isdigit() else f"{text}? A number! "

    engine, s = start("xy", "z", "7")
    assert await s.gen("n", validate=validate, retries=5) == "7"
    assert engine.texts == ["a", "axy? A number! ", "az? A number! "]
    assert s.text == "a7"
    assert s.token_ids == [97, *engine.tokenizer.encode("7")]


async def test_in_a_message_that_holds_other_things_too() -> None:
    engine, _ = start("x", "1", template=FakeTemplate())
    s = Session(engine).prompt()
    s += asgl.assistant("n = " + asgl.gen("n", validate=int, retries=1) + ".")
    await s.sync()
    assert s.messages() == [{"role": "assistant", "content": "n = 1."}]
    assert engine.texts[0] == engine.texts[1]
    assert s.token_ids.count(START) == 1


async def test_pieces_come_only_of_what_is_valid() -> None:
    _, s = start("abcdef", "123")
    handle = s.gen(validate=int, retries=1)
    assert "".join([piece async for piece in handle]) == "123"
    assert "".join([piece async for piece in s.pieces()]) == "a123"


async def test_stop_is_the_last_try() -> None:
    engine, s = start("abcdef", manual=True)
    handle = s.gen(validate=int, retries=5)
    engine.step()
    assert handle.stop()
    with pytest.raises(OutputError) as caught:
        await handle
    assert (caught.value.finish_reason, caught.value.text) == ("stopped", "ab")
    assert len(engine.requests) == 1


async def test_an_error_of_the_engine_is_not_tried_again() -> None:
    engine, s = start(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        await s.gen(validate=int, retries=5)
    assert len(engine.requests) == 1


async def test_cancel_between_tries() -> None:
    engine, s = start("x", None)
    task = asyncio.ensure_future(s.gen("n", validate=int, retries=1)._result())
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert s.text == "a"
    engine.check()


async def test_tries_count_on_the_budget() -> None:
    engine, s = start("ab", "cd", "ef")
    with asgl.budget(tokens=5) as spending, pytest.raises(asgl.BudgetError):
        await s.gen(validate=int, retries=5)
    assert spending.spent == 5
    engine.check()


async def test_feedback_in_a_message_is_the_users_and_follows_the_rejected_text() -> None:
    engine = FakeEngine(["seven", "7"], template=FakeTemplate())
    s = Session(engine).prompt()
    s.user("n?")
    with s.role("assistant"):
        s += "n="
        await s.gen(validate=lambda text: text.isdigit() or "Digits!", retries=1)
    asked, again = engine.texts
    assert again == f"{asked}seven<|end|>\n<|start|>user\nDigits!<|end|>\n<|start|>assistant\nn="
    assert s.messages()[-1] == {"role": "assistant", "content": "n=7"}
    assert len(s.messages()) == 2


async def test_a_message_whose_only_op_failed_leaves_no_trace() -> None:
    engine = FakeEngine(["x"], template=FakeTemplate())
    s = Session(engine).prompt()
    s.user("n?")
    before = s.text or None
    with s.role("assistant"), pytest.raises(OutputError):
        await s.gen(validate=int)
    await s.sync()
    assert [message["role"] for message in s.messages()] == ["user"]
    assert before is None or s.text == before
