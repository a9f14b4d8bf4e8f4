"""Traces from disk in the view."""

from __future__ import annotations

import sys
from io import StringIO

import pytest
from demo_run import demo_events
from rich.console import Console
from test_live import Screen, standard_streams

from asgl.viewer.replay import replay, show_end


class Clock:
    """Each look at it is a tenth of a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


@pytest.fixture
def screen():
    screen = Screen(100, 30)
    yield screen
    screen.close()


@pytest.mark.parametrize(("speed", "frames"), [(4.0, 18), (40.0, 3)])
def test_it_goes_as_it_went(screen, monkeypatch, speed, frames):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    clock = Clock()
    with standard_streams(screen):
        replay(demo_events(), screen.console, speed=speed, clock=clock, keys=False)
    assert 0.5 * frames < clock.now * 10 < 1.5 * frames + 3
    shown = screen.text
    assert shown.count("asgl demo-135m") == 1
    assert "not valid: more than ten" in shown
    assert not screen.emulator.cursor.hidden


def test_keys_of_a_replay(screen, monkeypatch):
    monkeypatch.setattr(sys, "stdin", screen.stdin)
    monkeypatch.setattr("os.tcgetpgrp", lambda number: __import__("os").getpgrp())
    clock = Clock()
    screen.type("pp+++q")
    with standard_streams(screen):
        replay(demo_events(), screen.console, speed=1.0, clock=clock)
    assert clock.now < 1
    assert "asgl demo-135m" in screen.text
    assert "tips[1]" not in screen.text


def test_without_a_terminal_the_end_is_shown():
    file = StringIO()
    replay(demo_events(), Console(file=file, width=100, height=30), speed=1.0)
    assert "not valid: more than ten" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_the_end_with_all_rows():
    file = StringIO()
    show_end(demo_events(), Console(file=file, width=100, height=8), everything=True)
    assert "tips[2]" in file.getvalue()
    show_end([], Console(file=file, width=100, height=8))
