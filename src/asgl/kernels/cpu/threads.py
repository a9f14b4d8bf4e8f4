"""The threads that run an entry: those of torch's own OpenMP runtime, or Python's where that cannot be called.

Numba has a threading layer of its own, but it brings a second copy of the OpenMP runtime into the process, whose threads
spin on the cores that torch's need (the wheel of Numba asks for libgomp.so.1.0.0, torch brings libgomp.so.1). A parallel
region is one call, GOMP_parallel(function, argument, threads, flags), so we make it ourselves.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from asgl.kernels.cpu.openmp import runtimes
from asgl.kernels.cpu.team import FIRST, PHASE

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team:
    """`size` threads, and the counters (see team.py) of a region of up to `phases` phases."""

    def __init__(self, size: int, phases: int) -> None:
        self.size = size
        self._counters = np.zeros((FIRST + phases * PHASE) // 8 + 8, np.int64)
        aligned = -self._counters.ctypes.data % 64
        self.address = self._counters.ctypes.data + aligned
        self._helpers: list[queue.SimpleQueue[tuple[Callable[[int], None], int] | None]] = []
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._gomp = _gomp_parallel() if size > 1 else None
        if size > 1 and self._gomp is None:
            self._start_helpers()

    def run(self, function: int, argument: int) -> None:
        """Calls the C function at an address with an argument, on every thread, and waits for all."""
        self._counters.fill(0)
        if self._gomp is not None:
            self._gomp(function, argument, self.size, 0)
            return
        body = _Body(function)
        for helper in self._helpers:
            helper.put((body, argument))
        body(argument)
        for _ in self._helpers:
            self._done.get()

    def close(self) -> None:
        """Ends the helpers, if there are any. May be called again."""
        for helper in self._helpers:
            helper.put(None)
        self._helpers.clear()

    def _start_helpers(self) -> None:
        for number in range(1, self.size):
            todo: queue.SimpleQueue[tuple[Callable[[int], None], int] | None] = queue.SimpleQueue()
            self._helpers.append(todo)
            threading.Thread(target=_help, args=(todo, self._done), name=f"asgl-kernel-{number}", daemon=True).start()


def _help(
    todo: queue.SimpleQueue[tuple[Callable[[int], None], int] | None], done: queue.SimpleQueue[None]
) -> None:
    while (work := todo.get()) is not None:
        body, argument = work
        body(argument)
        done.put(None)


def _gomp_parallel() -> Callable[[int, int, int, int], None] | None:
    """GOMP_parallel of the OpenMP runtime that torch has loaded; LLVM's has it as well."""
    own = Path(torch.__file__).parent / "lib"
    candidates = [path for path in runtimes() if Path(path).parent == own] or runtimes()
    for path in [*candidates, *map(str, own.glob("libomp.dylib"))]:
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None
