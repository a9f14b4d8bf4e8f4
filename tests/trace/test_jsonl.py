"""Traces on disk: what is written is read back, a killed writer leaves its lines, and a file that
is no trace is told in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import get_args

import pytest
from any_events import VALUES, events
from hypothesis import given
from hypothesis import strategies as st

from asgl.errors import AsglError, ConfigError, TraceError
from asgl.trace import (
    Event,
    JsonlTracer,
    OpEvent,
    RequestEvent,
    StepEvent,
    StreamEvent,
    ToolEvent,
    Trace,
    Tracers,
    read,
)


@given(st.lists(events(), max_size=8))
def test_what_is_written_is_read_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    with JsonlTracer(path) as tracer:
        tracers = Tracers([tracer])
        for event in written:
            tracers.emit(event)
    seen = read(path)
    assert seen == written
    assert [event.time for event in seen] == sorted(event.time for event in seen)
    for line in path.read_bytes().rstrip(b"\n").split(b"\n"):
        json.loads(line)


def test_the_lines(tmp_path):
    path = tmp_path / "trace.jsonl"
    now = [10.0]
    with JsonlTracer(path) as tracer:
        first = Tracers([tracer], clock=lambda: now[0])
        now[0] = 11.0
        second = Tracers([tracer], clock=lambda: now[0])
        first.emit(StreamEvent("opened", 3, name="naïve \ud800"))
        now[0] = 11.25
        second.emit(RequestEvent("finished", 7, 10, 4, 2, "stop"))
        first.emit(StepEvent(0, 1, 0, 1, 1, 0, 9, 0, 0.5, 0.25, ((7, 1),)))
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(header)["version"] == 1
    assert lines[0] == (
        '{"time":0.0,"type":"StreamEvent","kind":"opened","stream_id":3,"name":"naïve \\ud800"}'
    )
    assert lines[1] == (
        '{"time":0.25,"type":"RequestEvent","run":1,"kind":"finished","request_id":7,'
        '"prompt_tokens":10,"cached_tokens":4,"generated_tokens":2,"reason":"stop"}'
    )
    assert '"rows":[[7,1]]' in lines[2]
    assert [event.run for event in read(path)] == [0, 1, 0]


def test_every_line_is_written_at_once_unless_asked_otherwise(tmp_path):
    for every, seen in ((1, 3), (4, 0)):
        path = tmp_path / f"{every}.jsonl"
        with JsonlTracer(path, flush_every=every) as tracer:
            tracer.event(StreamEvent("opened", 0))
            tracer.event(StreamEvent("closed", 0))
            assert len(path.read_text().splitlines()) == seen
        assert len(path.read_text().splitlines()) == 3
        tracer.close()


def test_a_process_that_is_killed_leaves_all_lines(tmp_path):
    path = tmp_path / "trace.jsonl"
    code = (
        "import sys\nfrom asgl.trace import JsonlTracer, StreamEvent\n"
        "tracer = JsonlTracer(sys.argv[1])\n"
        "for number in range(1000):\n    tracer.event(StreamEvent('opened', number))\n"
        "print('written', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert [event.stream_id for event in read(path)] == list(range(1000))


def test_what_is_no_json_value_is_written_as_python_shows_it(tmp_path):
    with JsonlTracer(tmp_path / "trace.jsonl") as tracer:
        tracer.event(ToolEvent("started", 0, 0, 0, "add", {"a": {1, 2}}))
    assert read(tmp_path / "trace.jsonl")[0].arguments == {"a": "{1, 2}"}


@pytest.mark.parametrize("options", [{"path": None}, {"path": ""}, {"flush_every": 0}])
def test_a_jsonl_tracer_of_nothing(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        JsonlTracer(**{"path": tmp_path / "trace.jsonl", **options})


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match=r"no trace can be written to .*: .*directory"):
        JsonlTracer(tmp_path / "missing" / "trace.jsonl")


# --- bad input ------------------------------------------------------------------------------------


HEADER = '{"type":"trace","version":1,"started_at":5}\n'
OPENED = '{"time":0.5,"type":"StreamEvent","kind":"opened","stream_id":1}\n'


def written(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no trace of asgl's: it is empty"),
        ("hello\n", "is no trace of asgl's: it begins with b'hello"),
        (b"\xff\xfe\x00", "is no trace of asgl's: it begins with"),
        ("[1]\n", "is no trace"),
        ('{"a": 1}\n' * 10, "is no trace"),
        ("[" * 100_000, "is no trace"),
        ('{"type":"trace","version":2}\n', "version 2, and this asgl reads versions up to 1"),
        ('{"type":"trace"}\n', "version None"),
        (HEADER + "nonsense\n" + OPENED, "line 2 of .* is no JSON object: b'nonsense"),
        (HEADER + '{"time":0}\n', "line 2 of .* is no event: 'type'"),
        (HEADER + '{"time":0,"type":"StreamEvent"}\n', "line 2 .* StreamEvent without 'kind'"),
        (HEADER + OPENED.replace("1}", '"x"}'), "line 2 .*stream_id must be an integer"),
        (HEADER + OPENED.replace('"opened"', "7"), "line 2 .*a text was expected, not 7"),
        (HEADER + '{"time":"a","type":"StreamEvent"}\n', "line 2 .*no event: could not convert"),
    ],
)
def test_what_is_no_trace_is_told_in_one_line(tmp_path, text, told):
    with pytest.raises(TraceError, match=told) as caught:
        read(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "run.jsonl" in str(caught.value)
    assert isinstance(caught.value, AsglError)


def test_a_directory_a_pipe_and_a_missing_file(tmp_path):
    with pytest.raises(TraceError, match="is a directory"):
        read(tmp_path)
    with pytest.raises(TraceError, match="No such file"):
        read(tmp_path / "missing.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TraceError, match="no regular file, but a pipe"):
        read(tmp_path / "pipe")


def test_a_line_that_is_cut_off_ends_the_trace(tmp_path):
    trace = Trace(written(tmp_path, HEADER + OPENED + OPENED[:-20]))
    assert [event.stream_id for event in trace] == [1]
    assert trace.cut_short
    assert trace.started_at == 5


def test_what_a_later_asgl_adds_is_passed_over(tmp_path):
    later = '{"time":1,"type":"CometEvent","tail":3}\n'
    more = OPENED.replace('"opened"', '"opened","colour":"red"')
    path = written(tmp_path, HEADER + later + more)
    assert read(path) == [StreamEvent("opened", 1)]


def test_no_default_is_shared_and_all_fields_are_known():
    assert OpEvent("started", 0, 0, "gen").text == ""
    for kind in get_args(Event):
        for field in fields(kind):
            if field.name not in ("time", "run") and field.default_factory is MISSING:
                annotation = kind.__annotations__[field.name]
                assert annotation in VALUES or annotation.startswith("Literal"), annotation
