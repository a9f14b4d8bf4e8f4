"""What a Runtime owns of its streams."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from fake_engine import FakeEngine

from asgl.errors import ConfigError, EngineClosedError, OpCancelledError, StreamClosedError
from asgl.language import Session
from asgl.sampling import SamplingParams


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_bad_arguments() -> None:
    session = Session(FakeEngine())
    for wrong in (
        {"sampling": {}},
        {"cache_salt": 1},
        {"priority": "high"},
        {"priority": True},
        {"name": 2},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            session.prompt(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a prompt is text, or a list of messages"):
        session.prompt(3)  # type: ignore[arg-type]  # pyright: ignore
    assert session.prompt("a", sampling=SamplingParams(), name="n").name == "n"


async def test_closing_cancels_everything() -> None:
    engine = FakeEngine(lambda _: None)
    session = Session(engine)
    s, t = session.prompt("a"), session.prompt("b")
    handles = [s.gen(), t.gen(), t.gen()]
    waiting = asyncio.ensure_future(asyncio.gather(*handles, return_exceptions=True))
    await turns()
    await session.aclose()
    await session.aclose()
    assert [type(error) for error in await waiting] == [OpCancelledError] * 3
    engine.check()
    with pytest.raises(StreamClosedError, match="Runtime was left"):
        s.gen()
    with pytest.raises(EngineClosedError):
        session.prompt("c")
    assert session.unseen_failures() == []


async def test_failures_that_nobody_saw() -> None:
    engine = FakeEngine([RuntimeError("one"), RuntimeError("two"), RuntimeError("three")])
    session = Session(engine)
    s, t, u = (session.prompt("a") for _ in range(3))
    s.gen()
    t.gen()
    seen = u.gen()
    await turns()
    del t  # a stream that went with its failure
    with pytest.raises(RuntimeError):
        await seen
    assert [str(error) for error in session.unseen_failures()] == ["one", "two"]
    assert session.unseen_failures() == []
    s += "b"  # being reported is being seen


async def test_consequences_are_told_by_their_root() -> None:
    session = Session(FakeEngine([RuntimeError("broken")]))
    s, t = session.prompt("a"), session.prompt("b")
    t += s.gen()
    t.gen()
    await turns()
    assert [str(error) for error in session.unseen_failures()] == ["broken"]


async def test_a_consequence_whose_root_was_seen_is_told_itself() -> None:
    session = Session(FakeEngine([RuntimeError("broken")]))
    s, t = session.prompt("a"), session.prompt("b")
    source = s.gen()
    t += source
    with pytest.raises(RuntimeError):
        await source
    await turns()
    assert [type(error) for error in session.unseen_failures()] == [OpCancelledError]


async def test_failures_that_were_seen_make_room() -> None:
    session = Session(FakeEngine(lambda _: RuntimeError("broken")))
    s = session.prompt("a")
    for _ in range(1100):
        with pytest.raises(RuntimeError):
            await s.gen()
    assert session.lost_failures == 0
    assert session.unseen_failures() == []


async def test_a_thousand_unseen_failures_are_kept_and_the_rest_counted() -> None:
    session = Session(FakeEngine(context_length=1))
    for _ in range(1030):
        session.prompt("abc").gen()
    assert session.lost_failures == 6
    assert len(session.unseen_failures()) == 1024


async def test_streams_with_nothing_to_do_go_when_nobody_knows_them() -> None:
    session = Session(FakeEngine())
    s = session.prompt("a")
    known = weakref.ref(s)
    await s.gen()
    del s
    gc.collect()
    assert known() is None
