"""Handles: values, text as it comes, what is known of a generation, and handles as values."""

from __future__ import annotations

import asyncio

import pytest
from fake_engine import EOS, FakeEngine, FakeTemplate

import asgl
from asgl.errors import ConfigError, OpCancelledError
from asgl.language import Handle, Session, assistant, gen
from asgl.types import TokenLogprob


async def test_what_a_handle_tells() -> None:
    engine = FakeEngine(["Paris.\nMore"], manual=True)
    s = Session(engine).prompt("ab")
    handle = s.gen("city", stop="\n")
    assert (handle.done(), handle.text, handle.token_ids, handle.finish_reason) == (
        False,
        "",
        [],
        None,
    )
    assert (handle.prompt_tokens, handle.elapsed, handle.time_to_first_token) == (1, None, None)
    assert repr(handle) == "<Handle of gen 'city': running>"
    engine.step()
    engine.step()
    assert (handle.text, handle.token_ids) == ("Par", engine.tokenizer.encode("Par"))
    for _ in range(3):
        engine.step()
    assert handle.done()
    assert await handle == await handle == handle.text == "Paris."
    assert (handle.finish_reason, handle.matched_stop) == ("stop", "\n")
    assert handle.token_ids == engine.tokenizer.encode("Paris.")
    assert (handle.elapsed, handle.time_to_first_token, handle.cached_tokens) == (5.0, 1.0, 0)
    assert handle.logprobs is None
    assert repr(handle) == "<Handle of gen 'city': done>"


async def test_a_stop_inside_a_token_leaves_tokens_that_say_the_text() -> None:
    engine = FakeEngine(["abcd"])
    s = Session(engine).prompt("x")
    handle = s.gen(stop="d")
    assert await handle == "abc"
    assert handle.token_ids == [*engine.tokenizer.encode("ab"), *engine.tokenizer.encode("c")]
    assert s.text == "xabc"
    assert engine.tokenizer.decode(s.token_ids) == "xabc"


async def test_end_tokens_are_not_appended() -> None:
    engine = FakeEngine(["ab"])
    s = Session(engine).prompt("x")
    handle = s.gen(logprobs=2)
    await handle
    assert handle.finish_reason == "eos"
    assert EOS not in s.token_ids
    assert handle.logprobs is not None
    assert [logprob.token_id for logprob in handle.logprobs] == [1025, EOS]
    assert handle.logprobs[0] == TokenLogprob(
        1025, "ab", -0.5, (TokenLogprob(1025, "ab", -0.5), TokenLogprob(1026, "ac", -1.5))
    )


async def test_ignore_eos_and_lengths() -> None:
    engine = FakeEngine(["ab", "cdef", "zz"])
    s = Session(engine).prompt("x")
    await s.gen(ignore_eos=True, max_tokens=2)
    assert engine.requests[0][2]["end_tokens"] == ()
    cut = s.gen(max_tokens=1)
    assert await cut == "cd"
    assert cut.finish_reason == "length"
    nothing = s.gen(max_tokens=0)
    assert await nothing == ""
    assert nothing.finish_reason == "length"


async def test_iteration_gives_pieces_that_add_up() -> None:
    s = Session(FakeEngine(["one två"])).prompt("x")
    handle = s.gen()
    pieces = [piece async for piece in handle]
    assert pieces == ["on", "e", " ", "tv", "å"]
    assert [piece async for piece in handle] == ["one två"]


async def test_to_break_lets_the_op_go_on() -> None:
    engine = FakeEngine(["abcdef"])
    s = Session(engine).prompt("x")
    handle = s.gen()
    async for _ in handle:
        break
    assert await handle == "abcdef"
    engine.check()


async def test_iteration_raises_the_error() -> None:
    s = Session(FakeEngine([RuntimeError("broken")])).prompt("x")
    with pytest.raises(RuntimeError, match="broken"):
        async for _ in s.gen():
            pass
    assert await s.gen() == "ok"


