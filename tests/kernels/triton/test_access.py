"""The monitor sees what it is for: each of these kernels does one thing wrong."""

import pytest
import torch
import triton
import triton.language as tl
from tests.kernels.triton.access import AccessError, Monitor
from triton.runtime.errors import InterpreterError

pytestmark = pytest.mark.interpret


@triton.jit
def _copy(source, target, count, SKIP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * (BLOCK - SKIP) + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < count), mask=at < count)


def _run(count: int, *, length: int = 10, skip: int = 0) -> list[str]:
    """What the monitor says of a copy of `count` elements in blocks of 4 that overlap by `skip`."""
    source, target = torch.arange(length), torch.zeros(length, dtype=torch.int64)
    with Monitor() as monitor:
        try:
            _copy[(3,)](source, target, count, SKIP=skip, BLOCK=4)
        except (InterpreterError, AccessError) as error:
            return [str(error)]
    assert monitor.launches[0].read == {"source": 8 * min(count, 12)}
    assert monitor.launches[0].written == {"target": 8 * min(count, 12)}
    assert torch.equal(source, target)
    return []


def test_sound() -> None:
    assert _run(10) == []


def test_one_element_out_of_bounds() -> None:
    (message,) = _run(11)
    assert "_copy reads bytes 64:88 of source, which has 80" in message


@triton.jit
def _copy_all(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


def test_accesses_without_a_mask_are_seen() -> None:
    for lengths, message in (
        ((3, 4), "reads bytes 0:32 of source, which has 24"),
        ((4, 3), "writes bytes 0:32 of target, which has 24"),
    ):
        source, target = (torch.zeros(length, dtype=torch.int64) for length in lengths)
        with Monitor(), pytest.raises((InterpreterError, AccessError), match=message):
            _copy_all[(1,)](source, target, BLOCK=4)


def test_two_programs_that_write_one_element() -> None:
    (message,) = _run(10, skip=1)
    assert "two programs of _copy write one element of target" in message


def test_a_program_that_reads_what_another_writes() -> None:
    values = torch.arange(12)
    with Monitor(), pytest.raises(AccessError, match="reads an element of"):
        _copy[(3,)](values[1:], values[:-1], 11, SKIP=0, BLOCK=4)


def test_nothing_is_watched_afterwards() -> None:
    monitor = Monitor()
    with monitor:
        pass
    _copy[(1,)](torch.arange(4), torch.arange(4), 4, SKIP=0, BLOCK=4)
    assert monitor.launches == []
