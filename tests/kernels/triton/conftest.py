"""Runs kernels in Triton's interpreter: in a process of its own (make test-interpret): importing
triton decides it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob: list[str] = []

    from tests.kernels.triton.access import Monitor

    @pytest.fixture
    def monitor() -> Iterator[Monitor]:
        """Watches every access of every launch in the test."""
        with Monitor() as monitor:
            yield monitor

    @pytest.fixture
    def poisoned() -> Iterator[None]:
        """Memory that is allocated holds NaN until it is written."""
        import torch

        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        assert torch.empty(3).isnan().all()
        assert torch.ones(1).new_empty(3).isnan().all()
        yield
        torch.use_deterministic_algorithms(False)

else:
    collect_ignore_glob = ["*"]
