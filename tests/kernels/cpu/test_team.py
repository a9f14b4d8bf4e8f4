"""Teams: every piece is done once, in the order of phases, whoever comes."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numba import cfunc, njit

from asgl.kernels.cpu import team
from asgl.kernels.cpu.compile import Entry
from asgl.kernels.cpu.entries import FIELDS
from asgl.kernels.cpu.simd import get_i64, get_shared, set_i64, set_shared
from asgl.kernels.cpu.threads import Team

PHASES, PIECES = 6, 40


@cfunc("void(int64, int64, int64)", error_model="numpy")
def count_pieces(record, thread, number):
    """record: [job, times each piece was done ..., pieces of the phase before that were missing
    when one began]."""
    job = get_i64(record)
    done, missing = record + 8, record + 8 + PHASES * PIECES * 8
    for phase in range(PHASES):
        for piece in team.pieces(job, phase, number, 3, PIECES):
            if phase > 0:
                for before in range(PIECES):
                    if get_i64(done + ((phase - 1) * PIECES + before) * 8) == 0:
                        set_i64(missing, get_i64(missing) + 1)
            at = done + (phase * PIECES + piece) * 8
            set_i64(at, get_i64(at) + 1)


@cfunc("void(int64, int64, int64)", error_model="numpy")
def one_piece_each(record, thread, number):
    """Two pieces, each of which waits until the other has begun: needs two threads. record: [job,
    begun, thread, thread]."""
    job = get_i64(record)
    for piece in team.pieces(job, 0, number, 1, 2):
        set_i64(record + 16 + piece * 8, thread)
        while get_i64(record + 16) < 0 or get_i64(record + 24) < 0:
            team.pause()


@cfunc("void(int64, int64, int64)", error_model="numpy")
def late(record, thread, number):
    """A helper stays until it is let go. record: [it is there, let go, what it found after
    that]."""
    if thread > 0:
        set_shared(record, 1)
        while get_shared(record + 8) == 0:
            team.pause()
        set_shared(record + 16, get_shared(record + 8))


@njit("int64(int64, int64, int64)", nogil=True)
def misses(address, value, stop):
    """How often another value than this one was seen at an address, until there is something at
    `stop`."""
    missed = 0
    while get_shared(stop) == 0:
        missed += get_shared(address) != value
    return missed


class Memory(dict[int, int]):
    """Words by address, for `launch` in plain Python; `watch` is called after each store."""

    def __init__(self, watch: Callable[[], None]) -> None:
        super().__init__()
        self.watch = watch

    def set(self, address: int, value: int) -> None:
        self[address] = value
        self.watch()


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("asgl-kernels-")]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_piece_is_done_once_and_after_the_phase_before(size: int) -> None:
    crew = Team(size, PHASES)
    for _ in range(300):
        record = np.zeros(2 + PHASES * PIECES, np.int64)
        crew.keep.append(record)
        record[0] = crew.address
        crew.run(count_pieces.address, record.ctypes.data, PHASES)
        assert (record[1:-1] == 1).all()
        assert record[-1] == 0


def test_threads_share_the_work() -> None:
    crew = Team(2, 1)
    record = np.array([crew.address, 0, -1, -1], np.int64)
    crew.run(one_piece_each.address, record.ctypes.data, 1)
    assert sorted(record[2:].tolist()) == [0, 1]


def test_helpers_end_with_their_team() -> None:
    before = set(helpers())
    crew = Team(3, 1)
    own = set(helpers()) - before
    assert len(own) == 2
    del crew
    gc.collect()
    for thread in own:
        thread.join(10)
        assert not thread.is_alive()


def test_a_job_needs_no_helper() -> None:
    """A helper that is still in a job of before is not waited for."""
    crew, stuck = Team(2, PHASES), np.zeros(3, np.int64)
    crew.keep.append(stuck)
    while not stuck[0]:  # a helper that was just going to sleep misses a job
        crew.run(late.address, stuck.ctypes.data, 0)
    record = np.zeros(2 + PHASES * PIECES, np.int64)
    crew.keep.append(record)
    record[0] = crew.address
    crew.run(count_pieces.address, record.ctypes.data, PHASES)
    assert (record[1:-1] == 1).all()
    stuck[1] = 1


def word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def log_softmax(crew: Team) -> Callable[[int], None]:
    """Calls an entry of its own with so many rows."""
    entry, x, out = Entry("log_softmax", crew, 1), torch.zeros(64, 64), torch.zeros(64, 64)

    def call(rows: int) -> None:
        entry(logits=x.data_ptr(), m=rows, n=64, out=out.data_ptr())

    call(4)
    return call


def test_a_late_helper_finds_the_team_while_the_next_call_is_written() -> None:
    """The arguments of an entry have one place, and a helper that lost its core reads there what is
    being written for the next call: other values are of no harm, but the address of the team must
    be there all the time."""
    crew, stop, missed = Team(2, 1), np.zeros(1, np.int64), []
    call = log_softmax(crew)
    job = word(crew.address + team.RECORD)
    watcher = threading.Thread(
        target=lambda: missed.append(misses(job, crew.address, stop.ctypes.data))
    )
    watcher.start()
    for _ in range(5000):
        call(1)
    stop[0] = 1
    watcher.join()
    assert missed == [0]


def test_a_call_leaves_the_last_ones_arguments_until_it_is_launched() -> None:
    """A helper of the last call, which had 4 rows, that read the next one's 64 would find pieces
    left to claim."""
    seen = []
    rows_at = FIELDS["log_softmax"].split().index("m") * 8

    class Watched(Team):
        def run(self, function: int, record: int, *rest: int) -> None:
            seen.append(word(record + rows_at))
            super().run(function, record, *rest)
            seen.append(word(record + rows_at))

    log_softmax(Watched(2, 1))(64)
    assert seen == [0, 4, 4, 64]


def test_at_no_moment_of_a_launch_a_late_helper_can_claim(monkeypatch) -> None:
    """Whichever store of `launch` is the last one that a helper of the job before sees."""
    job, record, values, phases = 0, 10_000, 20_000, 3
    moments = []

    def watch() -> None:
        for phase in range(phases):
            counter, count = (
                memory.get(job + team.FIRST + phase * team.PHASE, 0),
                memory.get(record + 8, 0),
            )
            moments.append(counter >> 24 != 1 or counter & 0xFFFFFF >= count)

    def work(function: int, at: int, thread: int, number: int) -> None:
        for phase in range(phases):
            for place in (0, 64):
                memory[job + team.FIRST + phase * team.PHASE + place] += memory[record + 8]

    memory = Memory(watch)
    monkeypatch.setattr(team, "get_i64", lambda address: memory.get(address, 0))
    monkeypatch.setattr(team, "set_shared", memory.set)
    monkeypatch.setattr(team, "call", work)
    for rows in (4, 64):
        memory.update({values: job, values + 8: rows})
        moments.clear()
        team.launch(job, 1, record, phases, values, 2)
    assert moments
    assert all(moments)


def test_a_team_is_idle_when_no_helper_is_inside_a_job() -> None:
    """Until then what earlier jobs read must stay, though the jobs are over."""
    crew, stuck = Team(2, PHASES), np.zeros(3, np.int64)
    crew.keep.append(stuck)
    while not stuck[0]:  # a helper that was just going to sleep misses a job
        crew.run(late.address, stuck.ctypes.data, 0)
    assert not crew.idle
    stuck[1] = 1
    while not stuck[2]:
        time.sleep(0)
    deadline = time.monotonic() + 10
    while not crew.idle and time.monotonic() < deadline:
        time.sleep(0)
    assert crew.idle


def test_what_a_job_reads_outlives_the_team() -> None:
    """Where a helper is late, its job is done without it, and team and arguments may be gone before
    it leaves the job."""
    before = set(helpers())
    crew, record = Team(2, 1), np.zeros(3, np.int64)
    (helper,) = set(helpers()) - before
    crew.keep.append(record)
    while not record[0]:  # a helper that was just going to sleep misses a job
        crew.run(late.address, record.ctypes.data, 0)
    kept = weakref.ref(record)
    del crew, record
    gc.collect()
    assert kept() is not None
    kept()[1] = 7
    helper.join(10)
    assert not helper.is_alive()
    gc.collect()
    assert kept() is None
