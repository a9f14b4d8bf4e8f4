"""The live view: a tracer that draws what it hears."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rich.console import Console

from asgl import checks
from asgl.errors import ConfigError
from asgl.trace.events import Event, RuntimeEvent
from asgl.trace.model import Model
from asgl.viewer.notebook import COLUMNS, ROWS, Cell
from asgl.viewer.plain import PlainLines
from asgl.viewer.terminal import Terminal, is_terminal
from asgl.viewer.view import View

_SHARE = 0.02
"""The share of one core that drawing may take: when frames are dear they come less often."""
_PLAIN_SECONDS = 5.0
_CELL_SECONDS = 0.25
"""How often the output of a notebook's cell is drawn."""
_STILL_SECONDS = 1.0
"""How often a frame is drawn while nothing happens."""


class Live:
    """Shows in the terminal what a Runtime does, while it does it.

        async with asgl.Runtime("smollm2-135m", tracers=[asgl.viewer.Live()]) as rt: ...

    A header, and the tree of programs, streams and forks, at the bottom of the terminal; what the
    program prints goes above it. In a notebook it is the output of the cell. Without either it
    prints a line every five seconds, and one for each failure. `NO_COLOR` is heeded. It ends when
    the Runtime is closed, and leaves its last frame.

    Keys: p pauses the view, f folds and unfolds, o shows ops, / filters by name or state, arrows
    scroll, q leaves the view (the program goes on), ? helps.

    Args:
        rate: Frames a second, at most; 0.1 to 30.
        rows: How many rows of the terminal to use at most; None for all.
        keys: Whether to read keys from standard input. They are also not read if that is no
            terminal, or the program runs in the background.
        console: Where to draw; None is standard error.
    """

    shows_progress = True
    """Batches draw no bar of their own beside it."""

    def __init__(
        self,
        *,
        rate: float = 10.0,
        rows: int | None = None,
        keys: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._period = 1 / checks.number("rate", rate, 0.1, 30)
        self._rows = None if rows is None else checks.integer("rows", rows, 4)
        self._wants_keys = checks.flag("keys", keys)
        if console is not None and not isinstance(console, Console):
            raise ConfigError(f"console must be a rich.console.Console, not {console!r}")
        self._console = console
        self._clock = clock
        self.model = Model(live=True)
        self.view = View(self.model)
        self._plain = PlainLines()
        self._terminal: Terminal | None = None
        self._cell: Cell | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._open: set[int] = set()
        """The Runtimes that are open."""
        self._left = False
        """The user has left the view."""
        self._drawn_events, self._drawn_at = -1, 0.0
        self._size = (0, 0)

    def event(self, event: Event, /) -> None:
        """Takes an event. The first that a Runtime was opened begins the view."""
        self.model.apply(event)
        if isinstance(event, RuntimeEvent):
            if event.kind == "opened":
                self._open.add(event.run)
                self._begin()
            else:
                self._open.discard(event.run)
                if not self._open:
                    self._end()

    # --- beginning and ending

    def _begin(self) -> None:
        if self._left or self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        if self._console is None:
            self._console = Console(stderr=True)
        if self._console.is_jupyter:
            self._cell = Cell()
            self._draw_cell()
        elif is_terminal(self._console):
            self._terminal = Terminal(self._console, keys=self._wants_keys)
            if (keys := self._terminal.keys_from) is not None:
                self._loop.add_reader(keys, self._pressed)
            self.view.keys = keys is not None
            self._tick()
        else:
            self._timer = self._loop.call_later(_PLAIN_SECONDS, self._tell)

    def _end(self) -> None:
        if self._loop is None:
            return
        if self._terminal is not None:
            self.view = View(self.model)
            width, height = self._space()
            frame = self.view.frame(width, height, self._clock())
            self._stop_keys()
            self._terminal.leave(frame.lines, width)
        elif self._cell is not None:
            self._cell.draw(self.view.frame(COLUMNS, ROWS, self._clock()).lines)
        elif not self._left:
            self._say(last=True)
        self._stop()

    def _stop(self) -> None:
        """Draws no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._terminal = self._cell = self._loop = None

    def _stop_keys(self) -> None:
        keys = self._terminal.keys_from if self._terminal is not None else None
        if self._loop is not None and keys is not None:
            self._loop.remove_reader(keys)

    # --- frames

    def _space(self) -> tuple[int, int]:
        """Columns and rows that a frame may have. A line that fills the last column would be two
        lines once the window is narrower."""
        assert self._terminal is not None
        width, height = self._terminal.size()
        most = height - 1
        return max(width - 1, 1), min(most, self._rows) if self._rows is not None else most

    def _tick(self) -> None:
        assert self._loop is not None
        began = time.perf_counter()
        self._draw()
        cost = time.perf_counter() - began
        delay = max(self._period, cost / _SHARE)
        self._timer = self._loop.call_later(delay, self._tick)

    def _draw(self) -> None:
        terminal, now = self._terminal, self._clock()
        assert terminal is not None
        if terminal.busy:
            return
        size = self._space()
        still = self.model.events == self._drawn_events and now - self._drawn_at < _STILL_SECONDS
        if (still or self.view.paused) and size == self._size and not terminal.has_printed:
            return
        self._drawn_events, self._drawn_at, self._size = self.model.events, now, size
        terminal.draw(self.view.frame(*size, now).lines, size[0])

    def _draw_cell(self) -> None:
        assert self._loop is not None
        assert self._cell is not None
        began = time.perf_counter()
        if self.model.events != self._drawn_events:
            self._drawn_events = self.model.events
            self._cell.draw(self.view.frame(COLUMNS, ROWS, self._clock()).lines)
        cost = time.perf_counter() - began
        delay = max(self._period, _CELL_SECONDS, cost / _SHARE)
        self._timer = self._loop.call_later(delay, self._draw_cell)

    def _pressed(self) -> None:
        """Keys were pressed."""
        terminal = self._terminal
        if terminal is None:
            return
        for key in terminal.read_keys():
            if self.view.press(key):
                self._leave()
                return
        size = self._space()
        terminal.draw(self.view.frame(*size, self._clock()).lines, size[0])

    def _leave(self) -> None:
        """The user has seen enough: the terminal is the program's again."""
        self._left = True
        self._stop_keys()
        if self._terminal is not None:
            self._terminal.leave([[("the view is left; the program goes on", "muted")]], 80)
        self._stop()

    # --- without a terminal

    def _tell(self) -> None:
        assert self._loop is not None
        self._say()
        self._timer = self._loop.call_later(_PLAIN_SECONDS, self._tell)

    def _say(self, *, last: bool = False) -> None:
        assert self._console is not None
        now = self._clock()
        for run in list(self.model.runs.values()):
            for line in self._plain.failures(run):
                self._print(line)
            if run.closed_at is None or last:
                self._print(self._plain.progress(run, now))

    def _print(self, line: str) -> None:
        assert self._console is not None
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
