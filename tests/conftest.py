"""Keeps kernels on one thread in parallel workers, what property tests draw the same from run to
run, and Ctrl-C working."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

soak = int(
    os.environ.get("ASGL_SOAK", "1")
)  # how many times longer property tests run, then with random examples: `make soak`
settings.register_profile("asgl", deadline=None, derandomize=soak == 1, max_examples=100 * soak)
settings.load_profile("asgl")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell lets what it runs in the background ignore it
