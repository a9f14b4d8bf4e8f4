"""The Triton back end in its data types, for the contract tests. Imports triton: only where it is
asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from asgl.kernels.triton.kernels import TritonKernels, interpreting

if interpreting():
    from tests.kernels.triton_bfloat16 import repair

    repair()


def triton_backends(device: str) -> list[tuple[str, Callable[[], TritonKernels], float, float]]:
    """(name, make, tolerance of products, tolerance of attention) of each data type."""
    return [
        ("triton-float32", partial(TritonKernels, device, torch.float32), 1e-5, 1e-5),
        ("triton-float16", partial(TritonKernels, device, torch.float16), 2e-3, 2e-3),
        ("triton-bfloat16", partial(TritonKernels, device, torch.bfloat16), 1e-2, 1e-2),
    ]
