"""Prompt streams: the order of ops, variables, marks, pieces, the block form."""

from __future__ import annotations

import asyncio

import pytest
from fake_engine import FakeEngine

from asgl.errors import (
    ConfigError,
    ContextLengthError,
    OpCancelledError,
    StreamClosedError,
    VariableError,
)
from asgl.language import PromptStream, Session, extend, gen, select
from asgl.sampling import SamplingParams


def open_stream(
    *answers: str, text: str = "", **settings: object
) -> tuple[FakeEngine, PromptStream]:
    engine = FakeEngine(answers, **settings)  # type: ignore[arg-type]
    return engine, Session(engine).prompt(text)


async def test_ops_run_in_order_whether_or_not_they_are_awaited() -> None:
    engine, s = open_stream("one", "two", text="a")
    s.gen("x")
    s += " b "
    last = s.gen("y")
    assert s.text == "a"
    assert await last == "two"
    assert engine.texts == ["a", "aone b "]
    assert (s.text, dict(s.variables)) == ("aone b two", {"x": "one", "y": "two"})
    assert s.token_ids == [
        *engine.tokenizer.encode("a"),
        *engine.tokenizer.encode("one"),
        *engine.tokenizer.encode(" b "),
        *engine.tokenizer.encode("two"),
    ]
    engine.check()


async def test_nothing_is_computed_for_text_alone() -> None:
    engine, s = open_stream(text="a")
    s += "b"
    s.append("c")
    await s.sync()
    assert engine.requests == []
    assert s.text == "abc"


async def test_extend_computes_and_gives_none() -> None:
    engine, s = open_stream(text="a")
    handle = s.extend("b")
    assert await handle is None
    assert (handle.text, handle.prompt_tokens, handle.token_ids) == ("b", 1, [])
    assert [kind for kind, *_ in engine.requests] == ["extend"]
    assert engine.texts == ["ab"]
    await Session(FakeEngine()).prompt().extend("")  # nothing to compute


async def test_ops_are_values() -> None:
    engine, s = open_stream("1", "2", "3")
    twice = gen("x") + ", " + gen("y")
    s += twice
    handle = s.submit("; " + gen("z", stop="\n"))
    assert await handle == "3"
    assert s.text == "1, 2; 3"
    s += select("c", ["u"]) + extend("!")
    await s.sync()
    assert s["c"] == "u"
    assert s.text == "1, 2; 3 u!"
    assert len(engine.requests) == 5


async def test_only_content_can_be_appended() -> None:
    _, s = open_stream()
    for wrong in (None, 3, ["a"], object()):
        with pytest.raises(ConfigError):
            s += wrong  # type: ignore[operator]
    with pytest.raises(ConfigError):
        extend(gen("x"))


async def test_sampling_is_merged_field_by_field_at_submission() -> None:
    engine = FakeEngine(defaults=SamplingParams(temperature=0.5, top_k=3, stop="X"))
    s = Session(engine).prompt(
        "a", sampling=SamplingParams(temperature=0.7, max_tokens=9), cache_salt="salt", priority=4
    )
    s.gen(temperature=0.0, stop=())
    async with s.copy() as copied:
        copied.gen()
    params = [details["params"] for _, _, details in engine.requests]
    assert (params[0].temperature, params[0].max_tokens, params[0].top_k, params[0].stop) == (
        0.0,
        9,
        3,
        (),
    )
    assert (params[1].temperature, params[1].stop) == (0.7, ("X",))
    assert all(
        (details["namespace"], details["priority"]) == ("salt", 4)
        for _, _, details in engine.requests
    )


