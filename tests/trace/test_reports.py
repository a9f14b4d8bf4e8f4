"""Statistics, differences and Perfetto's file: of a run that is known, and of any events."""

from __future__ import annotations

import json

import pytest
from any_events import random_events
from demo_run import demo_events

from asgl.trace.diff import difference
from asgl.trace.model import Model
from asgl.trace.perfetto import trace_events
from asgl.trace.stats import PARTS, percentile, statistics_of


def demo() -> Model:
    return Model(demo_events(closed=True))


def test_statistics_by_the_names_of_ops():
    found = {entry.title: entry for entry in statistics_of(demo())}
    assert list(found) == ["gen topic", "gen idea", "gen", "gen grade", "gen tip"]
    topic = found["gen topic"]
    assert (topic.count, topic.failed, topic.generated) == (2, 1, 5)
    assert topic.cached_share == 2 / 8
    assert len(topic.seconds) == 2
    assert found["gen grade"].retried == 1
    assert found["gen"].spent["tools"] > 2
    for entry in found.values():
        assert set(entry.spent) == set(PARTS)


def test_the_time_of_an_op_is_the_sum_of_its_parts():
    for entry in statistics_of(demo()):
        parts = sum(entry.spent[part] for part in ("waiting", "computing", "generating"))
        assert parts == pytest.approx(sum(entry.seconds), abs=0.25)


def test_percentiles():
    assert percentile([], 0.5) is None
    assert percentile([3], 0.99) == 3
    assert percentile(range(1, 101), 0.5) == 50
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([5, 1, 3], 0.5) == 3


def test_a_run_differs_from_itself_in_nothing():
    found = difference(demo(), demo())
    assert found.nothing
    assert found.same == 9


def changed(**changes) -> Model:
    """The demo with other values for fields of an event of this kind and op."""
    model = demo()
    (op,) = [
        op
        for run in model.runs.values()
        for op in run.ops()
        if op.title == "gen topic" and op.stream.item == 0
    ]
    for name, value in changes.items():
        setattr(op, name, value)
    return model


def test_what_differs():
    found = difference(demo(), changed(text="other"))
    assert [pair.place for pair in found.other_text] == [("ideas[0]", "0 gen topic")]
    assert [pair.after.text for pair in found.other_text] == ["other"]
    found = difference(demo(), changed(state="cancelled"))
    assert len(found.other_end) == 1
    assert not found.other_text
    before = next(iter(changed().run.ops())).ended_at
    found = difference(demo(), changed(ended_at=before + 5))
    assert [pair.place[0] for pair in found.slower] == ["ideas[0]"]
    found = difference(changed(ended_at=before + 5), demo())
    assert [pair.place[0] for pair in found.faster] == ["ideas[0]"]
    other = demo()
    other.run.requests[2].cached_tokens = 0
    found = difference(demo(), other)
    assert [pair.place for pair in found.less_cached] == [("ideas[0]", "branch 0", "0 gen idea")]
    half = Model(demo_events()[:40])
    found = difference(demo(), half)
    assert ("tips[1]", "0 gen tip") in found.only_before
    assert difference(half, demo()).only_after == found.only_before


def test_streams_of_one_name_are_told_apart():
    events = [event for event in demo_events() if type(event).__name__ != "ProgramEvent"]
    for event in events:
        if type(event).__name__ == "StreamEvent":
            object.__setattr__(event, "name", "same")
    assert difference(Model(events), Model(events)).same == 9


# --- Perfetto -------------------------------------------------------------------------------------


def checked(model: Model) -> list[dict]:
    """The entries, as the format wants them: https://perfetto.dev/docs knows X, i, C and M."""
    written = json.loads(json.dumps(trace_events(model)))

    for entry in written["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= set(entry)
        assert isinstance(entry["tid"], int)
        if entry["ph"] == "M":
            assert entry["name"] in ("process_name", "thread_name")
            assert isinstance(entry["args"]["name"], str)
            continue
        assert entry["ph"] in "XiC"
        assert isinstance(entry["ts"], float | int)
        if entry["ph"] == "X":
            assert entry["dur"] >= 0
    return written["traceEvents"]


def test_perfetto():
    entries = checked(demo())
    names = {entry["name"] for entry in entries}
    assert {"step 0", "KV tokens", "gen topic", "computing", "tool look", "retracted"} <= names
    tracks = {entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    assert "ideas[0] / branch 1" in tracks
    (step,) = [entry for entry in entries if entry["name"] == "step 4"]
    assert step["args"] == {"tokens": 4, "requests": 2, "running": 2, "waiting": 1}
    assert step["dur"] == pytest.approx(90_000)


@pytest.mark.parametrize("seed", range(60))
def test_reports_of_any_events(seed):
    first, second = Model(random_events(seed, 100)), Model(random_events(seed + 1, 100))
    checked(first)
    for entry in statistics_of(first):
        assert all(seconds >= 0 for seconds in entry.seconds)
        assert all(seconds >= 0 for seconds in entry.spent.values())
    assert difference(first, first).nothing
    difference(first, second)
