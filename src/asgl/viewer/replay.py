"""A trace from disk in the live view: as it went, at any speed, or its end."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable

from rich.console import Console

from asgl.trace.events import Event
from asgl.trace.model import Model
from asgl.viewer.terminal import Terminal, is_terminal
from asgl.viewer.view import View

_FRAME_SECONDS = 0.1


def show_end(events: Iterable[Event], console: Console, *, everything: bool = False) -> None:
    """Prints what the view shows at the end of a trace. everything: all rows, however many."""
    model = Model(events)
    view = View(model)
    rows = 10 * model.events + 20 if everything else max(console.height - 1, 10)
    view.choice.folded = not everything
    console.print(view.frame(max(console.width - 1, 20), rows, model.now), end="")


def replay(
    events: Iterable[Event],
    console: Console,
    *,
    speed: float,
    clock: Callable[[], float] = time.monotonic,
    keys: bool = True,
) -> None:
    """Shows a trace as it went, `speed` times as fast. Without a terminal: its end.

    p pauses, + and - change the speed, q leaves; the rest are the keys of the view.
    """
    if not is_terminal(console):
        show_end(events, console)
        return
    _Replay(list(events), Terminal(console, keys=keys), speed, clock).run()


class _Replay:
    def __init__(
        self, events: list[Event], terminal: Terminal, speed: float, clock: Callable[[], float]
    ) -> None:
        self._events, self._terminal, self._clock = events, terminal, clock
        self._speed = speed
        self._model = Model()
        self._view = View(self._model, keys=terminal.keys_from is not None)
        self._next = 0
        self._now = events[0].time if events else 0.0
        """How far the trace is, in its own time."""
        self._left = False

    def run(self) -> None:
        try:
            last = self._clock()
            while self._next < len(self._events) and not self._left:
                now = self._clock()
                if not self._view.paused:
                    self._now += (now - last) * self._speed
                last = now
                self._take()
                self._draw()
                self._wait()
        finally:
            if not self._left:
                self._now = max(self._now, self._model.now)
            self._view.keys = False
            width, height = self._space()
            frame = self._view.frame(width, height, self._now)
            self._terminal.leave(frame.lines, width)

    def _take(self) -> None:
        """The events up to now."""
        while self._next < len(self._events) and self._events[self._next].time <= self._now:
            self._model.apply(self._events[self._next])
            self._next += 1

    def _space(self) -> tuple[int, int]:
        columns, rows = self._terminal.size()
        return max(columns - 1, 1), rows - 1

    def _draw(self) -> None:
        if not self._terminal.busy:
            width, height = self._space()
            self._terminal.draw(self._view.frame(width, height, self._now).lines, width)

    def _wait(self) -> None:
        """Until the next frame, or a key."""
        keys = self._terminal.keys_from
        if keys is None:
            time.sleep(_FRAME_SECONDS)
            return
        if not select.select([keys], [], [], _FRAME_SECONDS)[0]:
            return
        for key in self._terminal.read_keys():
            if key in "+-" and self._view.typing is None:
                self._speed *= 2.0 if key == "+" else 0.5
            elif self._view.press(key):
                self._left = True
