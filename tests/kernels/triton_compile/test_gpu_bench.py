"""bench/gpu.py and bench/roofline.py run: their launches compile, and their numbers add up. Nothing
is measured here."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from steps import MemoryCheckpoint
from tests.kernels.triton_compile.fake_driver import fake_driver

from asgl.execution import cuda_runner
from asgl.kernels.triton import kernels as backend

pytestmark = [pytest.mark.compile, pytest.mark.timeout(300)]
BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    return importlib.import_module("gpu")


def test_every_kernel_is_launched_and_tabled(gpu: Any) -> None:
    driver = fake_driver("sm_90")
    driver.activate()
    driver.launches.clear()
    kernels = backend.TritonKernels("cpu", torch.bfloat16, target=driver.target)

    def timer(call: Any) -> float:
        call()
        return 2.0

    lines = gpu.kernel_table(kernels, "smollm2-135m", timer)
    assert [launch.name for launch in driver.launches] == [
        "add_rms_norm_kernel",
        "rope_and_store_kernel",
        "extend_kernel",
        "extend_kernel",
        "decode_kernel",
        "decode_kernel",
        "merge_kernel",
        "decode_kernel",
        "span_kernel",
        "merge_kernel",
        "silu_and_mul_kernel",
        "head_kernel",
        "sample_kernel",
        "sample_kernel",
    ]
    assert "| add_rms_norm | 2048 tokens | 2000.0 | 7 | 0.00 |" in lines  # 14 MB in 2 ms


def test_decode_steps_are_tabled(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake_driver("sm_90")
    driver.activate()

    class Kernels(backend.TritonKernels):
        def __init__(self, device: str, dtype: torch.dtype) -> None:
            super().__init__("cpu", dtype, target=driver.target)

        def sample(self, logits: torch.Tensor, how: Any) -> torch.Tensor:
            return torch.zeros(len(logits), dtype=torch.int64)

    real = cuda_runner.CudaRunner
    checkpoint = MemoryCheckpoint()
    checkpoint.config = replace(checkpoint.config, context_length=600)
    monkeypatch.setattr(gpu, "random_checkpoint", lambda: checkpoint)
    monkeypatch.setattr(backend, "TritonKernels", Kernels)

    def make(*args: Any, **options: Any) -> Any:
        return real(*args, **{**options, "buckets": (), "cuda": FakeCuda()})

    monkeypatch.setattr(cuda_runner, "CudaRunner", make)
    lines = gpu.step_table("cpu", steps=2)
    assert [line.split("|")[1].strip() for line in lines[-4:]] == ["1", "4", "16", "64"]


def test_the_roofline_finds_the_loop_that_works() -> None:
    sys.path.insert(0, str(BENCH))
    try:
        roofline = importlib.import_module("roofline")
    finally:
        sys.path.remove(str(BENCH))
    loop = [
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "HMMA.16816.F32 R8, R4, R6, R8",
        "FADD R1, R2, R3",
        "@P0 BRA `(.L_x_2)",
    ]
    listing = [
        ".L_x_1:",
        "MOV R1, R2",
        ".L_x_2:",
        *loop,
        "@P1 BRA `(.L_x_1)",
        "EXIT",
        ".L_x_3:",
        "BRA `(.L_x_3)",
    ]
    assert roofline.hot_loop(listing) == loop
    assert roofline.census(loop) == "1 product, 1 global, 1 float, 1 other"
    assert roofline.hot_loop(listing[-3:]) == []
    h100 = roofline.DEVICES[0]
    decode = next(it for it in roofline.work(roofline.MODELS["llama-3-8b"]) if it.case == "decode")
    # 64 contexts of 2,048 tokens of 4,096 bytes, and little else, at 3.35 TB/s
    assert decode.moved == 64 * 2048 * 4096 + 2 * 64 * 4096 * 2
    assert roofline.bound(h100, decode) == (pytest.approx(160.6e-6, rel=1e-3), "memory")
