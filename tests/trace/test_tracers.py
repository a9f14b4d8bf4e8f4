"""Who hears of events: one that raises is removed, what is no tracer is told at once, and with none
nothing is built."""

from __future__ import annotations

import pytest

import asgl
from asgl.errors import ConfigError
from asgl.testing import ScriptedRuntime
from asgl.trace import JsonlTracer, StreamEvent, Tracers, events


class Recorder:
    def __init__(self) -> None:
        self.events = []

    def event(self, event) -> None:
        self.events.append(event)


def test_a_tracer_that_raises_is_removed_and_the_others_stay():
    class Bad:
        def event(self, event):
            raise ValueError("no")

    good = Recorder()
    tracers = Tracers([Bad(), good])
    with pytest.warns(RuntimeWarning, match="removed"):
        tracers.emit(StreamEvent("opened", 0))
    tracers.emit(StreamEvent("closed", 0))
    assert [event.kind for event in good.events] == ["opened", "closed"]
    assert not Tracers()


def test_time_and_run_are_those_of_the_one_clock():
    now = [5.0]
    heard = Recorder()
    first = Tracers([heard], clock=lambda: now[0])
    now[0] = 6.0
    second = Tracers([heard], clock=lambda: now[0])
    first.emit(StreamEvent("opened", 0))
    now[0] = 7.5
    second.emit(StreamEvent("opened", 0))
    assert [(event.time, event.run) for event in heard.events] == [
        (6.0, 5_000_000_000),
        (7.5, 6_000_000_000),
    ]


class Async:
    async def event(self, event):
        pass


@pytest.mark.parametrize(
    ("tracers", "told"),
    [
        ([print], r"<built-in function print> in tracers has no method `event`; .*event\(event\)"),
        ([JsonlTracer], "JsonlTracer.* is a class: give an instance"),
        ([Async()], "coroutine function `event`"),
        ("trace.jsonl", "'t' in tracers has no method"),
        ([None], "None in tracers has no method"),
        (Async(), "tracers must be a sequence, not .*put a single one in a list"),
        (None, "tracers must be a sequence, not None"),
    ],
)
def test_what_is_no_tracer(tracers, told):
    with pytest.raises(ConfigError, match=told):
        Tracers(tracers)


async def test_with_no_tracer_no_event_is_built(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError(f"{type(self).__name__} was built for nobody")

    async def run(tracers) -> None:
        async with ScriptedRuntime({"x": ["bad", "a b"]}, tracers=tracers) as rt:
            s = rt.prompt("Hi ")
            with asgl.budget(tokens=10):
                await s.gen("x", validate=lambda text: text == "a b", retries=1)
            async with s.fork(2) as branches:
                t = rt.prompt("")
                t += "wait: "
                branches[0].append("x")
            s.join(branches)
            await s.sync()

    heard = Recorder()
    await run([heard])
    built = {type(event) for event in heard.events}
    assert len(built) > 8
    for kind in built:
        monkeypatch.setattr(kind, "__init__", refuse)
    await run([])
    with pytest.raises(AssertionError, match="was built for nobody"):
        events.StreamEvent("opened", 0)
