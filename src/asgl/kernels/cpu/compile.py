"""Compiles the entries, ahead of any step."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import cfunc, njit, types

from asgl.kernels.cpu import entries, linear, packing, sampling, units
from asgl.kernels.cpu.cache import cached
from asgl.kernels.cpu.threads import Team

Progress = Callable[[str, int, int], None]
"""Told the name of the kernel that is being compiled, how many are ready, and how many there
are."""

_EDIT = "void(int64, int64, int64[::1], int64[::1], float32[::1], boolean)"


class Entry:
    """A compiled entry: called with the values of its record, it runs on all threads of the team
    and returns."""

    def __init__(self, name: str, team: Team, phases: int) -> None:
        pairs = [field.partition(":") for field in entries.FIELDS[name].split()]
        kinds = [(field, np.float64 if kind else np.int64) for field, _, kind in pairs]
        self._pack = struct.Struct(
            "=" + "".join("d" if kind else "q" for _, _, kind in pairs)
        ).pack_into
        self._record = np.zeros(1, np.dtype(kinds, align=True))
        values = np.zeros(len(pairs), np.int64)
        self._values: memoryview = values.data
        signature = types.void(
            types.CPointer(numba.from_dtype(self._record.dtype)), types.int64, types.int64
        )
        self._function = cached(
            lambda cache: cfunc(signature, cache=cache, error_model="numpy")(getattr(entries, name))
        )
        team.keep.append((self._record, self._function))
        self._run = team.run
        self._address, self._source = self._record.ctypes.data, values.ctypes.data
        self.phases = phases

    def __call__(self, *values: float) -> None:
        self._pack(
            self._values, 0, *values
        )  # not to the record, which a late helper of the last call may be reading
        self._run(
            self._function.address, self._address, self.phases, self._source, len(self._values)
        )


class Compiled:
    """All entries; and `plan_units`, `edit` and `fill_tiles`, which are no parallel regions."""

    def __init__(self, team: Team, progress: Progress | None = None) -> None:
        self._ready, self._progress = 0, progress
        self._names = [*entries.FIELDS, "plan_units", "edit", "fill_tiles"]
        self.embed = self._entry("embed", team)
        self.add_rms_norm = self._entry("add_rms_norm", team)
        self.linear = self._entry("linear", team, phases=linear.PHASES)
        self.rope_and_store = self._entry("rope_and_store", team)
        self.attention = self._entry("attention", team, phases=2)
        self.layers = self._entry("layers", team, phases=0)
        self.silu_and_mul = self._entry("silu_and_mul", team)
        self.log_softmax = self._entry("log_softmax", team)
        self.sample = self._entry("sample", team)
        self.plan_units = self._function("plan_units", units.plan_units, units.SIGNATURE)
        self.edit = self._function("edit", sampling.edit.py_func, _EDIT)
        self.fill_tiles = self._function(
            "fill_tiles", packing.fill_tiles.py_func, packing.SIGNATURE
        )
        self._tell("")

    def _tell(self, name: str) -> None:
        if self._progress is not None:
            self._progress(name, self._ready, len(self._names))
        self._ready += 1

    def _entry(self, name: str, team: Team, phases: int = 1) -> Entry:
        self._tell(name)
        return Entry(name, team, phases)

    def _function(self, name: str, function: Callable[..., Any], signature: str) -> Any:
        self._tell(name)
        return cached(
            lambda cache: njit(signature, nogil=True, cache=cache, error_model="numpy")(function)
        )
