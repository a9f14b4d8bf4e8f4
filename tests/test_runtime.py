"""A Runtime from outside, on a tiny random model: opening, use, leaving, and what goes wrong on the
way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading

import anyio
import pytest

import asgl
from asgl.execution.serial_runner import SerialRunner
from asgl.trace import StepEvent, default_tracers, read
from asgl.types import EngineStatistics
from tiny import tiny_directory

GREEDY = asgl.SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


def runtime(model, **options) -> asgl.Runtime:
    options = {
        "kernels": "reference",
        "dtype": "float32",
        "kv_cache_tokens": 2000,
        "sampling": GREEDY,
    } | options
    return asgl.Runtime(model, **options)


def device_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "asgl-device"]


def balanced(seen: EngineStatistics) -> bool:
    return seen.free + seen.evictable == seen.capacity and seen.running == seen.waiting == 0


async def test_opening_generating_and_leaving(model):
    async with runtime(model) as rt:
        s = rt.prompt("Hello there")
        text = await s.gen("text")
        assert s.text == "Hello there" + text
        assert s["text"] == text
        assert rt.model.kernels == "reference"
        assert rt.tokenizer.decode(rt.tokenizer.encode("Hello")) == "Hello"
        assert balanced(rt.statistics())
        assert len(device_threads()) == 1
    assert not device_threads()


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float8"},
        {"weights": "int3"},
        {"activations": "int4"},
        {"kernels": "fast"},
        {"policy": "sjf"},
        {"kv_cache_tokens": 0},
        {"kv_cache_tokens": 1.5},
        {"max_running": 0},
        {"max_batch_tokens": -1},
        {"max_running": True},
        {"sampling": {"top_p": 1}},
        {"device": 3},
        {"device": None},
        {"deterministic": "no"},
        {"max_running": None},
        {"policy": ["lpm"]},
        {"tracers": [print]},
        {"tracers": None},
    ],
)
def test_bad_arguments_raise_at_once(options):
    with pytest.raises(asgl.ConfigError) as caught:
        asgl.Runtime("smollm2-135m", **options)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize("model", [None, 3, b"smollm2-135m", asgl.Runtime])
def test_what_is_no_name_of_a_model_raises_at_once(model):
    with pytest.raises(asgl.ConfigError, match="model must be a registered name") as caught:
        asgl.Runtime(model)
    assert str(caught.value).endswith(repr(model))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "cuda:7"}, asgl.ConfigError, "cuda:7"),
        ({"device": "tpu"}, asgl.ConfigError, "tpu"),
        ({"kv_cache_tokens": 10**12}, asgl.ConfigError, "GiB"),
        (
            {"sampling": asgl.SamplingParams(logit_bias={10**6: 1.0})},
            asgl.ConfigError,
            "no token 1000000",
        ),
    ],
)
async def test_what_cannot_be_had_raises_when_entered_and_leaves_no_thread(
    model, options, error, words
):
    with pytest.raises(error, match=words):
        async with runtime(model, **options):
            pass
    assert not device_threads()


async def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(asgl.ModelError, match=r"smollm2-135"):
        async with asgl.Runtime("smollm2-135n"):
            pass
    with pytest.raises(asgl.ModelError):
        async with asgl.Runtime(tmp_path):
            pass
    with pytest.raises(asgl.ModelError, match=r"nosuch\.gguf': no file or directory"):
        async with asgl.Runtime("./nosuch.gguf"):
            pass
    assert not device_threads()


def test_without_an_event_loop_of_asyncio(model):
    """As under trio."""
    entering = runtime(model).__aenter__()
    with pytest.raises(asgl.EngineError, match="needs an event loop of asyncio"):
        entering.send(None)
    assert not device_threads()


async def test_use_outside_of_the_block_and_twice(model):
    rt = runtime(model)
    with pytest.raises(asgl.EngineClosedError, match="async with"):
        rt.prompt("x")
    async with rt:
        pass
    with pytest.raises(asgl.EngineClosedError):
        rt.statistics()
    with pytest.raises(asgl.EngineError, match="once"):
        async with rt:
            pass


async def test_leaving_cancels_what_still_runs(model):
    async with runtime(model) as rt:
        s = rt.prompt("a")
        handle = s.gen("endless", max_tokens=1000, ignore_eos=True)
        async for _ in handle:
            break
    assert handle.done()
    with pytest.raises((asgl.OpCancelledError, asgl.EngineClosedError)):
        await handle


async def test_an_exception_of_the_body_is_not_replaced(model):
    with pytest.raises(ZeroDivisionError) as caught:
        async with runtime(model) as rt:
            rt.prompt("a" * 10_000).gen("too long")
            await asyncio.sleep(0)
            raise ZeroDivisionError
    assert "ContextLengthError" in caught.value.__notes__[0]


async def test_failures_that_nobody_saw_are_raised_together(model):
    with pytest.raises(ExceptionGroup) as caught:
        async with runtime(model) as rt:
            for _ in range(20):
                rt.prompt("a" * 10_000).gen("too long")
    assert len(caught.value.exceptions) == 16
    assert "20 failures" in str(caught.value)
    assert all(type(error) is asgl.ContextLengthError for error in caught.value.exceptions)


@pytest.mark.parametrize(
    ("failing", "told"),
    [(1, "1 failure of ops that nobody awaited"), (1030, "1024 failures .*and 6 more")],
)
async def test_how_many_failures_nobody_saw(model, failing, told):
    with pytest.raises(ExceptionGroup, match=told):
        async with runtime(model) as rt:
            for _ in range(failing):
                rt.prompt("a" * 2000).gen("too long")


async def test_a_cancelled_task_cancels_its_work(model):
    async with runtime(model) as rt:
        s = rt.prompt("abc")
        with anyio.move_on_after(0) as scope:
            await s.gen("long", max_tokens=1500, ignore_eos=True)
        assert scope.cancelled_caught
        assert s.text == "abc"
        assert await s.gen("short", max_tokens=2, ignore_eos=True) == s["short"]
        assert rt.statistics().cancelled == 1
        assert balanced(rt.statistics())


class AtStep:
    """A tracer that calls a function once, when the engine has run its step `number`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.act = None

    def event(self, event) -> None:
        if isinstance(event, StepEvent) and event.number == self.number and self.act is not None:
            act, self.act = self.act, None
            act()


