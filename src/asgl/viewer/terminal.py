"""A terminal to draw at the bottom of: frames, what the program prints above them, and keys."""

from __future__ import annotations

import atexit
import io
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

from rich.console import Console

from asgl.viewer.canvas import Line, Painter, line_width

try:
    import termios
    import tty
except ImportError:  # no such thing on Windows: there are no keys then
    termios = tty = None

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""Around a frame, so that a terminal that knows them shows it at once."""
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_KEYS = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "pageup",
    "\x1b[6~": "pagedown",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
}


class Writer:
    """Writes to a file from a thread of its own: a terminal that does not take what it is given
    must not hold up the event loop."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._given = self._written = 0
        self._thread = threading.Thread(target=self._run, name="asgl-viewer", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something that was given is not written yet."""
        return self._given != self._written

    def write(self, text: str) -> None:
        self._given += 1
        self._queue.put(text)

    def wait(self, seconds: float = 0.2) -> None:
        """Waits until all is written, for so long."""
        until = time.monotonic() + seconds
        while self.busy and time.monotonic() < until:
            time.sleep(0.001)

    def close(self, seconds: float = 2.0) -> None:
        """Waits until all is written, for so long, and writes no more."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (text := self._queue.get()) is not None:
            with suppress(OSError, ValueError):  # the terminal is gone: nobody is looking
                self._file.write(text)
                self._file.flush()
            self._written += 1


class Printed(io.TextIOBase):
    """Stands for sys.stdout or sys.stderr while a view is drawn: whole lines go above it.

    It is no terminal, so that a program's own bars and colours do not write over the view.
    """

    def __init__(self, shown: TextIO, lines: list[str]) -> None:
        self._shown, self._lines = shown, lines
        self._open = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the real file's
        return self._shown.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._shown.fileno()

    def write(self, text: str, /) -> int:
        *whole, self._open = (self._open + text).split("\n")
        if whole:
            self._lines.extend(whole)
        return len(text)

    def flush(self) -> None:
        """Lines are shown with the next frame."""

    def end(self) -> None:
        """Gives what is left, though it is no whole line."""
        if self._open:
            self._lines.append(self._open)
            self._open = ""


class Terminal:
    """Draws frames at the bottom of a console's terminal, until it is closed.

    keys: whether to read keys; `read_keys` says whether they can be.
    """

    def __init__(self, console: Console, *, keys: bool) -> None:
        self.console = console
        self._painter = Painter(console)
        self._printed: list[str] = []
        self._replaced: list[tuple[str, TextIO, Printed]] = []
        self._drawn: list[int] = []
        """How wide the lines of the last frame are."""
        file: Any = console.file
        self._writer = Writer(file)
        self._restore: Callable[[], None] | None = None
        self.keys_from: int | None = self._read_keys() if keys else None
        """The file descriptor that keys come from; None if there are none."""
        self._capture()
        self._open = True
        self._handles_stop = self._watch_for_stop()
        atexit.register(self.close)

    # --- what the program prints

    def _capture(self) -> None:
        """Lets what is printed to this terminal go above the view. What goes to a file or a pipe
        goes there."""
        for name in ("stdout", "stderr"):
            file: TextIO = getattr(sys, name)
            with suppress(OSError, ValueError):
                if file.isatty():
                    printed = Printed(file, self._printed)
                    self._replaced.append((name, file, printed))
                    setattr(sys, name, printed)

    @property
    def has_printed(self) -> bool:
        return bool(self._printed)

    # --- keys

    def _read_keys(self) -> int | None:
        """Makes the terminal give keys at once. Ctrl-C still interrupts."""
        if termios is None or tty is None:
            return None
        try:
            number = sys.stdin.fileno()
            if not os.isatty(number) or os.tcgetpgrp(number) != os.getpgrp():
                return None  # in the background nobody can type, and setting it would stop us
            before: Any = termios.tcgetattr(number)
            tty.setcbreak(number, termios.TCSANOW)
        except (OSError, ValueError, AttributeError, termios.error):
            return None
        self._restore = partial(termios.tcsetattr, number, termios.TCSANOW, before)
        return number

    def read_keys(self) -> list[str]:
        """The keys that were pressed."""
        assert self.keys_from is not None
        try:
            text = os.read(self.keys_from, 1024).decode("utf-8", "replace")
        except OSError:
            return []
        if text in _KEYS:
            return [_KEYS[text]]
        found: list[str] = []
        while text:
            for size in (4, 3, 1):
                if text[:size] in _KEYS:
                    found.append(_KEYS[text[:size]])
                    break
            else:
                size = 1
                found.append(text[0])
            text = text[size:]
        return found

    # --- Ctrl-Z

    def _watch_for_stop(self) -> bool:
        """Lets Ctrl-Z give the terminal back before it stops the program; whether it does."""
        stop = getattr(signal, "SIGTSTP", None)
        with suppress(ValueError):  # only the main thread may
            if stop is not None and signal.getsignal(stop) is signal.SIG_DFL:
                signal.signal(stop, self._stopped)
                return True
        return False

    def _stopped(self, number: int, frame: object) -> None:
        if self._restore is not None:
            self._restore()
        self._writer.write("\r\n" + _SHOW)
        self._writer.wait()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # here it stops, until the shell lets it go on
        signal.signal(number, self._stopped)
        if self._restore is not None:
            self._read_keys()
        self._drawn = []  # what the shell has written since stays

    # --- drawing

    @property
    def busy(self) -> bool:
        return self._writer.busy

    def size(self) -> tuple[int, int]:
        """Columns and rows, as they are now."""
        with suppress(OSError, ValueError):
            columns, rows = os.get_terminal_size(self.console.file.fileno())
            if columns and rows:
                return columns, rows
        return self.console.size

    def draw(self, lines: Sequence[Line], width: int, *, last: bool = False) -> None:
        """Draws a frame in place of the one before, below what was printed meanwhile."""
        printed, self._printed[:] = self._printed[:], []
        out = [_BEGIN, _HIDE, self._back(width)]
        out += [text.replace("\n", "\r\n") + "\x1b[K\r\n" for text in printed]
        painted = [self._painter.paint(line) + "\x1b[0m\x1b[K" for line in lines]
        out.append("\r\n".join(painted))
        out.append("\x1b[J")
        if last:
            out += ["\r\n" if lines else "", _SHOW]
        out.append(_END)
        self._drawn = [] if last else [line_width(line) for line in lines]
        self._writer.write("".join(out))

    def _back(self, width: int) -> str:
        """To the first column of the frame before. After the window has become narrower, a
        terminal breaks lines that are too wide into several."""
        rows = sum(max(-(-cells // max(width, 1)), 1) for cells in self._drawn)
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "")

    def leave(self, lines: Sequence[Line], width: int) -> None:
        """Draws the last frame, and gives the terminal back."""
        if self._open:
            for _, _, printed in self._replaced:
                printed.end()
            self.draw(lines, width, last=True)
            self.close()

    def close(self) -> None:
        """Gives the terminal back as it was. Idempotent."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        if self._handles_stop:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        for name, file, printed in self._replaced:
            if getattr(sys, name) is printed:
                setattr(sys, name, file)
            printed.end()
        rest = "".join(line + "\r\n" for line in self._printed)
        self._writer.write(rest + _SHOW)
        self._writer.close()
        if self._restore is not None:
            with suppress(OSError):
                self._restore()


def is_terminal(console: Console) -> bool:
    """Whether a view can be drawn there."""
    return console.is_terminal and not console.is_dumb_terminal
