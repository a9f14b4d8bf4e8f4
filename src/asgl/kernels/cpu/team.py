"""A team of threads: jobs that are posted to it, phases of a job, and pieces of a phase that
threads claim.

A job is a function that every thread runs; it goes through phases, and a phase is `count` pieces.
Each thread claims the next piece until there is none, and then waits until all pieces are finished,
its own and the others'. A phase costs a fraction of a microsecond where an OpenMP region costs
several, and a decode step of 30 layers has some 250 of them.

Nothing depends on which thread takes which piece, nor on whether a thread comes at all. The thread
that posts a job is done when all pieces are: it waits for no thread as such, only for pieces that
another has begun. So a core that is busy with something else slows a step down by the share of the
work that it would have done, and not by waiting for its scheduler.

A thread that comes late, or that lost its core between two pieces, must not take part in a later
job with what it knows of an earlier one, nor in an earlier one with what it reads of a later. So
jobs are numbered, the counters of a phase carry the number, to claim is to compare and swap, and a
record is only written over when the counters of its last job are gone:

    job       [ number | function | record | stop | size of the team ]    number 0: being written
    phase     [ number << 24 | claimed ... 64 bytes ][ number << 24 | finished ... 64 bytes ]
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types

from asgl.kernels.cpu.llvm import I64
from asgl.kernels.cpu.simd import (
    compare_and_swap,
    get_i64,
    get_shared,
    i64,
    kernel,
    operation,
    pause,
    set_shared,
    void,
)

NUMBER, FUNCTION, RECORD, STOP, SIZE = 0, 8, 16, 24, 32
"""Offsets of a job's fields."""
FIRST = 64
"""Where a job's phases begin."""
PHASE = 128
"""Bytes of a phase's counters."""
NONE = 1 << 40
"""What a claim returns when there is nothing to claim: more than any count."""
_BITS = 24
_PIECES = (1 << _BITS) - 1

_SPINS = 6_000
"""Looks before a thread that waits for pieces gives up its core, some 0.1 ms: longer than any piece
of a decode step."""
_IDLE_SPINS = 30_000
"""Looks before a thread that waits for a job does: longer than what is between two steps."""
_NAP = 50
"""Microseconds of sleep between looks after that. An idle core is what makes the scheduler move a
late thread to it."""
_NAPS = 200
"""Naps without a job before a thread goes back to Python, to wait there at no cost."""


@operation(void, i64, i64, i64, i64)
def _call(builder: Any, function: Any, record: Any, thread: Any, number: Any) -> None:
    """Calls the function at an address: void(record, thread, number)."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    builder.call(builder.inttoptr(function, kind.as_pointer()), [record, thread, number])


if llvmlite.binding.address_of_symbol("usleep"):
    _usleep = types.ExternalFunction("usleep", types.int32(types.uint32))

    @kernel
    def _nap() -> None:
        _usleep(_NAP)

else:

    @kernel
    def _nap() -> None:
        pause()


@kernel
def claim(job: int, phase: int, number: int, pieces: int, count: int) -> int:
    """Claims the next `pieces` pieces of a phase of `count`; returns the first, or NONE."""
    at = job + FIRST + phase * PHASE
    while True:
        seen = get_shared(at)
        if seen >> _BITS != number or seen & _PIECES >= count:
            return NONE
        if compare_and_swap(at, seen, seen + pieces):
            return seen & _PIECES


@kernel
def claim_run(job: int, phase: int, number: int, count: int) -> tuple[int, int]:
    """Claims a run of pieces, long at first and shorter towards the end: (first, how many), or
    (NONE, 0).

    For pieces that stream neighbouring memory: two threads that took turns would each read every
    other piece, and the processor fetches ahead only where reading goes on.
    """
    at, size = job + FIRST + phase * PHASE, get_i64(job + SIZE)
    while True:
        seen = get_shared(at)
        if seen >> _BITS != number or seen & _PIECES >= count:
            return NONE, 0
        pieces = max(1, (count - (seen & _PIECES)) // (size + 1))
        if compare_and_swap(at, seen, seen + pieces):
            return seen & _PIECES, pieces


@kernel
def finish(job: int, phase: int, pieces: int) -> None:
    """Says that so many claimed pieces are done; what they wrote is seen by whoever waits."""
    at = job + FIRST + phase * PHASE + 64
    while True:
        seen = get_shared(at)
        if compare_and_swap(at, seen, seen + pieces):
            return


@kernel
def wait(job: int, phase: int, number: int, count: int) -> None:
    """Returns once all `count` pieces of the phase are done, or if the job is over."""
    at, looks = job + FIRST + phase * PHASE + 64, 0
    first, done = number << _BITS, (number << _BITS) + count
    while True:
        seen = get_shared(at)
        if seen >= done or seen < first:  # later jobs have greater numbers
            return
        looks += 1
        if looks < _SPINS:
            pause()
        else:
            _nap()


def launch(job: int, function: int, record: int, phases: int, values: int, words: int) -> None:
    """Posts a job of so many phases, and takes part in it as thread 0. `words` int64 at `values`
    are copied to its record."""
    number = get_i64(job + NUMBER) + 1
    set_shared(job + NUMBER, 0)
    for phase in range(phases):
        set_shared(job + FIRST + phase * PHASE, number << _BITS)
        set_shared(job + FIRST + phase * PHASE + 64, number << _BITS)
    for word in range(
        words
    ):  # by now nobody can claim what an earlier job left by the counts of this one
        set_shared(record + word * 8, get_i64(values + word * 8))
    set_shared(job + FUNCTION, function)
    set_shared(job + RECORD, record)
    set_shared(job + NUMBER, number)
    _call(function, record, 0, number)


def help_out(job: int, thread: int, last: int) -> int:
    """Takes part in jobs later than `last` as a thread of that number; returns the last one's
    number when there was none for a while, or -1 to stop."""
    looks, naps = 0, 0
    while True:
        number = get_shared(job + NUMBER)
        if get_shared(job + STOP) != 0:
            return -1
        if number != 0 and number != last:
            function, record = get_shared(job + FUNCTION), get_shared(job + RECORD)
            if get_shared(job + NUMBER) == number:
                _call(function, record, thread, number)
                last, looks, naps = number, 0, 0
            continue
        looks += 1
        if looks < _IDLE_SPINS:
            pause()
            continue
        naps += 1
        if naps > _NAPS:
            return last
        _nap()