async def branching_program(rt: asgl.Runtime) -> str:
    s = rt.prompt("Which of these is the best? ")
    await s.gen("a", max_tokens=4, ignore_eos=True)
    await s.select("b", ["one of them", "another of them", "none"])
    async with s.fork(2) as branches:
        for number, branch in enumerate(branches):
            branch += f" {number}:"
            branch.gen("c", max_tokens=4, ignore_eos=True)
    s.join(branches)
    return await s.gen("d", max_tokens=3, ignore_eos=True)


async def test_a_program_cancelled_at_every_step_leaves_the_books_balanced(model):
    for number in range(100):
        at = AtStep(number)
        async with runtime(model, tracers=[at], max_batch_tokens=16) as rt:
            task = asyncio.ensure_future(branching_program(rt))
            at.act = task.cancel
            try:
                await task
                ran_to_the_end = True
            except asyncio.CancelledError:
                ran_to_the_end = False
            # a step that was in flight keeps its slots until it returns: before the next one
            assert isinstance(await rt.prompt("still").gen(max_tokens=2), str)
            assert balanced(rt.statistics())
            assert len(asyncio.all_tasks()) == 2  # this test and the engine's loop
        assert not device_threads()
        if ran_to_the_end:
            break
    assert 10 < number < 99


def on_the_device_before_step(monkeypatch, number: int, act) -> None:
    launch = SerialRunner.launch

    def acting(runner, plan) -> None:
        if plan.number == number:
            act()
        launch(runner, plan)

    monkeypatch.setattr(SerialRunner, "launch", acting)


@pytest.mark.parametrize("step", [0, 1, 2, 5, 9])
async def test_a_runner_that_raises_at_step_k_reaches_the_program(model, step, monkeypatch):
    async with runtime(model, max_batch_tokens=16) as rt:

        def fail() -> None:
            raise RuntimeError("device lost")

        on_the_device_before_step(monkeypatch, step, fail)
        with pytest.raises((asgl.EngineCrashedError, ExceptionGroup)) as caught:
            await branching_program(rt)
        crash = (
            caught.value
            if isinstance(caught.value, asgl.EngineCrashedError)
            else caught.value.exceptions[0]
        )
        assert isinstance(crash, asgl.EngineCrashedError)
        assert isinstance(crash.__cause__, RuntimeError)
        assert balanced(rt.statistics())
        with pytest.raises(asgl.AsglError):
            await rt.prompt("x").gen()
    assert not device_threads()


async def test_forks_compute_the_prompt_once(model):
    async with runtime(model, max_batch_tokens=64) as rt:
        s = rt.prompt("The quick brown fox jumps over the lazy dog. " * 4)
        prompt_tokens = len(s.token_ids)
        async with s.fork(6) as branches:
            for number, branch in enumerate(branches):
                branch += f"{number}: "
                branch.gen("text")
        seen = rt.statistics()
        assert seen.cached_tokens >= 5 * (prompt_tokens - 2)
        assert len(branches.gather("text")) == 6


