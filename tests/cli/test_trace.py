"""`asgl trace`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from demo_run import demo_events
from typer.testing import CliRunner

from asgl.cli.commands import app
from asgl.errors import AsglError
from asgl.trace import JsonlTracer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with JsonlTracer(tmp_path / "run.jsonl") as tracer:
        for event in demo_events(closed=True):
            tracer.event(event)
    return tmp_path / "run.jsonl"


def said(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["trace", *map(str, arguments)], env={"COLUMNS": "150"})
    if isinstance(result.exception, AsglError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_show(path: Path) -> None:
    assert "not valid: more than ten" in said("show", path, "--end")
    assert "tips[2]" in said("show", path, "--all")
    assert "tips[2]" in said("show", path)


def test_stats(path: Path) -> None:
    shown = said("stats", path)
    assert "gen topic" in shown
    assert re.search(r"gen topic +2 +1 +5 +25% +0.25 +0.25 +6.7 +6.7 +0.55 +0.60", shown)
    assert "22 tokens generated (2 forced); 47% of prompt tokens cached" in shown


def test_diff(path: Path, tmp_path: Path) -> None:
    assert "they say the same" in said("diff", path, path)
    other = tmp_path / "other.jsonl"
    other.write_text(path.read_text().replace(" Water falls.", " Water rises."))
    shown = said("diff", path, other, code=1)
    assert "ideas[0] / 0 gen topic: ' Water falls.' -> ' Water rises.'" in shown


def test_perfetto(path: Path) -> None:
    target = Path(said("perfetto", path).strip())
    assert target == path.with_suffix(".perfetto.json")
    assert json.loads(target.read_text())["traceEvents"]
    assert json.loads(said("perfetto", path, "-o", "-"))["traceEvents"]
    with pytest.raises(AsglError, match="cannot be written: Not a directory"):
        said("perfetto", path, "-o", path / "no" / "file")


def test_a_trace_that_is_cut_short_is_shown_with_a_word(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-15])
    assert "the last line of" in said("stats", path)


@pytest.mark.parametrize("command", ["show", "stats", "diff", "perfetto", "html"])
def test_bad_input_is_told_in_one_line(command: str, path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "foreign").write_text("hello")
    (tmp_path / "newer").write_text('{"type":"trace","version":9}\n')
    for name, told in (
        (".", "is a directory"),
        ("pipe", "pipe"),
        ("missing", "No such file"),
        ("foreign", "is no trace of asgl's"),
        ("newer", "version 9"),
    ):
        with pytest.raises(AsglError, match=told) as caught:
            said(command, *([path] if command == "diff" else []), tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_speed_that_is_none(path: Path) -> None:
    with pytest.raises(AsglError, match="--speed must be"):
        said("show", path, "--speed", "-1")


def test_a_trace_without_ops(tmp_path: Path) -> None:
    with JsonlTracer(tmp_path / "run.jsonl"):
        pass
    assert said("stats", tmp_path / "run.jsonl").strip() == "the trace has no ops"
    said("show", tmp_path / "run.jsonl")
