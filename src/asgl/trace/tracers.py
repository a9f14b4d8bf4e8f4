"""Tracers: who hears of events, and who tells them."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Protocol

from asgl.errors import ConfigError
from asgl.trace.events import Event


class Tracer(Protocol):
    """Anything that hears of events: see `asgl.Runtime(tracers=...)`."""

    def event(self, event: Event, /) -> None:
        """Called on the event loop, right when it happens. One that raises is removed, with a
        RuntimeWarning."""
        ...


default_tracers: ContextVar[tuple[Tracer, ...]] = ContextVar("asgl_default_tracers", default=())
"""Tracers that every Runtime opened in this context attaches, besides its own."""


def checked_tracers(tracers: Iterable[Tracer]) -> tuple[Tracer, ...]:
    """The tracers as a tuple; ConfigError if one of them cannot hear of events."""
    if not isinstance(tracers, Iterable):
        raise ConfigError(
            f"tracers must be a sequence, not {tracers!r}: put a single one in a list"
        )
    given = tuple(tracers)
    for tracer in given:
        event = getattr(tracer, "event", None)
        if isinstance(tracer, type):
            problem = "is a class: give an instance of it"
        elif not callable(event):
            problem = "has no method `event`"
        elif inspect.iscoroutinefunction(event):
            problem = (
                "has a coroutine function `event`, which nobody would await: make it a plain one"
            )
        else:
            continue
        raise ConfigError(
            f"{tracer!r} in tracers {problem}; a tracer is an object whose method `event(event)` "
            "is called with each event, such as asgl.JsonlTracer(path)"
        )
    return given


class Tracers:
    """The tracers attached to a Runtime. Falsy when there is none. One that raises is removed, with
    a warning.

    clock: gives seconds, for the times of events; the engine's own.
    """

    def __init__(
        self, tracers: Iterable[Tracer] = (), *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._tracers = checked_tracers(tracers)
        self._clock = clock
        self.run = int(clock() * 1e9) if self._tracers else 0
        """Names the Runtime in its events: the nanosecond of its clock in which it was opened."""

    def __bool__(self) -> bool:
        return bool(self._tracers)

    def emit(self, event: Event) -> None:
        """Writes time and run into the event, which is fresh and nobody else's, and tells it."""
        object.__setattr__(event, "time", self._clock())
        object.__setattr__(event, "run", self.run)
        for tracer in self._tracers:
            try:
                tracer.event(event)
            except Exception as error:
                self._tracers = tuple(other for other in self._tracers if other is not tracer)
                warnings.warn(
                    f"a tracer was removed because it raised {error!r}: {tracer!r}",
                    RuntimeWarning,
                    stacklevel=2,
                )
