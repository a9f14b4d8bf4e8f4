"""What the threads of this process may use, and what slows a parallel region down: looked at once, when kernels are made."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: its affinity, and the quota of its control group (version 2), rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    if quota == "max":
        return allowed
    return max(1, min(allowed, math.ceil(int(quota) / int(period))))


def runtimes(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """The OpenMP runtimes loaded into this process, by path; empty where that cannot be seen."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    names = ("libgomp", "libiomp5", "libomp.")
    return sorted(path for path in paths if os.path.basename(path).startswith(names))


def problems(threads: int, *, allowed: int, loaded: list[str]) -> list[str]:
    """What to tell the user: each is a sentence with its remedy."""
    found: list[str] = []
    if threads > allowed:
        found.append(
            f"{threads} OpenMP threads share {allowed} cores, so that threads wait for each other while none runs; "
            f"set OMP_NUM_THREADS={allowed} before Python starts"
        )
    if len(loaded) > 1:
        found.append(
            "several OpenMP runtimes are loaded (" + ", ".join(loaded) + "); the threads of each take the cores of the "
            "others: import torch before anything else, and unload what brings the other one"
        )
    return found


def torch_came_first() -> bool:
    """Whether numba's OpenMP layer, if it is loaded at all, was loaded after torch's."""
    return "torch" in sys.modules
