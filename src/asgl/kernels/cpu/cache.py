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
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from numba.core import config, event

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


def cached(compiled: Callable[[bool], Any], on_compile: Callable[[], object] | None = None) -> Any:
    """compiled(cache=True), or compiled(False) where no directory can be written: that costs
    compiling at every start. `on_compile` is called when compiling begins; what was compiled before
    is loaded without it."""
    with contextlib.ExitStack() as stack:
        if on_compile is not None:
            stack.enter_context(event.install_listener(_PASS, _FirstPass(on_compile)))
        try:
            with _numba_cache_in(cache_directory()):
                return compiled(True)
        except RuntimeError:
            return compiled(False)


_PASS = "numba:run_pass"
"""Numba's event of a pass of its compiler; loading from the cache has none."""


class _FirstPass(event.Listener):
    """Calls the function at the first pass of the compiler on this thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call
        self._thread = threading.get_ident()

    def on_start(self, event: event.Event) -> None:
        if self._call is not None and threading.get_ident() == self._thread:
            call, self._call = self._call, None
            call()

    def on_end(self, event: event.Event) -> None:
        """Each pass is told at its start."""


@contextlib.contextmanager
def _numba_cache_in(directory: Path) -> Generator[None]:
    settings: Any = config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(directory)
    try:
        yield
    finally:
        settings.CACHE_DIR = before
