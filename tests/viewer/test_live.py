"""The live view on a terminal: a pseudo-terminal, and pyte, which obeys what is written to it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import threading
from io import StringIO
from types import SimpleNamespace

import pyte
import pytest
from rich.console import Console

import asgl
from asgl.errors import ConfigError
from asgl.testing import ScriptedRuntime, ScriptError
from asgl.trace import StreamEvent
from asgl.viewer import Live
from asgl.viewer.terminal import Printed, Writer

CALL = '{"name": "hold", "arguments": {}}'


class Screen:
    """A terminal of so many columns and rows, and what is on it."""

    def __init__(self, columns: int = 90, rows: int = 16) -> None:
        self.master, slave = pty.openpty()
        self.slave = open(slave, "w", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by close()
        self.stdin = open(os.dup(slave), encoding="utf-8")  # noqa: SIM115  closed by close()
        self.emulator = pyte.HistoryScreen(columns, rows, history=500)
        self._stream = pyte.ByteStream(self.emulator)
        self.raw = b""
        self.resize(columns, rows)
        self.console = Console(file=self.slave, force_terminal=True, color_system="standard")

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.emulator.resize(rows, columns)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self) -> None:
        while select.select([self.master], [], [], 0)[0]:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:
                return
            if not data:
                return
            self.raw += data
            # pyte does not know synchronized output
            self._stream.feed(re.sub(rb"\x1b\[\?2026[hl]", b"", data))

    @property
    def text(self) -> str:
        self.read()
        above = [
            "".join(line[column].data for column in range(self.emulator.columns)).rstrip()
            for line in self.emulator.history.top
        ]
        return "\n".join([*above, *(line.rstrip() for line in self.emulator.display)])

    async def until(self, *wanted: str, without: str | None = None) -> str:
        """What is on the screen once all of these are, and that is not."""
        async with asyncio.timeout(30):
            while True:
                text = self.text
                if all(one in text for one in wanted) and (without is None or without not in text):
                    return text
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self.slave.close()
        self.stdin.close()
        os.close(self.master)


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stdin", screen.stdin)
    monkeypatch.setattr(os, "tcgetpgrp", lambda number: os.getpgrp())
    yield screen
    screen.close()


class Held:
    """A program that calls a tool, which goes on when it is let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

        @asgl.tool
        async def hold() -> str:
            """Holds."""
            await self.go_on.wait()
            return "held"

        @asgl.function
        async def agent(s):
            s += "Hold: "
            await s.call_tools([hold], max_tokens=50)
            print("printed by the agent")
            await s.gen("x")

        self.agent = agent


@contextlib.contextmanager
def standard_streams(screen):
    """Here, and not in a fixture: pytest puts its own in place when a test begins."""
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = screen.slave
    try:
        yield
        assert sys.stdout is sys.stderr is screen.slave
    finally:
        sys.stdout, sys.stderr = before


@contextlib.asynccontextmanager
async def watched(screen, **options):
    """A Runtime with a view on the screen, and a program that runs until it is let go."""
    with standard_streams(screen):
        async with _watched(screen, **options) as held:
            yield held


@contextlib.asynccontextmanager
async def _watched(screen, **options):
    live = Live(console=screen.console, rate=30, **options)
    script = {None: CALL, "x": " the last words"}
    held = Held()
    async with ScriptedRuntime(script, tracers=[live]) as rt:
        task = asyncio.create_task(held.agent(rt))
        try:
            yield held
        finally:
            held.go_on.set()
            await task


async def test_the_tree_is_drawn_and_what_is_printed_goes_above(screen):
    before = termios.tcgetattr(screen.stdin.fileno())
    async with watched(screen):
        shown = await screen.until("agent", "tool", "hold()", "q quit view")
        assert shown.count("asgl scripted") == 1
        print("one line")
        print("and", "another", end="\n")
        sys.stderr.write("half")
        shown = await screen.until("one line\nand another\n asgl scripted")
        assert shown.count("asgl scripted") == 1
    shown = screen.text
    assert "printed by the agent" in shown
    assert "half" in shown.split(" asgl scripted")[0]
    assert "✓ agent" in shown
    assert "the last words" in shown
    assert shown.count("asgl scripted") == 1
    assert "q quit view" not in shown
    assert termios.tcgetattr(screen.stdin.fileno()) == before
    assert not screen.emulator.cursor.hidden
    assert screen.emulator.cursor.x == 0


async def test_keys(screen):
    async with watched(screen):
        await screen.until("agent")
        screen.type("?")
        await screen.until("stop the program")
        screen.type("\x1b")
        await screen.until("agent", without="stop the program")
        screen.type("/nothing\r")
        await screen.until("only 'nothing'", without="✓ agent")
        screen.type("\x1b[A\x1b")
        screen.type("p")
        await screen.until("paused")
        print("while paused")
        await screen.until("while paused")
        screen.type("pq")
        await screen.until("the view is left")
        print("after it")
        await screen.until("after it", without="asgl scripted")
    assert "asgl scripted" not in screen.text
    assert not screen.emulator.cursor.hidden


@pytest.mark.parametrize("sizes", [[(60, 10), (120, 24)], [(120, 30), (61, 8), (90, 16)]])
async def test_windows_of_other_sizes(screen, sizes):
    async with watched(screen):
        await screen.until("agent")
        for columns, rows in sizes:
            screen.resize(columns, rows)
            line = "─" * (columns - 1)
            await screen.until(line)
            last = screen.text.split(line)[-1]
            assert "agent" in last
            assert len(last.splitlines()) < rows
    assert "✓ agent" in screen.text


