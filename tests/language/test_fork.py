"""Fork blocks: branches, their task group, what leaving raises, joins and maps."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from fake_engine import BOS, FakeEngine, FakeTemplate, FakeTokenizer

from asgl.errors import ConfigError, OpCancelledError, StreamClosedError, VariableError
from asgl.language import PromptStream, Session, gen, user


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def broken_if(marker: str) -> Any:
    """Generations whose prompt has the marker fail; others never end."""
    return lambda prompt: RuntimeError("broken") if marker in prompt else None


# --- branches


async def test_branches_start_from_the_parent_and_are_done_at_the_end() -> None:
    engine = FakeEngine(lambda prompt: prompt.upper())
    s = Session(engine).prompt("a")
    s["v"] = 1
    async with s.fork(3) as branches:
        for index, branch in enumerate(branches):
            branch += str(index)
            branch.gen("text")
    assert branches.gather("text") == ["A0", "A1", "A2"]
    assert [branch.text for branch in branches] == ["a0A0", "a1A1", "a2A2"]
    assert branches[0]["v"] == 1
    assert (s.text, len(branches), len(branches[1:])) == ("a", 3, 2)
    assert engine.prompts == [[97, 48], [97, 49], [97, 50]]
    engine.check()


async def test_all_branches_are_submitted_in_the_same_tick() -> None:
    engine = FakeEngine(manual=True)
    s = Session(engine).prompt("a")
    s.gen()
    async with s.fork(4) as branches:
        for branch in branches:
            branch.gen()
        assert len(engine.requests) == 1  # no barrier: they wait for the parent's op by themselves
        for _ in range(2):
            engine.step()
        await asyncio.sleep(0)
        assert engine.texts == ["a"] + ["aok"] * 4
        for _ in range(2):
            engine.step()


async def test_unpacking() -> None:
    s = Session(FakeEngine()).prompt("a")
    async with s.fork(2) as (food, art):
        food += " food"
        art += " art"
    assert (food.text, art.text) == ("a food", "a art")


async def test_a_missing_name_raises() -> None:
    s = Session(FakeEngine()).prompt("a")
    async with s.fork(2) as branches:
        branches[0].gen("x")
    with pytest.raises(VariableError, match="'x'"):
        branches.gather("x")


async def test_the_parent_is_read_only_inside() -> None:
    s = Session(FakeEngine()).prompt("a")
    async with s.fork(1) as (branch,):
        for call in (
            lambda: s.append("x"),
            s.gen,
            lambda: s.join([branch]),
            lambda: s.role("user").__enter__(),
        ):
            with pytest.raises(StreamClosedError, match="is forked"):
                call()
        assert (s.text, s.token_ids) == ("a", [97])
        assert await s.copy().gen() == "ok"
    s += "b"
    assert s.text == "ab"


async def test_branches_cannot_be_replaced() -> None:
    s = Session(FakeEngine()).prompt("a")
    async with s.fork(1) as branches:
        branches[0] += "b"
        with pytest.raises(ConfigError, match="replaced"):
            branches[0] = s
    assert branches[0].text == "ab"


async def test_forks_nest_and_branches_go_on_after_the_block() -> None:
    engine = FakeEngine(lambda prompt: prompt[-1])
    s = Session(engine).prompt("a")
    async with s.fork(2) as branches:
        for branch in branches:
            async with branch.fork(2) as inner:
                for index, leaf in enumerate(inner):
                    leaf += str(index)
                    leaf.gen("x")
            assert inner.gather("x") == ["0", "1"]
            branch.join(inner)
    assert branches[1].text == "a0011"
    assert await branches[1].gen() == "1"
    engine.check()


async def test_bad_arguments() -> None:
    s = Session(FakeEngine()).prompt("a")
    for n in (0, -1, True, 1.5):
        with pytest.raises(ConfigError):
            s.fork(n)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_error"):
        s.fork(1, on_error="ignore")  # type: ignore[arg-type]
    branches = s.fork(1)
    async with branches:
        pass
    with pytest.raises(ConfigError, match="once"):
        await branches.__aenter__()
    with pytest.raises(ConfigError, match="no branch of an open fork"):
        branches[0].start_soon(talk)


# --- failures


async def test_one_that_nobody_awaits_stops_body_and_siblings() -> None:
    engine = FakeEngine(broken_if("1"))
    session = Session(engine)
    s = session.prompt("a")
    reached = False
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(3) as branches:
            for index, branch in enumerate(branches):
                branch += str(index)
                branch.gen("text")
            await branches[0].get("text")
            reached = True
    assert not reached
    (error,) = caught.value.exceptions
    assert str(error) == "broken"
    assert error.__notes__ == ["in branch 1 of stream 0"]
    assert len(engine.cancelled) == 2
    assert session.unseen_failures() == []
    assert s.text == "a"
    s += "b"
    engine.check()
    await turns()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_it_stops_also_once_the_body_is_done() -> None:
    engine = FakeEngine(broken_if("1"))
    s = Session(engine).prompt("a")
    with pytest.raises(ExceptionGroup):
        async with s.fork(2) as branches:
            branches[0].gen()
            branches[1] += "1"
            branches[1].gen()
    engine.check()


async def test_one_that_somebody_awaits_is_theirs() -> None:
    engine = FakeEngine(lambda prompt: RuntimeError("broken") if "1" in prompt else "fine")
    s = Session(engine).prompt("a")
    async with s.fork(2) as (one, two):
        one += "1"
        two.gen("x")
        with pytest.raises(RuntimeError):
            await one.gen()
    assert two["x"] == "fine"
    engine.check()


async def test_an_error_at_once_is_also_theirs() -> None:
    s = Session(FakeEngine(context_length=2)).prompt("a")
    async with s.fork(1) as (branch,):
        branch += "bcdef"
        with pytest.raises(Exception, match="tokens"):
            await branch.gen()


async def test_an_error_of_the_body_is_in_a_group_with_its_branch() -> None:
    engine = FakeEngine(broken_if("1"))
    s = Session(engine).prompt("a")
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(2) as (one, two):
            two.gen()
            one += "1"
            await one.gen()
    assert [str(error) for error in caught.value.exceptions] == ["broken"]
    assert caught.value.exceptions[0].__notes__ == ["in branch 0 of stream 0"]
    assert len(engine.cancelled) == 1
    with pytest.raises(ExceptionGroup) as other:
        async with s.fork(2):
            raise KeyError("mine")
    assert isinstance(other.value.exceptions[0], KeyError)
    engine.check()


async def test_several_failures_are_all_raised_each_once() -> None:
    engine = FakeEngine(lambda _: RuntimeError("broken"))
    s = Session(engine).prompt("a")
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(3) as branches:
            for branch in branches:
                branch.gen()
                branch.gen()
    assert sorted(error.__notes__ for error in caught.value.exceptions) == [
        [f"in branch {i} of stream 0"] for i in range(3)
    ]
    engine.check()


async def test_keep_lets_siblings_run_and_sets_error() -> None:
    engine = FakeEngine(lambda prompt: RuntimeError("broken") if "1" in prompt else "fine")
    session = Session(engine)
    s = session.prompt("a", name="p")
    async with s.fork(3, on_error="keep") as branches:
        for index, branch in enumerate(branches):
            branch += str(index)
            branch.gen("x")
        await branches[2].get("x")
        await turns()
        assert isinstance(branches[1].error, RuntimeError)
    assert [branch.error is None for branch in branches] == [True, False, True]
    assert branches[0]["x"] == "fine"
    assert session.unseen_failures() == []
    engine.check()


async def test_a_body_that_fails_under_keep_stops_the_rest() -> None:
    engine = FakeEngine(lambda _: None)
    s = Session(engine).prompt("a")
    with pytest.raises(ExceptionGroup):
        async with s.fork(2, on_error="keep") as branches:
            branches[0].gen()
            raise KeyError
    engine.check()


async def test_a_parent_that_fails_before_its_branches_begin_is_told_once() -> None:
    engine = FakeEngine(broken_if("a"))
    session = Session(engine)
    s = session.prompt("a")
    s.gen()
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(3) as branches:
            for branch in branches:
                branch.gen()
    assert [str(error) for error in caught.value.exceptions] == ["broken"]
    with pytest.raises(StreamClosedError):
        branches[0] += "x"
    s += "b"
    assert session.unseen_failures() == []
    engine.check()


async def test_cancellation_from_outside_passes_bare_and_cancels_all() -> None:
    engine = FakeEngine(lambda _: None)
    s = Session(engine).prompt("a")

    async def program() -> None:
        async with s.fork(2) as branches:
            branches[0].gen()
            branches[1].start_soon(talk)

    for stop_in_body in (False, True):
        task = asyncio.create_task(program())
        if not stop_in_body:
            await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.check()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.001):
            await program()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await program()
    engine.check()
    s += "b"


async def test_what_a_stopped_task_submits_while_it_cleans_up_is_cancelled_too() -> None:
    async def stubborn(branch: PromptStream) -> None:
        try:
            await branch.gen()
        finally:
            branch.gen()

    engine = FakeEngine(lambda _: None)
    s = Session(engine).prompt("a")
    with pytest.raises(ExceptionGroup):
        async with s.fork(2) as branches:
            branches[0].start_soon(stubborn)
            await turns()
            raise KeyError
    assert len(engine.cancelled) == 2
    engine.check()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_these_pass_bare(kind: type[BaseException]) -> None:
    engine = FakeEngine(lambda _: None)
    s = Session(engine).prompt("a")
    with pytest.raises(kind):
        async with s.fork(1) as (branch,):
            branch.gen()
            raise kind
    engine.check()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_they_pass_bare_from_a_task_too(kind: type[BaseException]) -> None:
    async def bad(branch: PromptStream) -> None:
        raise kind

    engine = FakeEngine(lambda _: None)
    s = Session(engine).prompt("a")
    with pytest.raises(kind):
        async with s.fork(2) as (one, two):
            one.start_soon(bad)
            await two.gen()
    engine.check()


# --- tasks


async def talk(branch: PromptStream, text: str = "", *, fail: bool = False) -> str:
    branch += text
    if fail:
        raise LookupError(text)
    return await branch.gen("x")


async def test_tasks_run_on_their_branches_and_are_waited_for() -> None:
    engine = FakeEngine(lambda prompt: prompt.upper())
    s = Session(engine).prompt("a")
    async with s.fork(2) as (one, two):
        handle = one.start_soon(talk, "1")
        two.start_soon(talk, text="2")
        assert await handle == "A1"
    assert (await handle, two["x"], handle.done(), handle.cancel()) == ("A1", "A2", True, False)


async def test_a_task_that_fails_unawaited_stops_the_block() -> None:
    engine = FakeEngine(lambda _: None)
    s = Session(engine).prompt("a")
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(2) as (one, two):
            one.start_soon(talk, "1", fail=True)
            two.start_soon(talk)
            await two.gen()
    assert [(type(error), error.__notes__) for error in caught.value.exceptions] == [
        (LookupError, ["in branch 0 of stream 0"])
    ]
    engine.check()


async def test_a_task_that_fails_awaited_is_the_awaiters() -> None:
    s = Session(FakeEngine()).prompt("a")
    async with s.fork(2) as (one, two):
        handle = one.start_soon(talk, "1", fail=True)
        with pytest.raises(LookupError):
            await handle
        assert await two.gen() == "ok"


async def test_a_task_can_be_cancelled_alone() -> None:
    engine = FakeEngine(lambda prompt: None if "1" in prompt else "fine")
    s = Session(engine).prompt("a")
    async with s.fork(2) as (one, two):
        handle = one.start_soon(talk, "1")
        other = two.start_soon(talk)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle, 0.001)  # the last who awaited it
        with pytest.raises(OpCancelledError):
            await handle
        assert await other == "fine"
    assert len(engine.cancelled) == 1
    engine.check()


# --- map


async def test_map_gives_results_in_order() -> None:
    engine = FakeEngine(lambda prompt: prompt.upper())
    s = Session(engine).prompt("a")
    assert await s.map(talk, ["1", "2", "3"]) == ["A1", "A2", "A3"]
    assert await s.map(talk, []) == []
    assert s.text == "a"


async def test_map_and_errors() -> None:
    async def fn(branch: PromptStream, item: int) -> int:
        if item == 1:
            raise LookupError
        return item

    s = Session(FakeEngine()).prompt("a")
    with pytest.raises(ExceptionGroup):
        await s.map(fn, range(3))
    kept: list[Any] = await s.map(fn, range(3), on_error="keep")
    assert (kept[0], type(kept[1]), kept[2]) == (0, LookupError, 2)


# --- join


async def test_join_appends_new_tokens_in_order() -> None:
    engine = FakeEngine(["one", "two", "end"], template=FakeTemplate())
    s = Session(engine).prompt("ab")
    async with s.fork(2) as branches:
        branches[0].gen()
        branches[1] += "c"
        branches[1].gen()
        branches[1] += user("Hi")
    s += "-"
    s.join(branches)
    assert await s.assistant("d" + gen()) == "dend"
    encode = engine.tokenizer.encode
    expected = [*encode("ab"), 45, *encode("one"), 99, *encode("two")]
    message = "<|start|>user\nHi<|end|>\n"
    assert s.text == f"ab-onectwo{message}<|start|>assistant\ndend<|end|>\n"
    assert engine.prompts[-1][: len(expected)] == expected
    assert [said["content"] for said in s.messages()] == ["Hi", "dend"]


async def test_join_keeps_one_bos() -> None:
    engine = FakeEngine(tokenizer=FakeTokenizer(adds_bos=True))
    s = Session(engine).prompt()
    async with s.fork(2) as branches:
        for branch in branches:
            branch += "x"
    s.join(branches)
    assert s.token_ids == [BOS, 120, 120]
    await s.gen()
    assert s.token_ids.count(BOS) == 1


async def test_join_waits_for_copies_and_fails_with_them() -> None:
    engine = FakeEngine(["one", RuntimeError("broken")])
    s = Session(engine).prompt("a")
    copied = s.copy()
    copied.gen()
    s.join([copied])
    await s.sync()
    assert s.text == "aone"
    copied.gen()
    s.join([copied])
    with pytest.raises(OpCancelledError) as caught:
        await s.sync()
    assert "broken" in str(caught.value)
    assert s.text == "aone"


async def test_only_own_branches_can_be_joined() -> None:
    session = Session(FakeEngine())
    s = session.prompt("a")
    for other in (session.prompt("b"), s, s.copy().copy(), "b"):
        with pytest.raises(ConfigError, match="branches and copies"):
            s.join([other])


@pytest.mark.parametrize(
    "use",
    [
        lambda branches: list(branches),
        lambda branches: branches[0],
        lambda branches: len(branches),
        lambda branches: branches.gather("x"),
    ],
)
async def test_a_fork_that_was_not_entered_says_how(use: Any) -> None:
    branches = Session(FakeEngine()).prompt("a").fork(2)
    with pytest.raises(ConfigError, match="async with"):
        use(branches)
    with pytest.raises(TypeError, match="async with"):
        await branches
    with pytest.raises(TypeError, match="async with"), branches:
        pass
    with pytest.warns(RuntimeWarning, match="never entered.*async with"):
        del branches


async def test_a_task_is_not_its_value() -> None:
    async def three(branch: PromptStream) -> int:
        return 3

    async with Session(FakeEngine()).prompt("a").fork(1) as branches:
        task = branches[0].start_soon(three)
        with pytest.raises(TypeError, match="await"):
            bool(task)
        with pytest.raises(TypeError, match="await"):
            assert task == 3
    assert await task == 3


async def test_what_is_appended_to_all_branches_and_gathered_from_them() -> None:
    engine = FakeEngine(["one", "two", "three", "four"])
    s = Session(engine).prompt("a")
    async with s.fork(2) as branches:
        same = branches
        branches += ": " + gen("x") + ", " + gen("y")
        assert branches is same
    assert sorted(branches.gather("x")) == ["one", "two"]
    for told in branches.gather("x", "y"):
        assert list(told) == ["x", "y"]
    assert [told["y"] for told in branches.gather("x", "y")] == branches.gather("y")
    assert all(branch.text == f"a: {branch['x']}, {branch['y']}" for branch in branches)
    with pytest.raises(VariableError):
        branches.gather("x", "z")
    unopened = s.fork(1)
    with pytest.raises(ConfigError, match="no branches yet"):
        unopened += "x"
    with pytest.warns(RuntimeWarning, match="never entered"):
        del unopened
    engine.check()
