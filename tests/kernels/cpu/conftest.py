"""Kernels for the CPU kernels' own tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asgl.kernels.cpu.kernels import CpuKernels


@pytest.fixture(scope="session")
def make() -> Callable[..., CpuKernels]:
    """CpuKernels with these options, made once."""
    made: dict[tuple[tuple[str, object], ...], CpuKernels] = {}

    def kernels(**options: object) -> CpuKernels:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = CpuKernels(**options)  # type: ignore[arg-type]
        return made[key]

    return kernels
