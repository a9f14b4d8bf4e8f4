from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_wheel import CONTENT, MODEL, NAME, environment, write_wheel
from typer.testing import CliRunner

import asgl.cli
from asgl.cli.commands import app
from asgl.models.pull import REGISTERED
from asgl.trace import RuntimeEvent, read


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_wheel(tmp_path / "wheels")
    for name, value in environment(tmp_path / "home", tmp_path / "wheels").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(REGISTERED, NAME, MODEL)
    return tmp_path / "home"


def test_models_says_what_is_cached(cache: Path) -> None:
    def rows() -> dict[str, list[str]]:
        result = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert f"cache: {cache}" in result.stdout
        return {words[0]: words for line in result.stdout.splitlines() if (words := line.split())}

    assert rows()[NAME][1] == "no"
    assert CliRunner().invoke(app, ["pull", NAME]).exit_code == 0
    assert rows()[NAME][1] == "yes"
    assert rows()["smollm2-135m"][1:5] == ["no", "98", "MB", "Apache-2.0"]


def test_pull_prints_the_path(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file.gguf").write_bytes(CONTENT)
    result = CliRunner().invoke(app, ["pull", NAME, "--from", str(tmp_path / "file.gguf")])
    assert result.stdout.strip() == str(MODEL.path)
    MODEL.path.write_bytes(CONTENT[:-1] + b"?")
    assert CliRunner().invoke(app, ["pull", NAME, "--check"]).exit_code == 0
    assert MODEL.path.read_bytes() == CONTENT


def test_errors_are_printed_without_a_traceback(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["asgl", "pull", "[no] such"])
    with pytest.raises(SystemExit) as exit:
        asgl.cli.main()
    assert exit.value.code == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(
        "error: there is no registered model '[no] such'; there are smollm2-135m"
    )
    assert "Traceback" not in output.err


def test_a_source_that_is_not_there_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing.gguf")
    monkeypatch.setattr(sys, "argv", ["asgl", "pull", NAME, "--from", missing])
    with pytest.raises(SystemExit):
        asgl.cli.main()
    output = capsys.readouterr().err
    assert f"cannot be taken from {missing!r}: there is no such file" in output
    assert "cache" not in output


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "asgl"], [str(Path(sys.executable).with_name("asgl"))]]
)
def test_the_command_line(command: list[str], tmp_path: Path) -> None:
    env = {**os.environ, "ASGL_HOME": str(tmp_path), "COLUMNS": "200"}
    helped = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, env=env, check=True
    )
    assert "pull" in helped.stdout
    assert "models" in helped.stdout
    listed = subprocess.run(
        [*command, "models"], capture_output=True, text=True, env=env, check=True
    )
    assert "smollm2-135m" in listed.stdout
    wrong = subprocess.run(
        [*command, "pull", "nope"], capture_output=True, text=True, env=env, check=False
    )
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: there is no registered model 'nope'")


def test_the_command_loads_nothing_heavy() -> None:
    heavy = {"torch", "numba", "transformers", "tokenizers"}
    code = f"import sys, asgl.cli; print(*sorted({heavy} & set(sys.modules)))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == []


# --- asgl run -------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, sys
from asgl.testing import ScriptedRuntime

async def main():
    async with ScriptedRuntime({"x": "a b c"}) as rt:
        print(await rt.prompt("Say: ").gen("x"), *sys.argv[1:], __name__)

asyncio.run(main())
"""


def run_script(tmp_path: Path, *arguments: str, script: str = SCRIPT) -> Any:
    (tmp_path / "beside.py").write_text("value = 5\n")
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "asgl", "run", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_run_attaches_tracers_to_the_runtimes_of_a_script(tmp_path: Path) -> None:
    trace = tmp_path / "run.jsonl"
    done = run_script(tmp_path, "--view", "--trace", str(trace), "--own", "5", "--", "--view")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a b c --own 5 --view __main__\n"
    assert "1 done; 4 tokens" in done.stderr
    assert read(trace)[-1] == RuntimeEvent("closed")


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("import asgl\nraise asgl.ModelError('none')", 1, "ModelError: none"),
        ("raise SystemExit(7)", 7, ""),
        ("raise KeyboardInterrupt", 130, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import beside\nassert beside.value == 5", 0, ""),
    ],
)
def test_a_script_ends_as_python_would_end_it(
    tmp_path: Path, script: str, code: int, told: str
) -> None:
    done = run_script(tmp_path, script=script)
    assert done.returncode == code
    assert told in done.stderr
    assert bool(done.stderr) == bool(told)


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "is a directory"), (tmp_path / "no.py", "is not there")):
        command = [sys.executable, "-m", "asgl", "run", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: the script '{path}' {told}")


def test_no_trace_holds_a_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "a-very-secret-token")
    trace = tmp_path / "run.jsonl"
    assert run_script(tmp_path, "--trace", str(trace)).returncode == 0
    made = CliRunner().invoke(app, ["trace", "html", str(trace), "-o", "-"])
    assert "a b c" in trace.read_text()
    for text in (trace.read_text(), made.output):
        assert "secret" not in text
        assert str(tmp_path) not in text
