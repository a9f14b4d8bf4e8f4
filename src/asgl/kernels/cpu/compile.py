"""Compiles the entries once, ahead of any step, and keeps them on disk.

Numba keys its cache by an entry's own source file and the processor; the entries here are built from many files. So the
cache lies in a directory named by a hash of all sources of this package and of the versions that compile them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import platformdirs
from numba import cfunc, config, njit, types

from asgl.kernels.cpu import entries, sampling, units
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.threads import Team

Progress = Callable[[str, int, int], None]
"""Told the name of the kernel that is being compiled, how many are ready, and how many there are."""

_EDIT = "void(int64, int64, int64[::1], int64[::1], float32[::1], boolean)"


def cache_directory() -> Path:
    """Where compiled kernels of exactly these sources are kept: under ASGL_HOME, else the user's cache directory."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\\0" + path.read_bytes() + b"\\0")
    digest.update(repr((numba.__version__, llvmlite.__version__, TARGET)).encode())
    home = os.environ.get("ASGL_HOME")
    root = Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("asgl"))
    return root / "kernels" / digest.hexdigest()[:16]


class Entry:
    """A compiled entry: called with the values of its record, it runs on all threads of the team and returns."""

    def __init__(self, name: str, team: Team) -> None:
        pairs = [field.partition(":") for field in entries.FIELDS[name].split()]
        kinds = [(field, np.float64 if kind else np.int64) for field, _, kind in pairs]
        self._pack = struct.Struct("=" + "".join("d" if kind else "q" for _, _, kind in pairs)).pack_into
        self._record = np.zeros(1, np.dtype(kinds, align=True))
        self._bytes = self._record.view(np.uint8)
        self._team = team
        signature = types.void(types.CPointer(numba.from_dtype(self._record.dtype)))
        self._function = _cached(lambda cache: cfunc(signature, cache=cache, error_model="numpy")(getattr(entries, name)))
        self._run, self._address, self._data = team.run, self._function.address, self._record.ctypes.data

    def __call__(self, *values: float) -> None:
        self._pack(self._bytes, 0, *values)
        self._run(self._address, self._data)


def _cached(compiled: Callable[[bool], Any]) -> Any:
    try:
        return compiled(True)
    except RuntimeError:  # no directory can be written: compiling at every start is what that costs
        return compiled(False)


class Compiled:
    """All entries; and `plan_units` and `edit`, which are no parallel regions."""

    def __init__(self, team: Team, progress: Progress | None = None) -> None:
        self._ready, self._progress = 0, progress
        self._names = [*entries.FIELDS, "plan_units", "edit"]
        with _cache_in(cache_directory()):
            self.embed = self._entry("embed", team)
            self.add_rms_norm = self._entry("add_rms_norm", team)
            self.linear = self._entry("linear", team)
            self.rope_and_store = self._entry("rope_and_store", team)
            self.attention = self._entry("attention", team)
            self.silu_and_mul = self._entry("silu_and_mul", team)
            self.log_softmax = self._entry("log_softmax", team)
            self.sample = self._entry("sample", team)
            self.plan_units = self._function("plan_units", units.plan_units, units.SIGNATURE)
            self.edit = self._function("edit", sampling.edit.py_func, _EDIT)
        self._tell("")

    def _tell(self, name: str) -> None:
        if self._progress is not None:
            self._progress(name, self._ready, len(self._names))
        self._ready += 1

    def _entry(self, name: str, team: Team) -> Entry:
        self._tell(name)
        return Entry(name, team)

    def _function(self, name: str, function: Callable[..., Any], signature: str) -> Any:
        self._tell(name)
        return _cached(lambda cache: njit(signature, nogil=True, cache=cache, error_model="numpy")(function))


@contextlib.contextmanager
def _cache_in(directory: Path) -> Iterator[None]:
    before = config.CACHE_DIR
    config.CACHE_DIR = str(directory)
    try:
        yield
    finally:
        config.CACHE_DIR = before