async def test_it_is_drawn_without_keys_where_none_can_be_read(screen, monkeypatch):
    monkeypatch.setattr(os, "tcgetpgrp", lambda number: os.getpgrp() + 1)
    before = termios.tcgetattr(screen.stdin.fileno())
    async with watched(screen):
        await screen.until("agent", without="q quit view")
        assert termios.tcgetattr(screen.stdin.fileno()) == before


async def test_it_uses_no_more_rows_than_it_may(screen):
    async with watched(screen, rows=5, keys=False):
        shown = await screen.until("agent")
        assert len(shown.strip("\n").splitlines()) <= 5


async def test_batches_draw_no_bar_of_their_own(screen):
    @asgl.function
    async def say(s):
        await s.gen("x")

    async with ScriptedRuntime({"x": "a"}, tracers=[Live(console=screen.console)]) as rt:
        await say.batch(rt, [{}] * 3)
    assert "programs/s" not in screen.text
    assert "say[2]" in screen.text


async def test_ctrl_z_gives_the_terminal_back_until_the_program_goes_on(screen, monkeypatch):
    before, seen = termios.tcgetattr(screen.stdin.fileno()), []

    def stop(number: int, what: int) -> None:
        assert signal.getsignal(what) is signal.SIG_DFL
        seen.append(termios.tcgetattr(screen.stdin.fileno()) == before)
        seen.append(b"\x1b[?25h" in screen.raw + os.read(screen.master, 1 << 16))

    async with watched(screen):
        await screen.until("agent")
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", stop)
            signal.raise_signal(signal.SIGTSTP)
        assert seen == [True, True]
        assert termios.tcgetattr(screen.stdin.fileno()) != before
        screen.type("?")
        await screen.until("stop the program")
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
    assert termios.tcgetattr(screen.stdin.fileno()) == before


def test_ctrl_c_stops_the_program_and_leaves_the_terminal_clean():
    """In a process of its own, whose terminal it is."""
    code = f"""
import asyncio, asgl, sys
from asgl.testing import ScriptedRuntime

@asgl.tool
async def hold() -> str:
    "Holds."
    await asyncio.Event().wait()

@asgl.function
async def agent(s):
    s += "Hold: "
    await s.call_tools([hold], max_tokens=50)

async def main():
    async with ScriptedRuntime({{None: {CALL!r}}}, tracers=[asgl.viewer.Live(rate=30)]) as rt:
        await agent(rt)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
    screen = Screen()
    number, master = pty.fork()
    if number == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", code])
    os.close(screen.master)
    screen.master = master
    screen.resize(90, 16)
    for wanted, then in (("hold()", b"\x03"), ("interrupted", None)):
        while wanted not in screen.text:
            assert select.select([master], [], [], 60)[0], screen.text
        if then:
            os.write(master, then)
    _, status = os.waitpid(number, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "− agent" in screen.text
    assert screen.text.count("asgl scripted") == 1
    assert not screen.emulator.cursor.hidden
    assert screen.text.rstrip().endswith("interrupted")
    assert "Traceback" not in screen.text
    screen.close()


async def test_without_a_terminal_it_prints_lines():
    @asgl.function
    async def say(s, x):
        if x == 1:
            raise ValueError("no")
        await s.gen("x")

    file = StringIO()
    live = Live(console=Console(file=file, width=200))
    with contextlib.suppress(ScriptError):
        async with ScriptedRuntime({"x": "a b"}, tracers=[live]) as rt:
            await say.batch(rt, range(3), on_error="return", progress=False)
            live._tell()
    lines = file.getvalue().splitlines()
    assert lines[0] == "asgl: say[1] failed: ValueError('no')"
    assert len(lines) == 3
    assert "1 failed" in lines[2]
    assert "2 done" in lines[2]
    assert "tokens" in lines[2]
    assert "\x1b" not in file.getvalue()


def test_a_terminal_that_takes_nothing_holds_up_nobody():
    class Stuck(StringIO):
        def write(self, text: str) -> int:
            assert free.wait(30)
            return super().write(text)

    free, file = threading.Event(), Stuck()
    writer = Writer(file)
    writer.write("a")
    assert writer.busy
    free.set()
    writer.close()
    assert not writer.busy
    assert file.getvalue() == "a"


def test_what_stands_for_standard_output():
    lines: list[str] = []
    printed = Printed(sys.__stdout__, lines)
    assert not printed.isatty()
    assert printed.write("a\nb") == 3
    printed.flush()
    assert lines == ["a"]
    printed.end()
    assert lines == ["a", "b"]


@pytest.mark.parametrize(
    "options", [{"rate": 0}, {"rows": 1}, {"keys": 1}, {"console": sys.stderr}]
)
def test_a_view_of_nothing(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Live(**options)


def test_a_view_that_hears_of_no_runtime_draws_nothing():
    live = Live()
    live.event(StreamEvent("opened", 0))
    assert live.model.run is not None


async def test_in_a_notebook_it_is_the_output_of_the_cell(monkeypatch):
    drawn: list[str] = []

    class Handle:
        def update(self, html: str) -> None:
            drawn.append(html)

    def display(html: str, *, display_id: bool) -> Handle:
        assert display_id
        return Handle()

    fake = SimpleNamespace(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    console = Console(file=StringIO(), force_jupyter=True)
    async with ScriptedRuntime({"x": "<b>"}, tracers=[Live(console=console)]) as rt:
        await rt.prompt("Say: ", name="say").gen("x")
    assert len(drawn) >= 2
    assert "asgl" in drawn[0]
    assert "✓" in drawn[-1]
    assert "&lt;b&gt;" in drawn[-1]
    assert "<b>" not in drawn[-1]
