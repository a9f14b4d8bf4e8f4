"""The repair of bfloat16 in the interpreter, and the canary that says when it is no longer
needed."""

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from tests.kernels.triton_bfloat16 import repair, to_bits, to_float32

pytestmark = pytest.mark.interpret
repair()


@triton.jit
def _arithmetic(a, b, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(out + at, x * y + x)
    tl.store(out + BLOCK + at, tl.maximum(x, y))
    tl.store(out + 2 * BLOCK + at, -x)
    tl.store(out + 3 * BLOCK + at, (x.to(tl.float32) * 1.001).to(tl.bfloat16))
    tl.store(out + 4 * BLOCK + at, tl.where(x < y, x, y))


@triton.jit
def _product(a, b, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def _numbers(seed: int) -> torch.Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_arithmetic_is_torchs() -> None:
    a, b, out = _numbers(1), _numbers(2), torch.empty(5, 64, dtype=torch.bfloat16)
    _arithmetic[(1,)](a, b, out, BLOCK=64)
    # each operation rounds by itself
    assert torch.equal(out[0], a * b + a)
    assert torch.equal(out[1], torch.maximum(a, b))
    assert torch.equal(out[2], -a)
    assert torch.equal(out[3], (a.float() * 1.001).bfloat16())
    assert torch.equal(out[4], torch.minimum(a, b))


def test_products_are_float32() -> None:
    a, b = (
        torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).bfloat16()
        for seed in (3, 4)
    )
    out = torch.empty(16, 16)
    _product[(1,)](a, b, out, BLOCK=16)
    torch.testing.assert_close(out, a.float() @ b.float())


def test_casts_are_torchs() -> None:
    numbers = torch.cat(
        (
            torch.randn(1000, generator=torch.Generator().manual_seed(5)) * 1e3,
            torch.tensor(
                [
                    0.0,
                    -0.0,
                    1e-40,
                    -1e-40,
                    3.3895e38,
                    3.4e38,
                    torch.inf,
                    -torch.inf,
                    1.00390625,
                    1.01171875,
                ]
            ),
        )
    )
    expected = numbers.bfloat16()
    assert to_bits(numbers.numpy()).tolist() == expected.view(torch.uint16).tolist()
    assert to_float32(expected.view(torch.uint16).numpy()).tolist() == expected.float().tolist()
    assert (
        torch.tensor(to_bits(torch.tensor([torch.nan]).numpy())).view(torch.bfloat16).isnan().all()
    )


def test_canary(tmp_path) -> None:
    """Without the repair, the interpreter is wrong. When this fails, Triton has been mended: delete
    triton_bfloat16.py."""
    script = tmp_path / "canary.py"
    script.write_text(
        "import torch, triton\nimport triton.language as tl\n"
        "@triton.jit\n"
        "def double(a, out):\n"
        "    at = tl.arange(0, 4)\n"
        "    x = tl.load(a + at)\n"
        "    tl.store(out + at, x + x)\n"
        "@triton.jit\n"
        "def narrow(a, out):\n"
        "    at = tl.arange(0, 4)\n"
        "    tl.store(out + at, tl.load(a + at).to(tl.bfloat16))\n"
        "x = torch.tensor([1.0, 2.0, 3.0, 4.0])\n"
        "y = torch.tensor([1.01171875] * 4)\n"  # rounds up to 1.015625, and is cut to 1.0078125
        "sums, cut = torch.empty(2, 4, dtype=torch.bfloat16)\n"
        "double[(1,)](x.bfloat16(), sums)\n"
        "narrow[(1,)](y, cut)\n"
        "print('sums', torch.equal(sums, 2 * x.bfloat16()), 'casts', torch.equal(cut, "
        "y.bfloat16()))\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.split() == ["sums", "False", "casts", "False"]
