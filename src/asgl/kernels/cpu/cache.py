"""Where compiled kernels are kept.

Numba keys its cache by the source file of the function that is compiled and by the processor; what
we compile is built from many files. So our cache lies in a directory named by a hash of all sources
of this package and of the versions that compile them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from numba.core import config

from asgl.kernels.cpu.target import TARGET


@functools.cache
def _sources() -> str:
    """A hash of what the compiled code depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((numba.__version__, llvmlite.__version__, TARGET)).encode())
    return digest.hexdigest()[:16]


def cache_directory() -> Path:
    """Where compiled kernels of exactly these sources are kept: under ASGL_HOME, else the user's
    cache directory."""
    home = os.environ.get("ASGL_HOME")
    root = Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("asgl"))
    return root / "kernels" / _sources()


def cached(compiled: Callable[[bool], Any]) -> Any:
    """compiled(cache=True), or compiled(False) where no directory can be written: that costs
    compiling at every start."""
    try:
        with _numba_cache_in(cache_directory()):
            return compiled(True)
    except RuntimeError:
        return compiled(False)


@contextlib.contextmanager
def _numba_cache_in(directory: Path) -> Generator[None]:
    settings: Any = config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(directory)
    try:
        yield
    finally:
        settings.CACHE_DIR = before
