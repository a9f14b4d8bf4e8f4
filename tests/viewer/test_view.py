"""Frames of the view: as they were looked at once, at several widths, and what holds of any."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import pytest
from any_events import random_events
from demo_run import demo_events
from rich.console import Console
from test_page import data_of

from asgl.trace import OpEvent, ProgramEvent, RequestEvent, RuntimeEvent, StreamEvent
from asgl.trace.model import Model
from asgl.trace.nodes import STATES
from asgl.viewer.canvas import (
    ASCII,
    STYLES,
    Painter,
    bar,
    harmless,
    head,
    line_width,
    sparkline,
    tail,
    width_of,
)
from asgl.viewer.page import page_of
from asgl.viewer.view import View, count, seconds

FRAMES = Path(__file__).parent / "frames"


def text_of(frame) -> str:
    """The frame as rich's recording console has it."""
    console = Console(record=True, file=StringIO(), width=220, color_system=None)
    console.print(frame, end="")
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def demo(*, closed: bool = False) -> View:
    return View(Model(demo_events(closed=closed), live=True), keys=not closed)


def after(view: View, *keys: str) -> View:
    for key in keys:
        view.press(key)
    return view


@pytest.mark.parametrize(
    ("name", "view", "width", "height"),
    [
        ("60", demo(), 60, 24),
        ("80", demo(), 80, 24),
        ("120", demo(), 120, 30),
        ("200", demo(), 200, 30),
        ("short", demo(), 100, 11),
        ("ops", after(demo(), "o"), 120, 40),
        ("filtered", after(demo(), "/", *"judge", "enter"), 100, 30),
        ("typing", after(demo(), "/", *"fai"), 100, 30),
        ("help", after(demo(), "?", "p"), 100, 30),
        ("scrolled", after(demo(), "f", "down", "down", "pagedown"), 100, 14),
        ("closed", demo(closed=True), 120, 30),
    ],
)
def test_frames_that_were_looked_at(name, view, width, height):
    """`ASGL_UPDATE=1 pytest` writes them anew: look at what changed."""
    shown = text_of(view.frame(width, height, view.model.now + 0.5))
    path = FRAMES / f"{name}.txt"
    if os.environ.get("ASGL_UPDATE"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", range(40))
def test_any_events_are_drawn_at_any_size(seed):
    model = Model(live=True)
    view = View(model, keys=True)
    for number, event in enumerate(random_events(seed, 120)):
        model.apply(event)
        if number % 10 == 0:
            view.press("ofpr?"[number // 10 % 5])
            for width, height in ((9, 3), (31, 7), (60, 24), (200, 50)):
                frame = view.frame(width, height, model.now)
                assert len(frame.lines) <= height
                assert all(line_width(line) <= width for line in frame.lines)
                said = "".join(text for line in frame.lines for text, _ in line)
                assert "\x1b" not in said
                assert "\n" not in said


def test_any_prefix_of_a_run_is_drawn_and_makes_a_page():
    model, live = Model(), Model(live=True)
    views = [after(View(model), "o"), View(live)]
    for event in demo_events(closed=True):
        model.apply(event)
        live.apply(event)
        for view in views:
            assert view.frame(100, 30, model.now).lines
        data_of(page_of(model, "a prefix"))


def crowd(streams: int, failed: int = 0) -> Model:
    """So many programs that generate, and some that failed."""
    model = Model(live=True)
    model.apply(RuntimeEvent("opened", "m", "cpu", "cpu", 1000, 64))
    for number in range(streams):
        model.apply(StreamEvent("opened", number))
        model.apply(ProgramEvent("started", number, "p", number))
        model.apply(OpEvent("submitted", number, 0, "gen"))
        model.apply(OpEvent("started", number, 0, "gen"))
        model.apply(RequestEvent("submitted", number, 5))
        model.apply(OpEvent("requested", number, 0, "gen", None, number))
        if number % 3 == 0:
            model.apply(RequestEvent("admitted", number, 5))
        if number < failed:
            model.apply(ProgramEvent("failed", number, "p", number, "no"))
    return model


def test_a_thousand_streams_fold():
    view = View(crowd(1000, failed=4))
    shown = text_of(view.frame(100, 20, 1.0)).splitlines()
    assert len(shown) == 20
    assert sum("failed" in line for line in shown[3:]) == 4
    assert sum("computing" in line for line in shown[3:-1]) >= 10
    folded = shown[-1]
    assert folded.startswith("… ")
    assert "waiting" in folded
    hidden = int(folded.split()[1])
    assert hidden + len([line for line in shown if " p[" in line]) == 1000


def test_failures_are_shown_before_all_else_and_those_beyond_the_window_are_counted():
    view = View(crowd(200, failed=50))
    shown = text_of(view.frame(100, 20, 1.0)).splitlines()
    rows = [line for line in shown if " p[" in line]
    assert all("failed" in line for line in rows)
    assert f"✗ {50 - len(rows)} failed" in shown[-1]


def test_a_filter_finds_all_failures():
    view = after(View(crowd(200, failed=50)), "/", *"failed", "enter")
    seen: set[str] = set()
    for _ in range(6):
        rows = text_of(view.frame(100, 20, 1.0)).splitlines()
        seen |= {line.split()[1] for line in rows if " p[" in line}
        view.press("pagedown")
    assert {f"p[{number}]" for number in range(50)} <= seen


def test_scrolling_beyond_the_end_comes_back():
    view = after(View(crowd(5)), *["pagedown"] * 9)
    assert " p[" in text_of(view.frame(100, 20, 1.0))


def test_a_branch_is_shown_below_its_fork_and_its_siblings_are_counted():
    model = crowd(1)
    for number in range(1, 100):
        model.apply(StreamEvent("forked", number, 0))
    model.apply(OpEvent("submitted", 50, 0, "gen"))
    shown = text_of(View(model).frame(100, 10, 1.0)).splitlines()
    assert any(line.startswith("├╴· branch 49") for line in shown)
    assert any(line.startswith("└╴… ") and "idle" in line for line in shown)


# --- keys -----------------------------------------------------------------------------------------


def test_keys():
    view = View(Model())
    assert view.press("q")
    assert not view.press("p")
    assert view.paused
    assert not view.press("x")
    after(view, "/", *"abc", "backspace", "enter")
    assert view.choice.filter == "ab"
    after(view, "/", "q", "escape")
    assert view.choice.filter == "ab"
    after(view, "escape")
    assert view.choice.filter == ""


def test_r_goes_from_one_runtime_to_the_next():
    model = Model(live=True)
    for run in (3, 5):
        event = RuntimeEvent("opened", f"model-{run}")
        object.__setattr__(event, "run", run)
        model.apply(event)
    view = View(model)
    assert "model-5" in text_of(view.frame(80, 10, 1.0))
    assert "Runtime 2 of 2" in text_of(view.frame(80, 10, 1.0))
    view.press("r")
    assert "model-3" in text_of(view.frame(80, 10, 1.0))


# --- text -----------------------------------------------------------------------------------------


def test_what_a_terminal_would_obey_is_not_shown():
    assert harmless("a\x1b[31mb\x07\r\n\tc\u202ed\u200be") == "a[31mb⏎ cde"


@pytest.mark.parametrize(
    "text", ["", "abc", "a long text", "日本語の文", "e\u0301e\u0301", "x日本"]
)
@pytest.mark.parametrize("width", range(12))
def test_texts_are_cut_to_cells(text, width):
    assert width_of(head(text, width)) == width
    assert width_of(tail(text, width)) == width


def test_bars_and_sparklines():
    assert [bar(share, 4) for share in (-1, 0, 0.5, 0.53, 1, 2)] == [
        "░░░░",
        "░░░░",
        "██░░",
        "██▏░",
        "████",
        "████",
    ]
    assert sparkline([0, 1, 4, 8], 6) == "   ▂▅█"
    assert sparkline([], 3) == "   "
    assert sparkline(range(100), 2) == "██"


def test_numbers_are_short():
    assert [seconds(value) for value in (0, 9.96, 99.9, 100, 5999, 6000, 360000)] == [
        "0.0s",
        "10.0s",
        "99.9s",
        "1m40s",
        "99m59s",
        "1h40m",
        "100h00m",
    ]
    assert [count(value) for value in (0, 9999, 10_000, 999_999, 10**7)] == [
        "0",
        "9999",
        "10k",
        "1000k",
        "10.0M",
    ]


def test_every_state_has_a_style_of_colours_that_light_and_dark_terminals_have():
    assert set(STATES) <= set(STYLES)
    named = {"green", "cyan", "yellow", "magenta", "blue", "red"}
    for style in STYLES.values():
        assert style.bgcolor is None
        assert style.color is None or style.color.name in named


def painted(**options) -> str:
    console = Console(file=StringIO(), force_terminal=True, **options)
    frame = demo().frame(100, 30, 5.0)
    return "\n".join(map(Painter(console).paint, frame.lines))


def test_no_color_is_heeded(monkeypatch):
    assert "\x1b[32m" in painted(color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in painted(color_system="standard")
    assert "\x1b[1m" in painted(color_system="standard")


def test_a_terminal_without_utf_8_gets_ascii(monkeypatch):
    monkeypatch.setattr(Console, "encoding", "ascii")
    assert painted().isascii()
    assert all(len(chr(code)) == 1 for code in ASCII)
