"""The model of a run: what it makes of real traces, and of any events at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest
from any_events import random_events

import asgl
from asgl.testing import ScriptedRuntime, ScriptError
from asgl.trace import (
    OpEvent,
    ProgramEvent,
    RequestEvent,
    RuntimeEvent,
    StepEvent,
    StreamEvent,
    TextEvent,
    TokenEvent,
    ToolEvent,
    WaitEvent,
)
from asgl.trace.model import Model
from asgl.trace.nodes import ACTIVE


def check(model: Model) -> None:
    """What is counted is what there is."""
    for run in model.runs.values():
        streams = list(run.streams.values())
        forgotten = run.counts.copy()
        forgotten.subtract(Counter(stream.state for stream in streams))
        assert all(count >= 0 for count in forgotten.values())
        if not model.live:
            assert not any(forgotten.values())
        assert set(run.active) == {stream.id for stream in streams if stream.state in ACTIVE}
        assert set(run.failed) == {stream.id for stream in streams if stream.state == "failed"}
        roots = run.root_states.copy()
        roots.subtract(Counter(root.state for root in run.roots))
        assert all(count >= 0 for count in roots.values())
        assert len(streams) == sum(1 for root in run.roots for _ in root.walk())
        for stream in streams:
            below = [one for one in stream.walk() if one is not stream]
            assert stream.active_below == sum(one.state in ACTIVE for one in below)
            children = Counter(child.state for child in stream.children)
            assert +stream.child_states == children
            assert [child.index for child in stream.children] == list(range(len(stream.children)))
            positions = [segment.position for segment in stream.segments]
            assert positions == sorted(positions)
            assert stream.seconds(model.now) >= 0
            assert isinstance(stream.text + stream.title, str)
            assert (stream.cached_share or 0) >= 0
            for op in stream.ops.values():
                assert op.seconds(model.now) >= 0
                assert isinstance(op.shown + op.title, str)
        for request in run.requests.values():
            assert all(seconds >= 0 for seconds in request.seconds(model.now).values())
            assert request.rate(model.now) >= 0
        assert run.rate() >= 0


@pytest.mark.parametrize("live", [False, True])
def test_any_events_make_a_model(live):
    for seed in range(300):
        model = Model(live=live)
        for event in random_events(seed, 80):
            model.apply(event)
        check(model)


# --- real traces ----------------------------------------------------------------------------------


class Recorder:
    def __init__(self) -> None:
        self.events = []

    def event(self, event) -> None:
        self.events.append(event)


@asgl.tool
async def look(where: str) -> str:
    """Looks.

    Args:
        where: Where.
    """
    if where == "away":
        raise LookupError("nothing there")
    return "seen"


SCRIPT = {
    None: lambda prompt: '{"name": "look", "arguments": {"where": "away"}}',
    "choice": "yes",
    **dict.fromkeys("wxyz", " some words here"),
}


@contextlib.asynccontextmanager
async def scripted(recorder):
    """A Runtime that answers whatever is asked, and need not be asked everything."""
    with contextlib.suppress(ScriptError):
        async with ScriptedRuntime(SCRIPT, tracers=[recorder]) as rt:
            yield rt


async def traced(seed: int) -> list:
    """The events of a random crowd of programs."""
    draw, recorder = random.Random(seed), Recorder()

    @asgl.function
    async def program(s, number):
        s += f"Question {number}: "
        for _ in range(draw.randint(1, 3)):
            kind = draw.choice(["gen", "fork", "select", "tool", "retry", "rewind", "fail"])
            if kind == "gen":
                await s.gen("x", stop=draw.choice([None, " here"]))
            elif kind == "fork":
                async with s.fork(draw.randint(1, 3)) as branches:
                    for branch in branches:
                        branch += " then"
                        branch.gen("y")
                s.join(branches)
            elif kind == "select":
                await s.select("choice", ["yes", "no"])
            elif kind == "tool":
                await s.call_tools([look], max_tokens=50)
            elif kind == "retry":
                tries = iter([False, True])
                await s.gen("z", validate=lambda text, tries=tries: next(tries), retries=1)
            elif kind == "rewind":
                mark = s.mark()
                await s.gen("w")
                s.rewind(mark)
            elif draw.random() < 0.3:
                raise ValueError("no")
        await s.sync()

    async with scripted(recorder) as rt:
        crowd = program.batch(rt, range(draw.randint(1, 6)), on_error="return", progress=False)
        if draw.random() < 0.3:
            task = asyncio.create_task(crowd)
            for _ in range(draw.randint(1, 30)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        else:
            await crowd
    return recorder.events


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("live", [False, True])
async def test_any_prefix_of_a_trace_makes_a_model(seed, live):
    told = await traced(seed)
    model = Model(live=live)
    for index, event in enumerate(told):
        model.apply(event)
        if index % 7 == 0 or index == len(told) - 1:
            check(model)
    run = model.run
    assert run is not None
    assert not run.active
    assert {stream.state for stream in run.roots} <= {"done", "failed", "cancelled"}


@pytest.mark.parametrize("seed", range(6))
async def test_any_part_of_a_trace_makes_a_model(seed):
    told = await traced(seed)
    draw = random.Random(seed)
    model = Model([event for event in told if draw.random() < 0.5])
    check(model)


async def test_what_a_stream_says_is_what_the_model_says():
    recorder = Recorder()
    async with scripted(recorder) as rt:
        s = rt.prompt("Say: ")
        await s.gen("x", stop=" here")
        mark = s.mark()
        s += " and"
        await s.gen("y")
        s.rewind(mark)
        await s.select("choice", ["yes", "no"])
        async with s.fork(2) as branches:
            for branch in branches:
                branch += "; "
                branch.gen("z")
        s.join(branches)
        await s.extend(" end")
        said, of_branch = s.text, branches[1].text
    (run,) = Model(recorder.events).runs.values()
    root = run.roots[0]
    assert root.text == said
    assert root.children[1].text == ";  some words here" == of_branch[-18:]
    hows = [span.how for span in root.spans()]
    assert hows[0] == "computed"
    assert hows[1] == "sampled"
    assert "selected" in hows
    assert "joined" in hows


# --- states ---------------------------------------------------------------------------------------


def run_of(*events):
    """A model of these events, a second apart."""
    model = Model()
    for number, event in enumerate(events):
        object.__setattr__(event, "time", float(number))
        model.apply(event)
    check(model)
    assert model.run is not None
    return model.run


OPENED = (RuntimeEvent("opened", "m", "cpu", "cpu", 100, 8), StreamEvent("opened", 0))
STARTED = (
    *OPENED,
    OpEvent("submitted", 0, 0, "gen", "x"),
    OpEvent("started", 0, 0, "gen", "x"),
    RequestEvent("submitted", 1, 10),
    OpEvent("requested", 0, 0, "gen", "x", 1),
)
ADMITTED = (*STARTED, RequestEvent("admitted", 1, 10, 4))
TOKEN = TokenEvent(1, 5, " a")


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (OPENED, "idle"),
        (STARTED[:3], "waiting"),
        (STARTED, "waiting"),
        (ADMITTED, "computing"),
        ((*ADMITTED, TOKEN), "generating"),
        ((*ADMITTED, TOKEN, RequestEvent("retracted", 1, 10, 4, 1, "full")), "waiting"),
        ((*OPENED, ToolEvent("started", 0, 0, 0, "look")), "tool"),
        ((*OPENED, WaitEvent("waits", 0, "text of", 3)), "waiting"),
        ((*OPENED, WaitEvent("waits", 0, "t", 3), WaitEvent("goes on", 0, "t", 3)), "idle"),
        ((*ADMITTED, OpEvent("failed", 0, 0, "gen", "x", 1, "", "no")), "failed"),
        ((*OPENED, ProgramEvent("started", 0, "p"), ProgramEvent("finished", 0, "p")), "done"),
        ((*OPENED, ProgramEvent("cancelled", 0, "p")), "cancelled"),
        ((*OPENED, RuntimeEvent("closed")), "done"),
    ],
)
def test_the_state_of_a_stream(events, state):
    run = run_of(*events)
    assert run.streams[0].state == state
    assert run.counts[state] == 1


def test_where_the_time_of_a_request_went():
    run = run_of(
        *ADMITTED,
        TOKEN,
        RequestEvent("retracted", 1, 10, 4, 1, "full"),
        RequestEvent("admitted", 1, 10, 4),
        TokenEvent(1, 6, " b"),
        RequestEvent("finished", 1, 10, 4, 2, "stop"),
    )
    request = run.requests[1]
    assert request.retractions == [(8.0, "full")]
    assert request.seconds(99) == {"waiting": 3.0, "computing": 1.0, "generating": 3.0}
    assert request.rate(99) == pytest.approx(1 / 4)
    assert (run.prompt_tokens, run.cached_tokens, run.retractions) == (10, 4, 1)
    assert run.hit_rate == 0.4
    assert run.streams[0].cached_share == 0.4


def test_a_stop_cuts_the_last_token_and_a_rewind_the_text():
    generated = TextEvent("generated", 0, 3, 1, " a", (), 1)
    events = [TextEvent("prompt", 0, 0, 3, pieces=("x", "y", "z")), *ADMITTED[2:], TOKEN]
    run = run_of(*OPENED, *events, TokenEvent(1, 6, ".\nQ"), generated)
    assert run.streams[0].text == "xyz a"
    spans = [(span.text, span.how) for span in run.streams[0].spans()]
    assert spans == [("xyz", "cached"), (" a", "sampled")]
    run = run_of(*OPENED, *events, generated, TextEvent("rewound", 0, 2))
    assert run.streams[0].text == "xy"


def test_a_live_model_forgets_what_is_long_over_and_keeps_failures():
    model = Model(live=True)
    for number in range(3000):
        kind = "failed" if number % 1000 == 0 else "finished"
        model.apply(StreamEvent("opened", number))
        model.apply(ProgramEvent("started", number, "p", number))
        model.apply(OpEvent("submitted", number, 0, "gen"))
        model.apply(OpEvent("started", number, 0, "gen"))
        model.apply(RequestEvent("submitted", number, 5))
        model.apply(OpEvent("requested", number, 0, "gen", None, number))
        model.apply(StepEvent(number, 1, 0, 1, 1, 0, 9, 0, 0.1, 0.1, ((number, 1),)))
        model.apply(RequestEvent("finished", number, 5))
        model.apply(OpEvent("finished", number, 0, "gen", None, number, "text"))
        model.apply(ProgramEvent(kind, number, "p", number, "no"))
    run = model.run
    assert run is not None
    assert len(run.streams) < 1010
    assert len(run.requests) < 1010
    assert len(run.steps) < 1100
    assert run.counts["done"] == 2997
    assert set(run.failed) == {0, 1000, 2000}
    check(model)


def test_a_live_model_forgets_nothing_that_goes_on():
    model = Model(live=True)
    for number in range(1500):
        model.apply(StreamEvent("opened", number))
        if number % 2:
            model.apply(ProgramEvent("started", number, "p", number))
    for number in range(1500):
        model.apply(OpEvent("submitted", number, 0, "gen"))
    run = model.run
    assert run is not None
    assert len(run.streams) == 1500
    assert run.counts["waiting"] == 1500
    check(model)
