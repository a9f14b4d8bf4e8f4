"""Keeps kernels on one thread in parallel workers, and the examples of property tests the same from run to run."""

from __future__ import annotations

import os

from hypothesis import settings

soak = int(os.environ.get("ASGL_SOAK", "1"))  # how many times longer property tests run, then with random examples: `make soak`
settings.register_profile("asgl", deadline=None, derandomize=soak == 1, max_examples=100 * soak)
settings.load_profile("asgl")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
