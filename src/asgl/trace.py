"""Events that the engine and the streams emit, and the tracers that listen.

A tracer is anything with an `event` method. It is called on the event loop, so it must be quick. With no tracer attached
nothing is built and nothing is called: emitters test `if tracers:` first.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """A request of the engine changed its state."""

    kind: Literal["submitted", "admitted", "retracted", "finished", "cancelled", "failed"]
    request_id: int
    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    reason: str = ""
    """Of a finished request its finish reason, of a failed one the error."""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """The engine ran a step."""

    number: int
    decode_rows: int
    extend_rows: int
    tokens: int
    running: int
    waiting: int
    free: int
    evictable: int
    plan_seconds: float
    run_seconds: float


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """A prompt stream was made, forked, joined or closed."""

    kind: Literal["opened", "forked", "joined", "closed"]
    stream_id: int
    parent_id: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class OpEvent:
    """An op of a prompt stream changed its state."""

    kind: Literal["submitted", "started", "finished", "failed", "cancelled"]
    stream_id: int
    number: int
    """The op's place in its stream, from 0."""
    op: str
    """"gen", "select", "extend", ..."""
    name: str | None = None
    """The variable it sets."""
    request_id: int | None = None
    text: str = ""
    """Of a finished op what it appended."""
    reason: str = ""


Event: TypeAlias = RequestEvent | StepEvent | StreamEvent | OpEvent


class Tracer(Protocol):
    def event(self, event: Event, /) -> None: ...


default_tracers: ContextVar[tuple[Tracer, ...]] = ContextVar("asgl_default_tracers", default=())
"""Tracers that every Runtime opened in this context attaches, besides its own."""


class Tracers:
    """The tracers attached to a Runtime. Falsy when there is none. One that raises is removed, with a warning."""

    def __init__(self, tracers: Iterable[Tracer] = ()) -> None:
        self._tracers = tuple(tracers)

    def __bool__(self) -> bool:
        return bool(self._tracers)

    def emit(self, event: Event) -> None:
        for tracer in self._tracers:
            try:
                tracer.event(event)
            except Exception as error:
                self._tracers = tuple(other for other in self._tracers if other is not tracer)
                warnings.warn(f"a tracer was removed because it raised {error!r}: {tracer!r}", RuntimeWarning, stacklevel=2)


class JsonlTracer:
    """Writes each event as a line of JSON: its fields, `type` and `time` (seconds since the tracer was made).

    A context manager; lines are flushed when it is closed, and every `flush_every` lines.
    """

    def __init__(self, path: str | os.PathLike[str], *, flush_every: int = 64) -> None:
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115  closed by close()
        self._start = time.perf_counter()
        self._flush_every = flush_every
        self._lines = 0

    def event(self, event: Event, /) -> None:
        line: dict[str, Any] = {"time": round(time.perf_counter() - self._start, 6), "type": type(event).__name__}
        line.update(asdict(event))
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._lines += 1
        if self._lines % self._flush_every == 0:
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlTracer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
