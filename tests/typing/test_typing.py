"""What editors and type checkers know of users' programs: mypy --strict and basedpyright in strict
mode agree with `programs`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"

pytestmark = pytest.mark.timeout(300)


def checked(*command: str, cwd: Path) -> str:
    """What the checker says of all programs; empty if it is content."""
    for program in PROGRAMS.glob("*.py"):
        shutil.copy(program, cwd)
    ran = subprocess.run(
        [sys.executable, "-m", *command, "good.py", "bad.py"],
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def test_mypy(tmp_path: Path) -> None:
    assert (
        checked(
            "mypy",
            "--strict",
            "--no-incremental",
            "--python-executable",
            sys.executable,
            cwd=tmp_path,
        )
        == ""
    )


def test_basedpyright(tmp_path: Path) -> None:
    settings = {
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "enableTypeIgnoreComments": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    assert checked("basedpyright", "--pythonpath", sys.executable, cwd=tmp_path) == ""
