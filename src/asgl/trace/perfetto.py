"""A run as Perfetto and chrome://tracing show it: the JSON of Chrome's trace events.

A process for each Runtime. In it a track for the steps, counters for the KV cache and the queue,
and a track for each stream with its ops, and in them what their requests did.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from asgl.trace.model import Model
from asgl.trace.nodes import Op, Request, Run, Stream

Entry: TypeAlias = dict[str, Any]

_STEPS, _STREAMS = 1, 1000
"""Numbers of tracks: of the steps, and from which on those of streams are."""


def trace_events(model: Model) -> dict[str, Any]:
    """The object to write as JSON."""
    entries: list[Entry] = []
    for number, run in enumerate(model.runs.values(), 1):
        entries.extend({"pid": number, **entry} for entry in _of_run(run))
    return {"displayTimeUnit": "ms", "traceEvents": entries}


def _of_run(run: Run) -> Iterator[Entry]:
    name = f"asgl {run.model}".strip()
    yield {"ph": "M", "name": "process_name", "tid": 0, "args": {"name": name}}
    yield _named(_STEPS, "engine steps", 0)
    for step in run.steps:
        yield _slice(
            f"step {step.number}",
            _STEPS,
            step.time - step.run_seconds,
            step.run_seconds,
            tokens=step.tokens,
            requests=len(step.rows),
            running=step.running,
            waiting=step.waiting,
        )
        used = max(run.capacity - step.free - step.evictable, 0)
        yield _counter("KV tokens", step.time, running=used, cached=step.evictable)
        yield _counter("requests", step.time, running=step.running, waiting=step.waiting)
    for eviction in run.evictions:
        yield _instant(
            f"evicted {eviction.tokens} tokens", _STEPS, eviction.time, cause=eviction.cause
        )
    order = 1
    for root in run.roots:
        for stream in root.walk():
            yield _named(_STREAMS + stream.id, _path(stream), order)
            order += 1
            yield from _of_stream(stream, run.now)


def _of_stream(stream: Stream, now: float) -> Iterator[Entry]:
    track = _STREAMS + stream.id
    for op in stream.ops.values():
        if op.started_at is None:
            continue
        yield _slice(
            op.title,
            track,
            op.started_at,
            op.seconds(now),
            state=op.state,
            text=op.text[:1000],
            reason=op.reason,
        )
        for request in op.requests:
            yield from _of_request(request, track, now)
        for rejected in op.rejected:
            yield _instant(
                f"not valid: {rejected.reason}"[:100], track, rejected.time, text=rejected.text
            )
        yield from _of_tools(op, track)


def _of_request(request: Request, track: int, now: float) -> Iterator[Entry]:
    if request.submitted_at is None:
        return
    end = now if request.ended_at is None else request.ended_at
    first = end if request.first_token_at is None else request.first_token_at
    admitted = min(request.submitted_at + (request.waited_before or request.waited), first)
    about = {
        "request": request.id,
        "prompt": request.prompt_tokens,
        "cached": request.cached_tokens,
    }
    for name, start, stop in (
        ("waiting", request.submitted_at, admitted),
        ("computing", admitted, first),
        ("generating", first, end),
    ):
        if stop > start:
            yield _slice(name, track, start, stop - start, **about)
    for time, cause in request.retractions:
        yield _instant("retracted", track, time, cause=cause)


def _of_tools(op: Op, track: int) -> Iterator[Entry]:
    for call in op.tools:
        yield _slice(
            f"tool {call.tool}",
            track,
            call.began_at,
            call.seconds,
            arguments=call.arguments,
            result=call.result[:1000],
            error=call.error,
        )


def _path(stream: Stream) -> str:
    names: list[str] = []
    above: Stream | None = stream
    while above is not None:
        names.append(above.title)
        above = above.parent
    return " / ".join(reversed(names))


# --- entries --------------------------------------------------------------------------------------


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _slice(name: str, track: int, start: float, seconds: float, **about: Any) -> Entry:
    return {
        "ph": "X",
        "name": name,
        "tid": track,
        "ts": _microseconds(start),
        "dur": _microseconds(max(seconds, 0.0)),
        "args": {key: value for key, value in about.items() if value != ""},
    }


def _instant(name: str, track: int, time: float, **about: Any) -> Entry:
    return {
        "ph": "i",
        "s": "t",
        "name": name,
        "tid": track,
        "ts": _microseconds(time),
        "args": about,
    }


def _counter(name: str, time: float, **values: int) -> Entry:
    return {"ph": "C", "name": name, "tid": 0, "ts": _microseconds(time), "args": values}


def _named(track: int, name: str, order: int) -> Entry:
    return {
        "ph": "M",
        "name": "thread_name",
        "tid": track,
        "args": {"name": name, "sort_index": order},
    }