async def test_logprobs_of_a_message_are_those_of_its_last_gen() -> None:
    s = Session(FakeEngine(["ab", "cd"], template=FakeTemplate())).prompt()
    handle = s.assistant(gen("x") + " " + gen("y", logprobs=1))
    await handle
    assert handle.logprobs is not None
    assert [logprob.text for logprob in handle.logprobs] == ["cd", "<eos>"]
    assert handle.token_ids == [1025, 1024 + 2 * 26 + 3]
    plain = s.user("x")
    await plain
    assert plain.logprobs is None
    assert plain.elapsed is None


async def test_stop_finishes_now_and_keeps_the_text() -> None:
    engine = FakeEngine(["abcdef"], manual=True)
    s = Session(engine).prompt("x")
    handle = s.gen("v")
    engine.step()
    assert handle.stop()
    assert await handle == "ab"
    assert handle.finish_reason == "stopped"
    assert not handle.stop()
    assert s["v"] == "ab"


async def test_several_tasks_may_wait() -> None:
    s = Session(FakeEngine(["one"])).prompt("x")
    handle = s.gen()
    assert await asyncio.gather(handle, handle, handle) == ["one"] * 3
    assert await asyncio.wait_for(handle, 1) == "one"


# --- as values


async def test_a_handle_is_a_value_for_another_stream() -> None:
    engine = FakeEngine(["one", "two"])
    session = Session(engine)
    s, t = session.prompt("s"), session.prompt("t")
    t += "A: " + s.gen("x") + "."
    assert t.text == "tA: "
    assert await t.gen("y") == "two"
    assert t.text == "tA: one.two"
    assert engine.texts == ["s", "tA: one."]


async def test_a_finished_handle_is_appended_at_once() -> None:
    session = Session(FakeEngine(["one"]))
    s, t = session.prompt("s"), session.prompt("t")
    handle = s.gen()
    await handle
    t += handle
    assert t.text == "tone"


async def test_long_chains_of_streams_are_no_recursion() -> None:
    engine = FakeEngine(["x"], manual=True)
    session = Session(engine)
    streams = [session.prompt(str(index)) for index in range(3000)]
    handle: Handle[object] = streams[0].gen()
    for stream in streams[1:]:
        handle = stream.extend(handle)
    while not handle.done():
        engine.step()
        await asyncio.sleep(0)
    assert streams[-1].text == "2999x"


async def test_dependants_of_what_fails_or_is_cancelled_see_op_cancelled() -> None:
    session = Session(FakeEngine([RuntimeError("broken"), None]))
    s, t, u = session.prompt("s"), session.prompt("t"), session.prompt("u")
    t += s.gen()
    behind = t.gen()
    with pytest.raises(OpCancelledError) as caught:
        await behind
    assert "broken" in str(caught.value)
    assert t.text == "t"
    assert session.unseen_failures() == []  # it was seen, as a cause
    assert await t.gen(max_tokens=0) == ""
    waited = s.gen()
    u += waited
    waited.cancel()
    with pytest.raises(OpCancelledError):
        await u.sync()
    assert u.text == "u"


async def test_a_handle_on_its_own_stream_is_refused() -> None:
    s = Session(FakeEngine()).prompt("s")
    handle = s.gen()
    with pytest.raises(ConfigError, match="its own stream"):
        s += handle
    with pytest.raises(ConfigError, match="its own stream"):
        s += assistant("a" + handle + gen("x"))
    await handle
    assert s.text == "sok"


async def test_a_handle_is_no_value() -> None:
    s = Session(FakeEngine()).prompt("s")
    handle = s.gen("x")
    for wrong in (
        lambda: f"{handle}",
        lambda: f"{handle:>9}",
        lambda: bool(handle),
        lambda: handle == "ok",
        lambda: handle != "ok",
        lambda: "ok" in [handle],
    ):
        with pytest.raises(TypeError, match="await handle"):
            wrong()
    assert "gen 'x'" in repr(handle) == str(handle) == "%s" % (handle,)  # noqa: UP031  as logging does
    assert handle in {handle: 1}
    assert handle != s.gen("y")
    await handle


def test_an_op_is_no_text() -> None:
    for op in (asgl.gen("a"), asgl.select("b", ["x"]), asgl.user("hi"), "a" + asgl.gen("b")):
        with pytest.raises(TypeError, match="append it"):
            f"{op}"
        with pytest.raises(TypeError, match="append it"):
            bool(op)
        assert str(op) == repr(op)
