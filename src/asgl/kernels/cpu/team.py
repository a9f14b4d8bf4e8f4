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

    job       [ number | function | record | stop | size of the team | helpers inside a job ]
              number 0: being written
    phase     [ number << 24 | claimed ... 64 bytes ][ number << 24 | finished ... 64 bytes ]
"""

from __future__ import annotations

from collections.abc import Generator
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

NUMBER, FUNCTION, RECORD, STOP, SIZE, INSIDE = 0, 8, 16, 24, 32, 40
"""Offsets of a job's fields."""
FIRST = 64
"""Where a job's phases begin."""
PHASE = 128
"""Bytes of a phase's counters."""
RUNS = 0
"""A grain: runs of pieces, long at first and shorter towards the end. For pieces that stream
neighbouring memory: two threads that took turns would each read every other piece, and the
processor fetches ahead only where reading goes on."""
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
def call(builder: Any, function: Any, record: Any, thread: Any, number: Any) -> None:
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
def claim(job: int, phase: int, number: int, grain: int, count: int) -> tuple[int, int]:
    """Claims the next pieces of a phase of `count`, `grain` at a time or `RUNS`: (the first, how
    many), or (0, 0) if there are none left."""
    at = job + FIRST + phase * PHASE
    while True:
        seen = get_shared(at)
        left = count - (seen & _PIECES)
        # another number is another job: this thread is late, and nothing here is its business
        if seen >> _BITS != number or left <= 0:
            return 0, 0
        taken = min(grain, left) if grain else max(1, left // (get_i64(job + SIZE) + 1))
        # a swap that succeeds proves more than that nobody was faster: the number in the counter
        # is still ours, so job and record have not been written over, and cannot be until these
        # pieces are finished
        if compare_and_swap(at, seen, seen + taken):
            return seen & _PIECES, taken


@kernel
def _add(at: int, number: int) -> None:
    while True:
        seen = get_shared(at)
        if compare_and_swap(at, seen, seen + number):
            return


@kernel
def finish(job: int, phase: int, done: int) -> None:
    """Says that so many claimed pieces are done; what they wrote is seen by whoever waits."""
    _add(job + FIRST + phase * PHASE + 64, done)


@kernel
def wait(job: int, phase: int, number: int, count: int) -> None:
    """Returns once all `count` pieces of the phase are done, or if the job is over.

    Pieces are waited for, not threads: each was claimed by a thread that runs it now, this one or
    another, and a thread that claimed none keeps nobody.
    """
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


@kernel
def pieces(
    job: int, phase: int, number: int, grain: int, count: int, waits: bool = True
) -> Generator[int]:
    """The pieces of a phase that this thread gets, each of which must be done when the next is
    asked for; ends when all threads have done all `count` pieces, or, unless it `waits`, when all
    are claimed. Must be exhausted."""
    while True:
        first, taken = claim(job, phase, number, grain, count)
        if taken == 0:
            break
        for piece in range(first, first + taken):  # noqa: UP028 (Numba has no `yield from`)
            yield piece
        finish(job, phase, taken)
    if waits:
        wait(job, phase, number, count)


def launch(job: int, function: int, record: int, phases: int, values: int, words: int) -> None:
    """Posts a job of so many phases, and takes part in it as thread 0. `words` int64 at `values`
    are copied to its record.

    The order of these stores is what keeps late threads out, whichever of them one sees last: first
    no job can be entered (number 0), then nothing of the job before can be claimed (its number is
    gone from all counters), then its record is written over, and only then the new job can be
    entered.
    """
    number = get_i64(job + NUMBER) + 1
    set_shared(job + NUMBER, 0)
    for phase in range(phases):
        set_shared(job + FIRST + phase * PHASE, number << _BITS)
        set_shared(job + FIRST + phase * PHASE + 64, number << _BITS)
    for word in range(words):
        set_shared(record + word * 8, get_i64(values + word * 8))
    set_shared(job + FUNCTION, function)
    set_shared(job + RECORD, record)
    set_shared(job + NUMBER, number)
    call(function, record, 0, number)


def help_out(job: int, thread: int, last: int) -> int:
    """Takes part in jobs later than `last` as a thread of that number; returns the last one's
    number when there was none for a while, or -1 to stop."""
    looks, naps = 0, 0
    while True:
        number = get_shared(job + NUMBER)
        if get_shared(job + STOP) != 0:
            return -1
        if number != 0 and number != last:
            _add(job + INSIDE, 1)
            function, record = get_shared(job + FUNCTION), get_shared(job + RECORD)
            # the same number before and after: function and record belong to that job. If the job
            # ends right now, its function finds nothing to claim
            if get_shared(job + NUMBER) == number:
                call(function, record, thread, number)
                last, looks, naps = number, 0, 0
            _add(job + INSIDE, -1)
            continue
        looks += 1
        if looks < _IDLE_SPINS:
            pause()
            continue
        naps += 1
        if naps > _NAPS:
            return last
        _nap()
