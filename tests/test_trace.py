"""Tracers: lines of JSON, and one that raises."""

from __future__ import annotations

import json

import pytest

from asgl.errors import ConfigError
from asgl.trace import JsonlTracer, RequestEvent, StreamEvent, Tracers


def test_events_become_lines_of_json(tmp_path):
    path = tmp_path / "trace.jsonl"
    with JsonlTracer(path) as tracer:
        tracers = Tracers([tracer])
        assert tracers
        tracers.emit(StreamEvent("opened", 3, name="naïve"))
        tracers.emit(RequestEvent("finished", 7, 10, 4, 2, "stop"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["type"] for line in lines] == ["StreamEvent", "RequestEvent"]
    assert lines[0]["name"] == "naïve"
    assert (lines[1]["request_id"], lines[1]["cached_tokens"], lines[1]["reason"]) == (7, 4, "stop")
    assert 0 <= lines[0]["time"] <= lines[1]["time"]


def test_lines_are_flushed_every_so_many(tmp_path):
    path = tmp_path / "trace.jsonl"
    with JsonlTracer(path, flush_every=2) as tracer:
        tracer.event(StreamEvent("opened", 0))
        tracer.event(StreamEvent("closed", 0))
        assert len(path.read_text().splitlines()) == 2


def test_a_tracer_that_raises_is_removed_and_the_others_stay():
    heard = []

    class Good:
        def event(self, event):
            heard.append(event)

    class Bad:
        def event(self, event):
            raise ValueError("no")

    tracers = Tracers([Bad(), Good()])
    with pytest.warns(RuntimeWarning, match="removed"):
        tracers.emit(StreamEvent("opened", 0))
    tracers.emit(StreamEvent("closed", 0))
    assert [event.kind for event in heard] == ["opened", "closed"]
    assert not Tracers()


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


@pytest.mark.parametrize("options", [{"path": None}, {"path": ""}, {"flush_every": 0}])
def test_a_jsonl_tracer_of_nothing(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        JsonlTracer(**{"path": tmp_path / "trace.jsonl", **options})