async def test_bad_arguments_raise_at_the_call_and_queue_nothing() -> None:
    engine, s = open_stream(text="a")
    for wrong in (
        {"max_tokens": -1},
        {"temperature": "hot"},
        {"logprobs": True},
        {"logprobs": -1},
        {"name": 3},
        {"min_tokens": 500},
        {"logit_bias": {5000: 1.0}},
        {"regex": "a", "dtype": int},
        {"regex": 3},
        {"dtype": "str"},
        {"choices": []},
        {"choices": "ab"},
        {"json_schema": 3},
        {"json_schema": {"a": object()}},
    ):
        with pytest.raises(ConfigError):
            s.gen(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        s.gen(rejex="a")  # type: ignore[call-arg]
    assert engine.requests == []
    assert await s.gen() == "ok"


# --- variables


async def test_variables() -> None:
    _, s = open_stream("one", text="a")
    with pytest.raises(VariableError, match="no variable 'x'") as caught:
        s["x"]
    assert (caught.value.name, caught.value.stream) == ("x", s)
    s.gen("x")
    with pytest.raises(VariableError, match="not finished"):
        s["x"]
    assert "x" not in s
    assert await s.get("x") == "one"
    assert "x" in s
    assert s["x"] == "one"
    s["y"] = [1]
    assert s["y"] == [1]
    assert await s.get("y") == [1]
    with pytest.raises(VariableError, match="finished variables: 'x', 'y'"):
        await s.get("z")
    with pytest.raises(ConfigError):
        s[""] = 1


async def test_of_one_name_the_last_submitted_wins() -> None:
    _, s = open_stream("one", "two", text="a")
    s.gen("x")
    s["x"] = "set"
    assert s["x"] == "set"
    s.gen("x")
    with pytest.raises(VariableError, match="not finished"):
        s["x"]
    assert await s.get("x") == "two"
    s.gen("y")
    s["y"] = "set"
    await s.sync()
    assert s["y"] == "set"


async def test_get_of_an_op_that_fails_raises_its_error() -> None:
    _, s = open_stream(text="abc", context_length=2)
    s.gen("x")
    waiting = asyncio.ensure_future(s.get("x"))
    with pytest.raises(VariableError):
        s["x"]
    with pytest.raises(
        VariableError
    ):  # it had failed before anybody waited, so it is no pending variable any more
        await waiting
    with pytest.raises(ContextLengthError):
        await s.sync()
    assert "x" not in s


# --- going back


async def test_mark_and_rewind() -> None:
    engine, s = open_stream("one", "two", text="ab")
    s["v"] = 1
    mark = s.mark()
    s += "c"
    await s.gen("x")
    s["v"] = 2
    later = s.mark()
    s.rewind(mark)
    assert (s.text, s["v"], "x" in s) == ("ab", 1, False)
    s += "d"
    assert await s.gen() == "two"
    assert engine.texts[-1] == "abd"
    s.rewind(later)
    assert s.text == "abcone"
    assert s["x"] == "one"
    s.rewind(mark)
    s.rewind(mark)
    assert s.text == "ab"


async def test_rewind_waits_its_turn() -> None:
    _, s = open_stream("one", "two", text="a")
    mark = s.mark()
    s.gen("x")
    s.rewind(mark)
    await s.gen("y")
    assert s.text == "atwo"
    assert dict(s.variables) == {"y": "two"}


async def test_a_mark_seals_the_run() -> None:
    engine, s = open_stream(text="a")
    s.mark()
    s += "b"
    assert s.token_ids == [*engine.tokenizer.encode("a"), *engine.tokenizer.encode("b")]


async def test_marks_of_others_and_marks_never_reached() -> None:
    _, s = open_stream(text="a")
    with pytest.raises(ConfigError, match="same stream"):
        s.rewind(s.copy().mark())
    handle = s.gen()
    mark = s.mark()
    handle.cancel()
    with pytest.raises(ConfigError, match="never reached"):
        s.rewind(mark)


# --- copies and samples


async def test_a_copy_goes_on_by_itself() -> None:
    engine, s = open_stream("one", "two", "three", text="a")
    s.gen("x")
    other = s.copy()
    other += "!"
    s += "?"
    assert await other.gen("y") == "two"
    assert await s.gen("y") == "three"
    assert (other.text, s.text) == ("aone!two", "aone?three")
    assert other["x"] == "one"
    engine.check()


async def test_a_copy_knows_variables_that_are_still_to_come() -> None:
    _, s = open_stream("one", text="a")
    s.gen("x")
    other = s.copy()
    with pytest.raises(VariableError, match="not finished"):
        other["x"]
    assert await other.get("x") == "one"


async def test_a_copy_outlives_its_parent() -> None:
    engine, s = open_stream("one", "two", text="a")
    s.gen("x")
    other = s.copy()
    del s
    assert await other.gen("y") == "two"
    assert other.text == "aonetwo"
    engine.check()


async def test_sample_appends_nothing() -> None:
    engine, s = open_stream("one", "two", "three", text="a")
    assert await s.sample("x", n=3, max_tokens=50) == ["one", "two", "three"]
    assert (s.text, s["x"]) == ("a", ["one", "two", "three"])
    assert engine.texts == ["a", "a", "a"]
    with pytest.raises(ConfigError):
        await s.sample(n=0)


async def test_a_sample_that_fails_cancels_the_others() -> None:
    engine = FakeEngine([RuntimeError("broken"), None, None])
    session = Session(engine)
    s = session.prompt("a")
    with pytest.raises(RuntimeError, match="broken"):
        await s.sample("x", n=3)
    assert len(engine.cancelled) == 2
    assert session.unseen_failures() == []
    engine.check()


async def test_cancelling_a_sample_cancels_all_of_it() -> None:
    engine = FakeEngine([None, None])
    s = Session(engine).prompt("a")
    task = asyncio.create_task(s.sample(n=2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(engine.cancelled) == 2
    engine.check()


# --- pieces, sync, the block


async def test_pieces_are_all_text_as_it_comes() -> None:
    _, s = open_stream("one", "two", text="a")
    s.gen()
    s += "-"
    s.gen()
    pieces = [piece async for piece in s.pieces()]
    assert "".join(pieces) == s.text == "aone-two"
    assert pieces == ["a", "on", "e", "-", "tw", "o"]
    assert "".join([piece async for piece in s.pieces()]) == s.text


async def test_pieces_raise_what_fails() -> None:
    _, s = open_stream(text="a")
    engine = FakeEngine(["one", RuntimeError("broken")])
    s = Session(engine).prompt("a")
    s.gen()
    s.gen()
    pieces: list[str] = []
    with pytest.raises(RuntimeError, match="broken"):
        async for piece in s.pieces():
            pieces.append(piece)
    assert "".join(pieces) == "aone"
    assert await s.gen() == "ok"  # it was seen


async def test_sync_waits_for_all_and_raises_what_failed() -> None:
    engine = FakeEngine(["one", RuntimeError("broken"), "three"])
    s = Session(engine).prompt("a")
    s.gen("x")
    await s.sync()
    assert s["x"] == "one"
    s.gen()
    behind = s.gen()
    with pytest.raises(RuntimeError, match="broken"):
        await s.sync()
    with pytest.raises(OpCancelledError) as caught:
        await behind
    assert isinstance(caught.value.__cause__, RuntimeError)
    await s.sync()


async def test_the_block_waits_for_all_ops() -> None:
    engine, s = open_stream("one", "two", text="a")
    async with s:
        s.gen("x")
        s.gen("y")
    assert (s.text, s["y"]) == ("aonetwo", "two")
    with pytest.raises(StreamClosedError, match="block was left"):
        s.gen()
    engine.check()


async def test_the_block_raises_what_nobody_saw() -> None:
    s = Session(FakeEngine([RuntimeError("broken")])).prompt("a")
    with pytest.raises(RuntimeError, match="broken"):
        async with s:
            s.gen()


async def test_an_exception_in_the_block_cancels_them_all() -> None:
    engine = FakeEngine([None])
    with pytest.raises(KeyError):
        async with Session(engine).prompt("a") as s:
            s.gen()
            waiting = s.gen()
            raise KeyError
    assert len(engine.cancelled) == 1
    assert waiting.done()
    engine.check()


async def test_aclose_cancels_and_what_was_said_can_still_be_read() -> None:
    engine, s = open_stream("one", text="a")
    await s.gen("x")
    running = s.gen()
    await s.aclose()
    await s.aclose()
    with pytest.raises(OpCancelledError, match="closed"):
        await running
    assert (s.text, s["x"]) == ("aone", "one")
    for call in (s.gen, s.mark, s.copy, lambda: s.append("x")):
        with pytest.raises(StreamClosedError, match="aclose"):
            call()
    engine.check()


async def test_repr_says_which_stream_and_what() -> None:
    _, s = open_stream(text="a" * 100)
    assert "100" not in repr(s)
    assert repr(s).startswith("<PromptStream: stream 0, 0 submitted, '...a")
