"""How many cores this process may use, and what else may spin on them."""

from __future__ import annotations

import math
import os
import re
import warnings
from pathlib import Path


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that the affinity of this process allows, or the quota of its control group
    (version 2), rounded up."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):  # no Linux, no such group, or version 1
        return allowed
    if quota == "max":
        return allowed
    return max(1, min(allowed, math.ceil(int(quota) / int(period))))


_OWN = ("/torch/lib/", "/sentencepiece.libs/")
"""Where asgl's own dependencies have their OpenMP runtimes; the second's is only used for
training."""


def warn_of_spinning_threads(
    threads: int, allowed: int, maps: Path = Path("/proc/self/maps")
) -> None:
    """Warns, with the remedy, of OpenMP threads that would take turns on these cores with the
    kernels' own.

    `threads` is how many torch uses, `allowed` the cores there are. OpenMP threads spin between
    regions: more of them than cores, or those of two runtimes, keep each other waiting.
    """
    if threads > allowed:
        warnings.warn(
            f"torch uses {threads} threads where this process may use {allowed} cores, and they "
            f"would keep each other waiting: set OMP_NUM_THREADS={allowed} before Python starts",
            RuntimeWarning,
            stacklevel=2,
        )
    try:
        loaded = set(
            re.findall(r"(/\S*/lib(?:g|i)?omp\d?[-.]\S*)", maps.read_text(errors="replace"))
        )
    except OSError:  # no Linux
        return
    others = sorted(
        Path(path).name for path in loaded if not any(folder in path for folder in _OWN)
    )
    if others:
        warnings.warn(
            f"another OpenMP runtime than torch's is loaded ({', '.join(others)}), and the threads "
            "of one spin on the cores of the other: set OMP_WAIT_POLICY=passive before Python "
            "starts, or do without it",
            RuntimeWarning,
            stacklevel=2,
        )