async def test_two_runtimes_and_a_seeded_sample_that_depends_on_neither(model):
    hot = asgl.SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    async with runtime(model, sampling=hot) as one:
        alone = await one.prompt("abc").gen(seed=7)
        async with runtime(model, sampling=hot) as two:
            others = [two.prompt(f"{number}").gen(seed=number) for number in range(5)]
            again = await two.prompt("abc").gen(seed=7)
            for other in others:
                await other
    assert alone == again


def test_a_second_asyncio_run_in_one_process(model):
    async def once() -> str:
        async with runtime(model) as rt:
            return await rt.prompt("abc").gen()

    assert asyncio.run(once()) == asyncio.run(once())
    assert not device_threads()


async def test_use_from_another_loop(model):
    async with runtime(model) as rt:

        async def elsewhere() -> None:
            rt.prompt("x").gen()

        with pytest.raises(asgl.AsglError, match="loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_it_works_in_an_async_generator(model):
    async def fixture():
        async with runtime(model) as rt:
            yield rt

    generator = fixture()
    rt = await anext(generator)
    assert isinstance(await rt.prompt("abc").gen(), str)
    with contextlib.suppress(StopAsyncIteration):
        await anext(generator)
    assert not device_threads()


async def test_a_keyboard_interrupt_in_the_body_closes_everything(model):
    with pytest.raises(KeyboardInterrupt):
        async with runtime(model) as rt:
            rt.prompt("abc").gen(max_tokens=1500, ignore_eos=True)
            await asyncio.sleep(0)
            raise KeyboardInterrupt
    assert not device_threads()


def test_an_interrupt_while_a_step_runs_closes_everything(model, monkeypatch):
    """Ctrl-C: the step returns, the Runtime is left, and the next one works."""

    async def interrupted() -> None:
        async with runtime(model) as rt:
            on_the_device_before_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
            await rt.prompt("abc").gen(max_tokens=1500, ignore_eos=True)

    async def after() -> str:
        async with runtime(model) as rt:
            return await rt.prompt("abc").gen(max_tokens=3)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())
    monkeypatch.undo()
    assert not device_threads()
    asyncio.run(after())


async def test_a_loop_that_cancels_all_tasks_closes_the_engine(model):
    """As asyncio.run does when it ends, and servers do that are interrupted twice."""

    async def generate(rt: asgl.Runtime) -> str:
        return await rt.prompt("a").gen(max_tokens=1500, ignore_eos=True)

    at = AtStep(3)
    async with runtime(model, tracers=[at]) as rt:
        mine = asyncio.current_task()
        awaiting = asyncio.ensure_future(generate(rt))
        watched = rt.prompt("b").gen(max_tokens=1500, ignore_eos=True)
        rt.prompt("nobody awaits this").gen(max_tokens=1500, ignore_eos=True)
        at.act = lambda: [task.cancel() for task in asyncio.all_tasks() - {mine}]
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        with pytest.raises(asgl.EngineClosedError, match="its task was cancelled"):
            await watched
        with pytest.raises(asgl.EngineClosedError, match="its task was cancelled"):
            await rt.prompt("c").gen()
        assert balanced(rt.statistics())
    assert not device_threads()


def test_an_event_loop_that_ends_while_a_runtime_is_open_in_another_task(model):
    """A server that is interrupted twice: it no longer waits for the tasks of its application."""
    ended: list[BaseException] = []

    async def application(opened: asyncio.Event) -> None:
        try:
            async with runtime(model) as rt:
                rt.prompt("nobody awaits this").gen(max_tokens=1500, ignore_eos=True)
                opened.set()
                await rt.prompt("abc").gen(max_tokens=1500, ignore_eos=True)
        except BaseException as error:
            ended.append(error)
            raise

    async def server() -> None:
        opened = asyncio.Event()
        tasks.append(asyncio.ensure_future(application(opened)))
        await opened.wait()

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(server())
    (error,) = ended
    assert isinstance(error, asyncio.CancelledError)
    assert not getattr(error, "__notes__", [])
    assert not device_threads()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_is_told_and_its_parent_goes_on(model):
    async with runtime(model) as rt:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:

            async def use() -> None:
                rt.prompt("b").gen()

            try:
                asyncio.run(use())
                told = "nothing"
            except BaseException as error:
                told = repr(error)
            os.write(writer, told.encode())
            os._exit(0)
        os.close(writer)
        told = await asyncio.to_thread(os.read, reader, 1000)
        os.close(reader)
        await asyncio.to_thread(os.waitpid, child, 0)
        assert b"ConfigError" in told
        assert b"belong to the event loop" in told
        assert isinstance(await rt.prompt("c").gen(), str)


