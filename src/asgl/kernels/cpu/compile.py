"""Compiles the entries, ahead of any step."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from itertools import count
from typing import Any

import numba
import numpy as np
from numba import cfunc, njit, types

from asgl.kernels.api import Progress
from asgl.kernels.cpu import entries, sampling, units
from asgl.kernels.cpu.cache import cached
from asgl.kernels.cpu.formats import Formats
from asgl.kernels.cpu.threads import Team


class Entry:
    """A compiled entry: called with the fields of its record, it runs on all threads of the team
    and returns. TypeError if a field is missing, or is none of its record."""

    def __init__(
        self,
        name: str,
        team: Team,
        phases: int,
        on_compile: Callable[[], object] | None = None,
    ) -> None:
        pairs = [field.partition(":") for field in entries.FIELDS[name].split()]
        self._name, self._fields = name, [field for field, _, _ in pairs]
        self._ordered = operator.itemgetter(*self._fields)
        self._pack = struct.Struct(
            "=" + "".join("d" if kind else "q" for _, _, kind in pairs)
        ).pack_into
        kinds = [(field, np.float64 if kind else np.int64) for field, _, kind in pairs]
        self._record = np.zeros(1, np.dtype(kinds, align=True))
        values = np.zeros(len(pairs), np.int64)
        self._values: memoryview = values.data
        signature = types.void(
            types.CPointer(numba.from_dtype(self._record.dtype)), types.int64, types.int64
        )
        self.function = cached(
            lambda cache: cfunc(signature, cache=cache, error_model="numpy")(
                getattr(entries, name)
            ),
            on_compile,
        )
        self._job, self._code = team.address, self.function.address
        team.keep.append((self._record, self.function))
        self._run = team.run
        self._address, self._source = self._record.ctypes.data, values.ctypes.data
        self.phases = phases

    def need(self, phases: int) -> None:
        """Makes room for jobs of so many phases, for good: a late helper of the job with the most
        of them reads the record of any later one."""
        self.phases = max(self.phases, phases)

    def __call__(self, **fields: float) -> None:
        fields["job"] = self._job
        try:
            values = self._ordered(fields)
        except KeyError:
            values = ()
        if len(values) != len(fields):
            raise TypeError(
                f"{self._name} takes {', '.join(self._fields)}, not {', '.join(fields)}"
            )
        # not to the record, which a late helper of the last call may be reading
        self._pack(self._values, 0, *values)
        self._run(self._code, self._address, self.phases, self._source, len(values))


class Compiled:
    """All entries; `plan_units` and `edit`, which are no parallel regions; and `formats`, whose
    kernels are compiled when a model needs them.

    progress: hears of those that are compiled, and not of those that the cache has.
    """

    def __init__(self, team: Team, progress: Progress | None = None) -> None:
        ready = count()

        def tell(name: str) -> Callable[[], object]:
            """What to call if the next one must be compiled."""
            before = next(ready)
            known = max(before + 1, len(entries.FIELDS) + 2)
            return lambda: progress and progress(name, before, known)

        def entry(name: str, phases: int = 1) -> Entry:
            return Entry(name, team, phases, tell(name))

        def function(function: Callable[..., Any], signature: str) -> Any:
            return cached(
                lambda cache: njit(signature, nogil=True, cache=cache, error_model="numpy")(
                    function
                ),
                tell(function.__name__),
            )

        self.pack = entry("pack")
        self.embed = entry("embed")
        self.operations = entry("operations", 2)
        self.log_softmax = entry("log_softmax")
        self.sample = entry("sample")
        self.plan_units = function(units.plan_units, units.SIGNATURE)
        self.edit = function(sampling.edit.py_func, sampling.EDIT_SIGNATURE)
        self.formats = Formats(tell)
        team.keep.append(self.formats)  # which late helpers read
