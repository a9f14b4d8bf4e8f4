"""Memory of the CPU in large pages.

Where keys and values of scattered tokens, or the weights of a model, are read from memory, each
page of 4 KiB costs a walk of the page table, as long as the read itself. Linux gives pages of 2 MiB
to memory that asks before it is first written, and that is at least so large: so the matrices of a
model share blocks. Elsewhere they do too, in pages as they are.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_BLOCK = 32 * 2**20
_LINE = 64


def large_pages(size: int) -> Tensor:
    """uint8 [size], zeros, which the system is asked to back by large pages. Nothing is taken from
    it before it is written."""
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(
            OSError
        ):  # a system without them: pages are then as they would have been
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]  # which keeps the mapping


class Arena:
    """Hands out pieces of large blocks. A block is freed once no tensor of it is left."""

    def __init__(self) -> None:
        self._block = large_pages(0)
        self._used = 0

    def take(self, size: int) -> Tensor:
        """uint8 [size], zeros, which begin at a cache line."""
        start = -(-self._used // _LINE) * _LINE
        if start + size > len(self._block):
            self._block, start = large_pages(max(size, _BLOCK)), 0
        self._used = start + size
        return self._block[start : self._used]
