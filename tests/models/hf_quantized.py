"""Matrices as the packers of Hugging Face directories write them, each by its definition, one
number at a time; and the tiny model with all matrices of its layers so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tiny import tiny_config, tiny_directory, tiny_weights

Packed = tuple[dict[str, Tensor], Tensor]
"""The tensors by the ends of their names, and the float32 matrix that they stand for."""
Packer = Callable[[Tensor, torch.Generator], Packed]

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def words(values: Tensor, bits: int) -> Tensor:
    """int32 [rows, columns * bits / 32]: each row's numbers as digits of one large integer."""
    rows: list[np.ndarray] = []
    for row in values.tolist():
        number = sum(value << (bits * at) for at, value in enumerate(row))
        size = -(-len(row) * bits // 32) * 4
        rows.append(np.frombuffer(number.to_bytes(size, "little"), "<i4"))
    return torch.from_numpy(np.stack(rows).copy())


def rounded(
    weight: Tensor, bits: int, group: int, symmetric: bool, order: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """quants [n, k], float16 scales and zero points [n, groups], and the matrix they stand for.
    Weight j is in group order[j]."""
    n, k = weight.shape
    order = torch.arange(k) // group if order is None else order
    groups = k // group
    scale, zero = torch.empty(n, groups), torch.empty(n, groups, dtype=torch.int32)
    quants, value = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k)
    top = 2**bits - 1
    for g in range(groups):
        part = weight[:, order == g]
        low, high = part.amin(dim=1).clamp_max(-1e-3), part.amax(dim=1).clamp_min(1e-3)
        if symmetric:
            high = torch.maximum(high, -low)
            low = -high
        scale[:, g] = ((high - low) / top).half().float()
        zero[:, g] = (top + 1) // 2 if symmetric else (-low / scale[:, g]).round().clamp(1, top)
        at = (part / scale[:, g, None]).round() + zero[:, g, None]
        quants[:, order == g] = at.clamp(0, top).int()
        value[:, order == g] = (
            scale[:, g, None] * (quants[:, order == g] - zero[:, g, None]).float()
        )
    return quants, scale, zero, value


def gptq(
    bits: int = 4, group: int = 32, symmetric: bool = True, act_order: bool = False, first: int = 1
) -> Packer:
    def pack(weight: Tensor, generator: torch.Generator) -> Packed:
        k = weight.shape[1]
        order = torch.arange(k) // group
        if act_order:
            order = order[torch.randperm(k, generator=generator)]
        quants, scale, zero, value = rounded(weight, bits, group, symmetric, order)
        return {
            "qweight": words(quants, bits).T.contiguous(),
            "qzeros": words(zero.T - first, bits),
            "scales": scale.T.half().contiguous(),
            "g_idx": order.int(),
            "bias": torch.zeros(len(weight), dtype=torch.float16),
        }, value

    return pack


def awq(group: int = 32) -> Packer:
    def interleaved(columns: Tensor) -> Tensor:
        order = [at + i for at in range(0, columns.shape[1], 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)]
        return words(columns[:, order], 4)

    def pack(weight: Tensor, generator: torch.Generator) -> Packed:
        quants, scale, zero, value = rounded(weight, 4, group, symmetric=False)
        return {
            "qweight": interleaved(quants.T),
            "qzeros": interleaved(zero.T),
            "scales": scale.T.half().contiguous(),
        }, value

    return pack


def float8(scale: str, block: tuple[int, int] = (0, 0), name: str = "weight_scale_inv") -> Packer:
    """scale: "tensor", "row" or "block"."""

    def pack(weight: Tensor, generator: torch.Generator) -> Packed:
        n, k = weight.shape
        rows, columns = {"tensor": (n, k), "row": (1, k), "block": block}[scale]
        scales = torch.empty(-(-n // rows), -(-k // columns))
        value, quants = torch.empty(n, k), torch.empty(n, k, dtype=torch.float8_e4m3fn)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                at = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                scales[i, j] = weight[at].abs().max() / 448
                quants[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
                value[at] = quants[at].float() * scales[i, j]
        stored = scales[0, 0] if scale == "tensor" else scales
        return {"weight": quants, name: stored, "input_scale": torch.tensor(3.0)}, value

    return pack


def compressed(
    bits: int = 4, group: int | None = 32, symmetric: bool = True, act_order: bool = False
) -> Packer:
    """pack-quantized."""

    def pack(weight: Tensor, generator: torch.Generator) -> Packed:
        n, k = weight.shape
        order = torch.arange(k) // (group or k)
        if act_order:
            order = order[torch.randperm(k, generator=generator)]
        quants, scale, zero, value = rounded(weight, bits, group or k, symmetric, order)
        parts = {
            "weight_packed": words(quants, bits),
            "weight_scale": scale.half(),
            "weight_shape": torch.tensor([n, k]),
        }
        if not symmetric:
            parts["weight_zero_point"] = words(zero.T, bits).T.contiguous()
        if act_order:
            parts["weight_g_idx"] = order.int()
        return parts, value

    return pack


def int8(symmetric: bool = True) -> Packer:
    """int-quantized, a scale for each row."""

    def pack(weight: Tensor, generator: torch.Generator) -> Packed:
        quants, scale, zero, value = rounded(weight, 8, weight.shape[1], symmetric)
        parts = {"weight": (quants - 128).to(torch.int8), "weight_scale": scale}
        if not symmetric:
            parts["weight_zero_point"] = (zero - 128).to(torch.int8)
        return parts, value

    return pack


def mxfp4(weight: Tensor) -> Packed:
    """Blocks of 32 numbers of 4 bits, of a stack of matrices [e, n, k]."""
    e, n, k = weight.shape
    levels = torch.tensor([*LEVELS, *(-level for level in LEVELS)])
    blocks = weight.view(e, n, k // 32, 32)
    exponent = (blocks.abs().amax(dim=3) / 6).log2().ceil()
    scale = torch.exp2(exponent)[..., None]
    quants = (blocks[..., None] / scale[..., None] - levels).abs().argmin(dim=-1)
    packed = (quants[..., 0::2] | quants[..., 1::2] << 4).byte()
    value = (levels[quants] * scale).view(e, n, k)
    return {"blocks": packed, "scales": (exponent + 127).byte()}, value


def quantized_directory(
    path: Path, settings: Mapping[str, Any], packer: Packer, **overrides: Any
) -> dict[str, Tensor]:
    """Writes the tiny model into the directory with all matrices of its layers packed, and
    quantization_config as given. Returns the numbers they stand for, by their names."""
    config = {**tiny_config(**overrides), "quantization_config": dict(settings)}
    tiny_directory(path, **overrides)
    generator = torch.Generator().manual_seed(1)
    stored: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for name, weight in tiny_weights(config).items():
        if "_proj.weight" not in name:
            stored[name] = weight
            continue
        parts, expected[name] = packer(weight, generator)
        stored |= {name.removesuffix("weight") + end: part for end, part in parts.items()}
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return expected
