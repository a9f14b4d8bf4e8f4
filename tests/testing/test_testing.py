"""ScriptedRuntime: the language as it is, with answers by script, each of which must be used."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pydantic
import pytest

import asgl
from asgl.testing import Asked, ScriptedRuntime, ScriptError


class Person(pydantic.BaseModel):
    name: str
    age: int


async def agent(rt: asgl.Runtime, question: str) -> str:
    """Thinks until it decides to answer."""
    s = rt.prompt()
    s += asgl.user(question)
    for _ in range(5):
        with s.role("assistant"):
            await s.gen("thought", max_tokens=20)
            if await s.select("decision", ["think", "answer"]) == "answer":
                return await s.gen("answer")
    raise LookupError("it never decided")


async def test_an_agent() -> None:
    async with ScriptedRuntime(
        {
            "thought": ["Is it Paris?", "It is."],
            "decision": ["think", "answer"],
            "answer": lambda prompt: prompt.split()[1],
        }
    ) as rt:
        assert await agent(rt, "Which city?") == "Which"
        assert [asked.name for asked in rt.asked] == [
            "thought",
            "decision",
            "thought",
            "decision",
            "answer",
        ]
        assert rt.asked[0] == Asked(
            "thought", "<|im_start|>user\nWhich city?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert rt.asked[1].choices == ("think", "answer")
        assert rt.asked[1].prompt.endswith("assistant\nIs it Paris?")


@pytest.fixture
async def rt():
    async with ScriptedRuntime({"x": "one two", None: "nameless"}) as runtime:
        yield runtime


async def test_as_a_fixture(rt: ScriptedRuntime) -> None:
    s = rt.prompt("a")
    assert [await s.gen("x"), await s.gen(), await s.gen("x")] == ["one two", "nameless", "one two"]
    assert s.text == "aone twonamelessone two"
    assert rt.model.name == "scripted"
    assert rt.tokenizer.decode(rt.tokenizer.encode(" any text\n")) == " any text\n"
    assert rt.statistics().generated_tokens == 3 + 2 + 3  # words, and the end of each
    assert await rt.flush_cache() == 0
    await rt.pin(s, seconds=1)


async def test_answers_that_were_not_used_are_told_at_the_end() -> None:
    with pytest.raises(
        ScriptError, match=r"of the script: 'y', 'z' \(2 of 3\), without a name$"
    ) as caught:
        async with ScriptedRuntime(
            {"x": "1", "y": "2", "z": ["3", "4", "5"], None: "6", "all": ["7"]}
        ) as rt:
            s = rt.prompt("a")
            for name in ("x", "z", "all"):
                await s.gen(name)
    assert isinstance(caught.value, AssertionError)


async def test_an_exception_of_the_body_comes_first() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with ScriptedRuntime({"x": "1"}):
            raise KeyError("mine")


async def test_failures_that_nobody_saw_come_first_too() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with ScriptedRuntime({"x": RuntimeError("broken"), "y": "1"}) as rt:
            rt.prompt("a").gen("x")
            s = rt.prompt("a")
            s.gen("x")
            await asyncio.sleep(0)
    assert caught.group_contains(RuntimeError, match="broken")


async def test_what_the_script_lacks_fails_the_op() -> None:
    async with ScriptedRuntime({"x": ["1"], "v": "no"}) as rt:
        s = rt.prompt("some text")
        await s.gen("x")
        with pytest.raises(
            ScriptError, match=r"no more answers for a gen 'x', after 'some text1': all 1"
        ):
            await s.gen("x")
        with pytest.raises(
            ScriptError, match=r"no answer for a select 'w'.* there are answers for: 'x', 'v'"
        ):
            await s.select("w", ["a", "b"])
        with pytest.raises(ScriptError, match=r"'no', is none of the options: \['a', 'b'\]"):
            await s.select("v", ["a", "b"])
        assert s.text == "some text1"


@pytest.mark.parametrize(
    "method",
    [
        "token_length_normalized",
        "greedy_token_selection",
        "unconditional_likelihood_normalized",
        "sum",
    ],
)
@pytest.mark.parametrize("chosen", [0, 1, 2, "yes", "yes indeed", "no way"])
async def test_select_by_text_or_index_whatever_the_method(method, chosen) -> None:
    options = ["yes", "yes indeed", "no way"]
    async with ScriptedRuntime({"v": chosen}) as rt:
        handle = rt.prompt("a").select("v", options, method=method)
        assert await handle == (options[chosen] if isinstance(chosen, int) else chosen)
        assert len(rt.asked) == 1


async def test_values_and_models_are_said_as_json() -> None:
    async with ScriptedRuntime(
        {
            "n": 42,
            "yes": True,
            "half": 0.5,
            "who": Person(name="Ada", age=36),
            "raw": {"name": "Bo", "age": 1},
            "c": "b",
            "r": "a7",
        }
    ) as rt:
        s = rt.prompt("a")
        assert await s.gen("n", dtype=int) == 42
        assert await s.gen("yes", dtype=bool) is True
        assert await s.gen("half", dtype=float) == 0.5
        assert await s.gen("who", json_schema=Person) == Person(name="Ada", age=36)
        assert await s.gen("raw", json_schema=Person) == Person(name="Bo", age=1)
        assert await s.gen("c", choices=["a", "b"]) == "b"
        assert await s.gen("r", regex="[a-z][0-9]") == "a7"


@pytest.mark.parametrize(
    ("script", "options", "told"),
    [
        (None, {}, "script must be a dict .*None"),
        ("one", {}, "script must be a dict .*'one'"),
        ({3: "one"}, {}, "names of a script are strings.*3"),
        ({}, {"context_length": 0}, "context_length must be an integer of 1 or more, not 0"),
        ({}, {"context_length": "long"}, "context_length must be"),
    ],
)
def test_bad_arguments_raise_at_once(script, options, told) -> None:
    with pytest.raises(asgl.ConfigError, match=told):
        ScriptedRuntime(script, **options)


async def test_bytes_are_no_answer() -> None:
    async with ScriptedRuntime({"x": b"12"}) as rt:  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="bytes"):
            await rt.prompt("a").gen("x")


@pytest.mark.parametrize(
    "options", [{"choices": ["a", "b"]}, {"regex": "[a-z][0-9]"}, {"dtype": int}]
)
async def test_an_answer_that_the_op_does_not_allow(options) -> None:
    async with ScriptedRuntime({"x": "c", "y": "c"}) as rt:
        s = rt.prompt("a")
        await s.gen("y")
        with pytest.raises(
            ScriptError, match=r"answer for a gen 'x', after .*'c', is nothing that the"
        ):
            await s.gen("x", **options)


async def test_answers_end_as_a_models_would() -> None:
    async with ScriptedRuntime(
        {"x": "one two\nthree", None: lambda prompt: RuntimeError("broken")}
    ) as rt:
        s = rt.prompt("a")
        handle = s.gen("x", max_tokens=2)
        assert [piece async for piece in handle] == ["one", " two"]
        assert handle.finish_reason == "length"
        cut = s.gen("x", stop="wo")
        assert await cut == "one t"
        assert (cut.finish_reason, cut.matched_stop) == ("stop", "wo")
        whole = s.gen("x", logprobs=1)
        assert await whole == "one two\nthree"
        assert whole.finish_reason == "eos"
        assert len(whole.logprobs or ()) == 4
        assert await s.gen("x", max_tokens=0) == ""
        with pytest.raises(RuntimeError, match="broken"):
            await s.gen()


async def test_a_context_that_is_too_short() -> None:
    async with ScriptedRuntime({"x": "b c d"}, context_length=4) as rt:
        assert await rt.prompt("a a").gen("x") == "b c"
        for wrong in (
            lambda s: s.gen("x"),
            lambda s: s.select("x", ["b"]),
            lambda s: s.extend(" !"),
        ):
            with pytest.raises(asgl.ContextLengthError):
                await wrong(rt.prompt("a a a a"))


async def test_forks_batches_budgets_and_retries() -> None:
    @asgl.function
    async def program(s: asgl.PromptStream, topic: str) -> str:
        s += topic
        return await s.gen("tip", validate=str.isupper, retries=1)

    async with ScriptedRuntime({"tip": lambda prompt: prompt.upper(), "long": "a b c d e f"}) as rt:
        assert [s.returned for s in await program.batch(rt, ["x", "y"], progress=False)] == [
            "X",
            "Y",
        ]
        s = rt.prompt("z")
        async with s.fork(2) as branches:
            for branch in branches:
                branch.gen("tip")
        assert branches.gather("tip") == ["Z", "Z"]
        with asgl.budget(tokens=3), pytest.raises(asgl.BudgetError):
            await s.gen("long")


async def test_cancelling_and_leaving_end_what_runs() -> None:
    async with ScriptedRuntime({"x": "a b c d"}) as rt:
        s = rt.prompt("a")

        async def generate() -> str:
            return await s.gen("x")

        task = asyncio.ensure_future(generate())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rt.statistics().cancelled == 1
        running = s.gen("x")
        s.extend("b")
        stopped = rt.prompt("b").gen("x")
        await asyncio.sleep(0)
        assert stopped.stop()
        assert (await stopped, stopped.finish_reason) == ("a", "stopped")
    with pytest.raises(asgl.OpCancelledError):
        await running
    with pytest.raises(asgl.EngineClosedError):
        rt.statistics()


async def test_saved_prompts(tmp_path) -> None:
    async with ScriptedRuntime({"x": "one two"}) as rt:
        s = rt.prompt()
        s += asgl.user("hello there") + asgl.assistant(asgl.gen("x"))
        await s.get("x")
        await s.save(tmp_path / "s.json")
        await rt.save_cache(tmp_path / "cache")
        with pytest.raises(asgl.ConfigError):
            await s.save(tmp_path / "no" / "where")
    async with ScriptedRuntime({"y": "three"}) as rt:
        again = rt.load(tmp_path / "s.json")
        await again.assistant(asgl.gen("y"))
        assert again.text == "".join(
            f"<|im_start|>{role}\n{content}<|im_end|>\n"
            for role, content in (
                ("user", "hello there"),
                ("assistant", "one two"),
                ("assistant", "three"),
            )
        )
        assert again["x"] == "one two"
        assert rt.tokenizer.decode(again.token_ids) == again.text
        assert await rt.load_cache(tmp_path / "cache") == 0
        with pytest.raises(asgl.ModelError):
            rt.load(tmp_path / "nothing")


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = {"torch", "triton", "numba", "transformers", "numpy"}
    code = f"import sys, asgl.testing; print(*sorted({heavy} & set(sys.modules)))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == []
