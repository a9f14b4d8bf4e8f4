"""Threads inside one parallel region: phases of pieces that threads claim, and a wait between phases.

Entering a parallel region costs 2-5 microseconds, and a decode step of 30 layers has some 250 of them; a phase costs a fraction of
one. A phase is `count` pieces. Each thread claims the next piece until there is none, and then waits until all pieces are
finished, its own and the others'. Nothing depends on which thread takes which piece, nor on how many threads there are: if
the runtime gives the region fewer threads than asked for, or runs them one after another, the work is done all the same.
A thread that loses its core holds up the others for the piece it holds, and no longer.

A team is memory: a phase's counters are two cache lines, claims and finished pieces, all 0 at the start of the region. The
first of them counts the threads that came.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from numba import types

from asgl.kernels.cpu.simd import fetch_add, get_shared, kernel, pause

PHASE = 128
"""Bytes of a phase's counters."""
FIRST = PHASE
"""Where the counters of the first phase are in a team's memory; before them, those of its threads."""
_SPINS = 20_000
"""Looks at the counter before a waiting thread gives up its core, some 0.2 ms: longer than any piece of a decode step."""
_NAP = 50
"""Microseconds of sleep between looks after that. An idle core is what makes the scheduler move the late thread to it."""

if llvm.address_of_symbol("usleep"):
    _usleep = types.ExternalFunction("usleep", types.int32(types.uint32))

    @kernel
    def _nap() -> None:
        _usleep(_NAP)

else:

    @kernel
    def _nap() -> None:
        pause()


@kernel
def join(team: int) -> int:
    """The number of this thread in its team, from 0."""
    return fetch_add(team, 1)


@kernel
def claim(team: int, phase: int, pieces: int) -> int:
    """Claims the next `pieces` pieces of a phase; returns the first. There is none if it is not below the phase's count."""
    return fetch_add(team + FIRST + phase * PHASE, pieces)


@kernel
def finish(team: int, phase: int, pieces: int) -> None:
    """Says that so many pieces are done; what they wrote is seen by whoever waits."""
    fetch_add(team + FIRST + phase * PHASE + 64, pieces)


@kernel
def wait(team: int, phase: int, count: int) -> None:
    """Returns once all `count` pieces of the phase are done."""
    looks = 0
    while get_shared(team + FIRST + phase * PHASE + 64) < count:
        looks += 1
        if looks < _SPINS:
            pause()
        else:
            _nap()
