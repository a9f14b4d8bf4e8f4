"""The back ends that the contract tests run against: to add one is one line here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from asgl.kernels.api import Kernels
from asgl.kernels.reference import ReferenceKernels


@dataclass(frozen=True)
class Backend:
    """`product` and `attention` are tolerances, relative and absolute, for values of size about
    1. Tests of frequencies draw `slowness` times fewer samples."""

    name: str
    make: Callable[[], Kernels]
    product: float
    attention: float
    slowness: int = 1


BACKENDS = [
    Backend("reference-float32", lambda: ReferenceKernels("cpu", torch.float32), 1e-5, 1e-5),
    Backend("reference-deterministic", lambda: ReferenceKernels(deterministic=True), 1e-5, 1e-5),
    Backend("reference-bfloat16", lambda: ReferenceKernels("cpu", torch.bfloat16), 1e-2, 1e-2),
]


def _cpu(**options: Any) -> Kernels:
    from asgl.kernels.cpu.kernels import CpuKernels

    return CpuKernels(**options)


BACKENDS += [
    Backend("cpu", lambda: _cpu(weights="auto"), 1e-2, 1e-2),
    Backend("cpu-deterministic", lambda: _cpu(weights="auto", deterministic=True), 1e-2, 1e-2),
]


# The Triton back end runs on GPUs (make gpu), and on CPUs in its interpreter, in a process of its
# own (make test-interpret).
_TRITON = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else os.environ.get("ASGL_TEST_GPU")
if _TRITON is not None:
    from tests.kernels.triton_backends import triton_backends

    slowness = 10 if _TRITON == "cpu" else 1
    BACKENDS = [Backend(*fields, slowness) for fields in triton_backends(_TRITON)]


@pytest.fixture(scope="session", params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="session")
def kernels(backend: Backend) -> Kernels:
    """Made once: some back ends compile."""
    return backend.make()
