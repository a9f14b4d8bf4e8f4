"""The threads of a team, and the compiled functions that post jobs to them (see team.py).

They are Python threads that live in compiled code, and so need no OpenMP. Numba's own threading
layers were no choice: the wheel of Numba brings a second OpenMP runtime into the process beside
torch's, each with threads that spin on the other's cores.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc
from numpy.typing import NDArray

from asgl.kernels.cpu import team
from asgl.kernels.cpu.cache import cached

_LAUNCH = "void(int64, int64, int64, int64, int64, int64)"
_HELP = "int64(int64, int64, int64)"


class Team:
    """`size` threads, the caller's among them, for jobs of up to `phases` phases. Jobs are posted
    by one thread at a time."""

    def __init__(self, size: int, phases: int) -> None:
        self.size = size
        words = (team.FIRST + phases * team.PHASE) // 8
        self._memory = np.zeros(words + 8, np.int64)
        aligned = -self._memory.ctypes.data % 64 // 8
        self._words = self._memory[aligned : aligned + words]
        self.address = self._words.ctypes.data
        self._words[team.SIZE // 8] = size
        launch = cached(lambda cache: cfunc(_LAUNCH, cache=cache, error_model="numpy")(team.launch))
        helper = cached(lambda cache: cfunc(_HELP, cache=cache, error_model="numpy")(team.help_out))
        self._launch = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(launch.address)
        self._compiled = launch, helper  # keeps the code alive
        self.keep: list[Any] = []
        """What jobs read before they have claimed anything: a helper that comes late reads it when
        the job is long done, and maybe the team gone."""
        self._parked: list[threading.Semaphore] = []
        for number in range(1, size):
            self._start(number, helper)
        weakref.finalize(self, _stop, self._words, self._parked)

    def run(self, function: int, record: int, phases: int, values: int = 0, words: int = 0) -> None:
        """Runs void(record, thread, number of the job) on the team; returns when the job is done.

        A record that an earlier job had must not be written to: `words` int64 at `values` are
        copied to it, at a time when a late helper claims nothing any more, whatever it reads there;
        but the address of the team must always be there. So a record's next job must have all
        phases that its last one had. See `keep`, too.
        """
        while self._parked:
            # one that parks just now misses this job, which is then done without it
            self._parked.pop().release()
        self._launch(self.address, function, record, phases, values, words)

    @property
    def idle(self) -> bool:
        """Whether no helper is inside a job: what earlier jobs than the last had may be freed."""
        return self._words[team.INSIDE // 8] == 0

    def _start(self, number: int, helper: Any) -> None:
        function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(helper.address)
        arguments = function, self._words, number, self._parked, helper, self.keep
        threading.Thread(
            target=_help, args=arguments, name=f"asgl-kernels-{number}", daemon=True
        ).start()


def _help(
    function: Callable[[int, int, int], int],
    words: NDArray[np.int64],
    number: int,
    parked: list[threading.Semaphore],
    _code: Any,
    _keep: list[Any],
) -> None:
    """The life of a helper: jobs while there are any, and between them it waits. Holds no reference
    to the team."""
    last = 0
    while (last := function(words.ctypes.data, number, last)) >= 0:
        wake = threading.Semaphore(0)
        parked.append(wake)
        if words[team.STOP // 8]:
            return
        wake.acquire()


def _stop(words: NDArray[np.int64], parked: list[threading.Semaphore]) -> None:
    words[team.STOP // 8] = 1
    while parked:
        parked.pop().release()
