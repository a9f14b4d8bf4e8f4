"""What each phase of a decode step takes, and what it reads a second: where a batch of few rows
loses to reading the weights once.

    python bench/kernels.py --part phases

A phase is recorded alone, once for each layer, and run as one job; so its line has its share of
claiming and waiting, and its weights come from memory. The last lines have the whole step, and what
it takes beyond reading its weights at the rate that torch reads memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asgl.kernels.api import Attending, Batch, Rotation
from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.cpu.linear import WHOLE, described_bytes
from asgl.kernels.cpu.recorder import Value


class Shape(NamedTuple):
    """A model: `layers` as many as make it read from memory, no more."""

    layers: int
    d: int
    f: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 64, 49152),
    "Llama of 1B": Shape(8, 2048, 8192, 32, 8, 64, 49152),
}


def phases(
    kernels: CpuKernels,
    times: Callable[[Callable[[], object]], float],
    read: float,
    quantized: Callable[[int, int, int], Any],
    batch_of_rows: Callable[[int], Batch],
    rows: tuple[int, ...] = (1, 4, 8, 32),
) -> None:
    """Prints the table. times: the least seconds of a call. read: bytes a second. quantized: a
    matrix (n, k, bits). batch_of_rows: that many decode rows of 256 positions."""
    for name, shape in SHAPES.items():
        print(f"\n{name}: microseconds a layer (GB/s), by rows {', '.join(map(str, rows))}")
        model = _Model(kernels, shape, quantized)
        for phase, forward in model.phases.items():
            model.line(phase, forward, model.bytes.get(phase, 0), rows, times, batch_of_rows)
        whole = sum(model.bytes.values())
        model.line("the whole layer", model.layer, whole, rows, times, batch_of_rows)
        print(f"{'reading its weights':24}{whole / read * 1e6:10.1f} ({read / 1e9:5.1f})")
        size, cells = model.head.parts[0].memory.nbytes, ""
        for n in rows:
            x = torch.randn(n, shape.d)
            least = times(functools.partial(kernels.head, x, model.head))
            cells += f"{least * 1e6:10.1f} ({size / least / 1e9:5.1f})"
        print(f"{'head':24}{cells}", flush=True)


class _Model:
    """Layers of Q4_0, and a head of Q8_0."""

    def __init__(
        self, kernels: CpuKernels, shape: Shape, quantized: Callable[[int, int, int], Any]
    ) -> None:
        self.kernels, self.shape = kernels, shape
        d, f, width = shape.d, shape.f, shape.heads * shape.head_dim
        qkv_width = width + 2 * shape.kv_heads * shape.head_dim
        self.weights = [
            {
                "qkv": kernels.pack_linear(quantized(qkv_width, d, 4)),
                "o": kernels.pack_linear(quantized(d, width, 4)),
                "gate_up": kernels.pack_linear(quantized(2 * f, d, 4)),
                "down": kernels.pack_linear(quantized(d, f, 4)),
            }
            for _ in range(shape.layers)
        ]
        self.head = kernels.pack_head(quantized(shape.vocabulary, d, 8))
        self.bytes = {
            name: weight.parts[0].memory.nbytes for name, weight in self.weights[0].items()
        }
        self.ones = torch.ones(d)
        self.rotation = Rotation(shape.kv_heads, shape.head_dim, torch.randn(300, shape.head_dim))
        self.phases: dict[str, Callable[[Any, int], object]] = {
            "norm": lambda verbs, i: verbs.norm(self.ones),
            "describe": self._describe,
            "qkv": lambda verbs, i: self._product(verbs, i, "qkv", d),
            "rotate and store": lambda verbs, i: self._rotate(verbs, i, qkv_width),
            "attention": lambda verbs, i: self._attention(verbs, i, width),
            "o": lambda verbs, i: verbs.add(verbs.value("x", width), self.weights[i]["o"]),
            "gate_up": lambda verbs, i: verbs.gated(
                verbs.value("x", d), self.weights[i]["gate_up"], "silu"
            ),
            "down": lambda verbs, i: verbs.add(verbs.value("x", f), self.weights[i]["down"]),
        }

    def _describe(self, verbs: Any, i: int) -> None:
        d = self.shape.d
        size = described_bytes(WHOLE, d)
        out = verbs.value("described", size, 1)
        verbs.write(
            "describe", verbs.value("x", d).register, out, k=d, kind=WHOLE, size=size, times=1
        )

    def _product(self, verbs: Any, i: int, name: str, k: int) -> None:
        verbs.linear(verbs.value("x", k), self.weights[i][name])

    def _rotate(self, verbs: Any, i: int, width: int) -> Value:
        verbs.start_layer(i)
        return verbs.rotate_and_store(verbs.value("product", width), self.rotation)

    def _attention(self, verbs: Any, i: int, width: int) -> Value:
        verbs.start_layer(i)
        verbs.heads = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        return verbs.attention(verbs.value("queries", width), self._attending)

    @property
    def _attending(self) -> Attending:
        return Attending(self.shape.head_dim**-0.5)

    def layer(self, verbs: Any, i: int) -> None:
        """A layer as a model has it."""
        own = self.weights[i]
        verbs.start_layer(i)
        q = verbs.rotate_and_store(verbs.linear(verbs.norm(self.ones), own["qkv"]), self.rotation)
        verbs.add(verbs.attention(q, self._attending), own["o"])
        verbs.add(verbs.gated(verbs.norm(self.ones), own["gate_up"], "silu"), own["down"])

    def line(
        self, name: str, phase: Callable[[Any, int], object], size: int, rows: tuple[int, ...],
        times: Callable[[Callable[[], object]], float], batch_of_rows: Callable[[int], Batch],
    ) -> None:  # fmt: skip
        """Prints what the phase takes a layer."""
        shape, cells = self.shape, ""

        def forward(verbs: Any) -> Value:
            result = Value(verbs.hidden, shape.d)
            for i in range(shape.layers):
                phase(verbs, i)
            return result

        recorded = self.kernels.record(forward, shape.d, 1e-5)
        assert recorded is not None
        for n in rows:
            batch = batch_of_rows(n)
            slots = int(batch.kv_indices.max()) + 1
            caches = [self._cache(slots) for _ in range(shape.layers)]
            hidden = torch.randn(n, shape.d)
            least = times(
                lambda b=batch, h=hidden, c=caches: self.kernels.run(recorded, h, b, c, None)
            )
            least /= shape.layers
            rate = f"({size / least / 1e9:5.1f})" if size else ""
            cells += f"{least * 1e6:10.1f} {rate:7}"
        print(f"{name:24}{cells}", flush=True)

    def _cache(self, slots: int) -> tuple[Tensor, Tensor]:
        shape = (slots, self.shape.kv_heads, self.shape.head_dim)
        return tuple(torch.randn(shape).bfloat16() for _ in range(2))  # type: ignore[return-value]