async def test_a_megabyte_of_text_does_not_block_the_loop(model):
    async with runtime(model) as rt:
        handle = rt.prompt("the other thing on the house. " * 34_000).gen()
        turns = 0
        while not handle.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 10  # while the text is tokenized; a loop that is blocked has one turn or two
        with pytest.raises(asgl.ContextLengthError):
            await handle


async def test_pinning_what_is_no_stream_of_this_runtime(model):
    async with runtime(model) as one, runtime(model) as two:
        s = one.prompt("Hello there", name="greeting")
        with pytest.raises(
            asgl.ConfigError, match="the stream 'greeting' belongs to another Runtime"
        ):
            await two.pin(s)
        with pytest.raises(asgl.ConfigError, match="another Runtime"):
            await two.pin(s.copy())
        assert two.statistics().prompt_tokens == one.statistics().prompt_tokens == 0
        for wrong in ("Hello there", s.text, None, s.gen("x")):
            with pytest.raises(asgl.ConfigError, match="pin takes a prompt stream, not "):
                await two.pin(wrong)
        for seconds in (0, -1, "9", float("inf"), True):
            with pytest.raises(asgl.ConfigError, match="seconds must be a finite number above 0"):
                await one.pin(s, seconds=seconds)
        await one.pin(s, seconds=9)
    with pytest.raises(asgl.EngineClosedError):
        await one.pin(s)


@pytest.mark.parametrize("path", [None, "", b"file", 3])
async def test_what_is_no_path(model, path):
    async with runtime(model) as rt:
        for use in (rt.save_cache, rt.load_cache):
            with pytest.raises(asgl.ConfigError, match="path must be a path"):
                await use(path)
        with pytest.raises(asgl.ConfigError, match="path must be a path"):
            rt.load(path)


async def test_a_directory_for_a_file(model, tmp_path):
    async with runtime(model) as rt:
        with pytest.raises(asgl.ConfigError, match=tmp_path.name):
            await rt.save_cache(tmp_path)
        with pytest.raises(asgl.ModelError, match=tmp_path.name):
            await rt.load_cache(tmp_path)
        with pytest.raises(asgl.ModelError, match=tmp_path.name):
            rt.load(tmp_path)


async def test_no_bar_where_nothing_is_compiled(tmp_path, monkeypatch, capsys):
    model = tiny_directory(tmp_path, hidden_size=128, intermediate_size=192, head_dim=32)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal
    for _ in range(2):  # the first may compile
        capsys.readouterr()
        async with runtime(model, kernels="cpu", dtype="auto"):
            pass
    assert capsys.readouterr().err == ""


async def test_flushing_the_cache(model):
    async with runtime(model) as rt:
        await rt.prompt("abc def").gen()
        assert await rt.flush_cache() > 0
        assert rt.statistics().free == rt.statistics().capacity


async def test_default_tracers_of_the_context_are_attached(model, tmp_path):
    with asgl.JsonlTracer(tmp_path / "trace.jsonl") as tracer:
        token = default_tracers.set((tracer,))
        try:
            async with runtime(model) as rt:
                await rt.prompt("abc").gen("x")
        finally:
            default_tracers.reset(token)
    kinds = [type(event).__name__ for event in read(tmp_path / "trace.jsonl")]
    assert {kinds[0], kinds[-1]} == {"RuntimeEvent"}
    assert {"StreamEvent", "OpEvent", "RequestEvent", "TokenEvent", "StepEvent"} < set(kinds)


async def test_nothing_is_left_after_a_runtime(model):
    async with runtime(model) as rt:
        await rt.prompt("abc").gen()
    before = {id(task) for task in asyncio.all_tasks()}
    gc.collect()
    assert len(before) == 1


async def test_a_thousand_prompts_at_once(model):
    async with runtime(model) as rt:
        handles = [rt.prompt(f"{number}").gen(max_tokens=2) for number in range(1000)]
        texts = [await handle for handle in handles]
        assert len(texts) == 1000
        assert balanced(rt.statistics())


@pytest.mark.parametrize("prompt", ["", "abc"])
async def test_no_tokens_to_generate(model, prompt):
    async with runtime(model) as rt:
        assert await rt.prompt(prompt + "x").gen(max_tokens=0) == ""


async def test_a_cache_of_64_slots_under_fifty_programs(model):
    async with runtime(model, kv_cache_tokens=64) as rt:

        async def program(number: int) -> str:
            s = rt.prompt(f"{number} ")
            await s.gen("a", max_tokens=10, ignore_eos=True)
            return await s.gen("b", max_tokens=10, ignore_eos=True)

        results = await asyncio.gather(*map(program, range(50)))
        assert len(results) == 50
        assert balanced(rt.statistics())
        with pytest.raises(asgl.CapacityError, match="kv_cache_tokens"):
            await rt.prompt("a").gen(max_tokens=100)
