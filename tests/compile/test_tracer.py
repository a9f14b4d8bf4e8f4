"""Tracing: what a graph is made of, and what cannot be traced, with the line and what to write
instead."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fake_engine import FakeEngine, Source

import asgl
from asgl.errors import CompileError, ConfigError
from asgl.language import PromptStream

BEGUN = asgl.budget(tokens=3)


class Untraceable:
    """Programs that cannot be traced. Each says in its docstring what it is to be told; the line
    with "# here" is named."""

    async def branches_on_what_the_model_says(s: PromptStream) -> None:
        """what the model says is not known .* and == needs it: append it as it is, or run"""
        if await s.select("a", ["x", "y"]) == "x":  # here
            s += "1"

    async def branches_on_an_argument(s: PromptStream, t: str) -> None:
        """the argument 't' is not known .* and == needs it: give its value instead of asgl.arg,
        .graph\\(t=...\\)"""
        if t == "x":  # here
            s += "1"

    async def tests_an_argument(s: PromptStream, t: str) -> None:
        """its truth"""
        s += t or "nothing"  # here

    async def loops_over_an_argument(s: PromptStream, t: list[str]) -> None:
        """a loop over it"""
        for one in t:  # here
            s += one

    async def counts_by_an_argument(s: PromptStream, t: int) -> None:
        """a count"""
        for _ in range(t):  # here
            s += "x"

    async def computes_with_an_argument(s: PromptStream, t: int) -> None:
        """'t' .* \\+ needs it"""
        s += f"{t + 1}"  # here

    async def looks_into_an_argument(s: PromptStream, t: Any) -> None:
        """.headline needs it"""
        s += t.headline  # here

    async def cleans_an_argument(s: PromptStream, t: str) -> None:
        """.strip\\(\\) needs it"""
        s += t.strip()  # here

    async def cleans_a_sum(s: PromptStream, t: str) -> None:
        """a text with open values .* .upper\\(\\) needs it"""
        s += ("a" + t).upper()  # here

    async def cleans_an_f_string(s: PromptStream, t: str) -> None:
        """cut, changed or encoded"""
        s += f"a {t}".strip()  # here

    async def cuts_an_f_string(s: PromptStream, t: str) -> None:
        """cut, changed or encoded"""
        s += f"a {t}"[:9]  # here

    async def encodes_an_argument(s: PromptStream, t: str) -> None:
        """cut, changed or encoded"""
        s += json.dumps({"t": t})  # here

    async def forks_by_an_argument(s: PromptStream, t: int) -> None:
        """ConfigError: n must be an integer of 1 or more, not {t!r} \\(what stands in braces is not
        known yet"""
        async with s.fork(t):  # here
            pass

    async def waits_a_turn(s: PromptStream) -> None:
        """waits for something that is no op"""
        await asyncio.sleep(0)  # here

    async def waits(s: PromptStream) -> None:
        """waits, or uses the event loop"""
        await asyncio.sleep(1)  # here

    async def gathers(s: PromptStream) -> None:
        """starts a task.* await the ops themselves"""
        await asyncio.gather(s.gen("a"), s.gen("b"))  # here

    async def limits_its_time(s: PromptStream) -> None:
        """waits, or uses the event loop"""
        async with asyncio.timeout(4):  # here
            await s.gen("a")

    async def limits_its_time_with_anyio(s: PromptStream) -> None:
        """waits, or uses the event loop"""
        with anyio.fail_after(4):  # here
            await s.gen("a")

    async def goes_on_with_a_budget(s: PromptStream) -> None:
        """which a graph has no place for: (open it|do it) around the run"""
        with BEGUN:
            s.gen("a")  # here

    async def calls_a_tool(s: PromptStream) -> None:
        """a tool runs on what the model says"""
        await s.call_tools([])  # here

    async def reads_its_text(s: PromptStream) -> None:
        """what a stream says"""
        s.gen("x", stop=s.text)  # here

    async def reads_its_messages(s: PromptStream) -> None:
        """what a stream says"""
        s.messages()  # here

    async def reads_pieces(s: PromptStream) -> None:
        """__aiter__"""
        async for piece in s.gen("a"):  # here
            s += piece

    async def reads_why_it_ended(s: PromptStream) -> None:
        """.finish_reason"""
        handle = s.gen("a")
        if handle.finish_reason == "length":  # here
            s += "."

    async def stops_an_op(s: PromptStream) -> None:
        """.stop"""
        s.gen("a").stop()  # here

    async def reads_a_text_too_early(s: PromptStream) -> None:
        """await the handle first"""
        s.gen("a").text  # noqa: B018  # here

    async def reads_a_variable_too_early(s: PromptStream) -> None:
        """the variable 'a' may not be finished here: await its op, or s.get\\('a'\\)"""
        s.gen("a")
        s += s["a"]  # here

    async def keeps_failures(s: PromptStream) -> None:
        """on_error='cancel'"""
        async with s.fork(2, on_error="keep"):  # here
            pass

    async def samples_with_a_seed(s: PromptStream) -> None:
        """s.sample with a seed"""
        await s.sample(n=2, seed=3)  # here

    async def chooses_from_what_was_generated(s: PromptStream) -> None:
        """can go into text only"""
        first = await s.gen("a")
        s.select("b", [first, "x"])  # here

    async def speaks_in_an_open_role(s: PromptStream, t: str) -> None:
        """the role of a message cannot be open"""
        with s.role(f"{t}_bot"):  # here
            s += "a"

    async def appends_a_message_of_an_open_role(s: PromptStream, t: str) -> None:
        """the role of a message cannot be open"""
        s += asgl.role(f"{t}_bot", "a")  # here

    async def names_a_variable_by_what_was_generated(s: PromptStream) -> None:
        """the name of a variable depends on what the model says"""
        tip = await s.gen("a")
        s[f"about {tip}"] = 1  # here

    async def sets_a_variable_to_an_object(s: PromptStream, t: str) -> None:
        """the variable 'x' is set to a SimpleNamespace, in which open values are not found: set it
        to values"""
        s["x"] = [SimpleNamespace(t=t)]  # here

    async def adds_to_a_variable_later(s: PromptStream) -> None:
        """open values were put into what the variable 'v' was set to"""
        found: list[str] = []
        s["v"] = found  # here
        found.append(await s.gen("a"))

    async def validates_with_an_argument(s: PromptStream, t: str) -> None:
        """the validator uses an open value"""
        s.gen("a", validate=lambda said: t in said)  # here

    async def validates_a_message_with_an_argument(s: PromptStream, t: str) -> None:
        """the validator uses an open value"""
        s += asgl.assistant(asgl.gen("a", validate=lambda said: t in said))  # here

    async def validates_with_an_argument_beside_another(s: PromptStream, t: str, n: int) -> None:
        """the validator uses an open value"""
        s.gen("a", max_tokens=n, validate=lambda said: t in said)  # here

    async def formats_by_an_argument(s: PromptStream, t: str, n: int) -> None:
        """how an open value is to be formatted is open too"""
        s += f"{t:>{n}}"  # here

    async def reads_the_text_of_a_text(s: PromptStream) -> None:
        """only what a gen, a select or a message says"""
        handle = s.submit("a")
        await handle
        s += handle.text  # here

    async def ends_itself(s: PromptStream) -> None:
        """what a stream says, and how its ops end"""
        await s.aclose()  # here

    async def swallows_the_error(s: PromptStream, t: str) -> None:
        """== needs it"""
        try:
            s += "a" if t == "x" else "b"  # here
        except Exception:
            s += "c"

    async def raises(s: PromptStream) -> None:
        """while it was traced, the program raised KeyError: 'mine'"""
        raise KeyError("mine")  # here

    async def asks_for_nonsense(s: PromptStream) -> None:
        """the program raised ConfigError: max_tokens must be an integer of 0 or more, not -1"""
        s.gen("a", max_tokens=-1)  # here

    async def returns_an_object(s: PromptStream) -> object:  # here
        """it returns a object.* return values, or lists, tuples, dicts and dataclasses"""
        return [object()]

    async def returns_a_handle(s: PromptStream) -> object:  # here
        """it returns a Handle"""
        return s.gen("a")

    async def returns_a_changed_text(s: PromptStream, t: str) -> str:
        """cut, changed or encoded"""
        return f"{t}!".upper() + f"a {t}"[:9]  # here


def programs() -> list[Any]:
    found = [(name, fn) for name, fn in vars(Untraceable).items() if not name.startswith("_")]
    return [pytest.param(fn, id=name) for name, fn in found]


def traced(fn: Callable[..., Coroutine[Any, Any, Any]], **constants: Any) -> asgl.Graph[Any]:
    """The graph of the program; open in all arguments that are not given."""
    opened = [name for name in list(inspect.signature(fn).parameters)[1:] if name not in constants]
    return asgl.function(fn).graph(**constants, **dict.fromkeys(opened, asgl.arg))


@pytest.mark.parametrize("fn", programs())
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside a loop"])
def test_what_cannot_be_traced(fn: Callable[..., Coroutine[Any, Any, Any]], inside: bool) -> None:
    with BEGUN:
        pass

    async def in_a_loop() -> None:
        BEGUN.start()
        with pytest.raises(CompileError, match=" ".join(fn.__doc__.split())) as caught:
            traced(fn)
        assert str(caught.value).startswith(f"{__file__}:")
        if fn.__name__ != "returns_a_changed_text":
            lines, first = inspect.getsourcelines(fn)
            line = first + next(
                number for number, line in enumerate(lines) if line.endswith("# here\n")
            )
            assert f"{__file__}:{line}, in {fn.__name__}: " in str(caught.value)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    if inside:
        return asyncio.run(in_a_loop())
    with pytest.raises(CompileError, match=" ".join(fn.__doc__.split())):
        traced(fn)
    return None


# --- arguments


@asgl.function
async def tips(s: PromptStream, /, topic: str, n: int = 2, *, style: str = "short") -> str:
    for _ in range(n):
        s += f"A {style} tip on {topic}: "
        last = await s.gen("tip", max_tokens=8)
    return last


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        ((), {}, "missing a required argument: 'topic'.*given as asgl.arg"),
        (("x",), {"words": 3}, "words"),
        (("x", 1, 2), {}, "too many"),
        ((["x", asgl.arg],), {}, "only a named parameter of tips"),
        (({"x": asgl.arg},), {}, "only a named parameter of tips"),
    ],
)
def test_bad_arguments(args: tuple[Any, ...], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        tips.graph(*args, **options)


def test_constants_are_part_of_the_graph_and_open_arguments_its_parameters() -> None:
    assert str(tips.graph("x").signature) == "(s: 'PromptStream', /) -> 'str'"
    assert len(tips.graph("x", 3).nodes) == 6
    graph = tips.graph(asgl.arg, style=asgl.arg)
    assert (
        str(graph.signature)
        == "(s: 'PromptStream', /, topic: 'str', *, style: 'str' = 'short') -> 'str'"
    )
    assert len(graph.nodes) == 4


async def test_arg_is_no_value() -> None:
    assert repr(asgl.arg) == "asgl.arg"
    with pytest.raises(TypeError, match="stays open"):
        f"{asgl.arg}"
    with pytest.raises(TypeError, match="stays open"):
        str(asgl.arg)


def test_nothing_of_an_event_loop_is_needed_and_the_one_there_is_comes_back() -> None:
    tips.graph(topic=asgl.arg)

    async def inside() -> None:
        tips.graph(topic=asgl.arg)
        with pytest.raises(CompileError):
            traced(Untraceable.waits)
        await asyncio.sleep(0)  # the loop is there again

    asyncio.run(inside())


def test_interrupts_pass() -> None:
    async def interrupted(s: PromptStream) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        traced(interrupted)


async def test_a_graph_is_not_run_while_a_program_is_traced() -> None:
    graph = tips.graph(asgl.arg)

    async def runs_a_graph(s: PromptStream) -> None:
        await graph(s, "x")

    with pytest.raises(CompileError, match="call the program that it is the graph of"):
        traced(runs_a_graph)


# --- what a graph is made of


@dataclasses.dataclass(frozen=True)
class Found:
    tip: str
    rest: list[str]


async def test_the_value_of_a_program_keeps_its_form() -> None:
    @asgl.function
    async def program(s: PromptStream, t: str) -> dict[str, Any]:
        s += t
        tip = await s.gen("tip")
        return {"found": Found(tip, [t, f"{t}/{tip!r}"]), "pair": (tip, 3), "none": None}

    s = await program.graph(asgl.arg)(Source(FakeEngine(["one"])), "x")
    assert s.returned == {"found": Found("one", ["x", "x/'one'"]), "pair": ("one", 3), "none": None}


async def test_variables_go_back_with_a_rewind() -> None:
    async def program(s: PromptStream) -> list[Any]:
        s += "a"
        await s.gen("x")
        mark = s.mark()
        await s.gen("x")
        await s.gen("y")
        s.rewind(mark)
        assert "y" not in s
        return [s["x"], await s.get("x")]

    s = await traced(program)(Source(FakeEngine(["one", "two", "three"])))
    assert s.returned == ["one", "one"]


async def test_lists_are_those_of_a_run_and_options_those_of_the_call() -> None:
    @asgl.function
    async def program(s: PromptStream, t: str) -> list[str]:
        choices = ["a", t]
        s.select("x", choices)
        choices.append("c")
        s["v"] = ["d"]
        return ["e"]

    graph = program.graph(asgl.arg)
    assert "choices=['a', {t}]" in str(graph)
    for _ in range(2):
        s = await graph(Source(FakeEngine()), "b")
        assert (s["v"], s.returned) == (["d"], ["e"])
        s["v"].append("more")
        s.returned.append("more")


def test_a_validator_may_use_what_is_not_open() -> None:
    async def program(s: PromptStream, t: str) -> None:
        s += t
        s.gen("a", validate=lambda said: known in said or later in said)
        later = "y"

    known = "x"
    assert len(traced(program).nodes) == 2


def test_a_partial_function_is_traced() -> None:
    async def program(s: PromptStream, t: str, n: int) -> None:
        s += t * n

    graph = asgl.function(functools.partial(program, t="x")).graph(n=2)
    assert graph.prefix == "xx"


def test_nodes_know_their_lines() -> None:
    async def program(s: PromptStream) -> None:
        s += "x"
        s.gen()

    first = inspect.getsourcelines(program)[1]
    assert [node.line for node in traced(program).nodes] == [
        f"{__file__}:{first + number}, in program" for number in (1, 2)
    ]
