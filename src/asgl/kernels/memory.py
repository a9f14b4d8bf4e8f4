"""Large pages for large tensors on the CPU."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from torch import Tensor


def use_large_pages(tensor: Tensor) -> Tensor:
    """Asks the system to back a CPU tensor by large pages, before it is written for the first time. Returns the tensor.

    Where keys and values of scattered tokens, or the weights of a model, are read from memory, each page of 4 KiB costs a walk of
    the page table, as long as the read itself. Linux gives pages of 2 MiB to memory that asks; elsewhere this does nothing.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    madvise = _madvise()
    if advice is None or madvise is None or tensor.device.type != "cpu":
        return tensor
    page = mmap.PAGESIZE
    first = (tensor.data_ptr() + page - 1) // page * page
    last = (tensor.data_ptr() + tensor.nbytes) // page * page
    if last > first:
        madvise(first, last - first, advice)  # it may refuse: pages are then as they would have been
    return tensor


def _madvise() -> Any:
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no program to look symbols up in
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
