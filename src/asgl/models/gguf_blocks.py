"""The tensor types of GGUF files: how their blocks hold scales and quants.

A block of `elements` neighbours in a row is `bytes` bytes: numbers for scales and offsets, and the
quants in *planes*. A plane has some bits of every element, in runs of `width` bytes. The lowest
bits of a run's bytes belong to its first `width` elements, the next bits to the next ones:

    width 2, bits 4:    byte 0 = element 2 | element 0        byte 1 = element 3 | element 1

The layouts are those of ggml's `ggml-common.h`, and the numbers those of its `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from asgl.kernels.quantized import E2M1, QuantFormat, QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

Scales = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
"""From blocks, uint8 [n, bytes], to float32 scales and offsets [n, groups]."""

_CACHED = 2**18
"""So many elements are unpacked at once: what is read and written stays in the CPU's cache."""
_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
"""The eight bits of each byte, lowest first, one a byte."""


class Plane(NamedTuple):
    """Of a block's bytes, `bytes` from `at` on: `bits` bits of each element, from its bit `to` on.
    `width` is 1, with one bit, or a multiple of 8."""

    at: int
    bytes: int
    width: int
    bits: int
    to: int = 0


@dataclass(frozen=True, slots=True)
class DenseType:
    """Each element is a number of `bytes` bytes."""

    name: str
    bytes: int
    dtype: str
    elements: int = 1

    def read(self, raw: memoryview, shape: tuple[int, ...]) -> Tensor:
        """A copy of a tensor whose bytes are `raw`."""
        import torch  # only here: who lists models should not wait for torch

        data = np.frombuffer(raw, np.uint8)
        return torch.from_numpy(data.copy()).view(getattr(torch, self.dtype)).view(shape)


@dataclass(frozen=True, slots=True)
class BlockType:
    """`elements` consecutive elements of a row are stored in `bytes` bytes: quants in `planes`,
    whose scales and offsets `scales` computes.

    signed: the quants are stored as two's complement, and read with 128 added.
    """

    name: str
    elements: int
    bytes: int
    format: QuantFormat
    planes: tuple[Plane, ...]
    scales: Scales
    signed: bool = False

    def read(self, raw: memoryview, shape: tuple[int, ...]) -> QuantizedTensor:
        """A copy of a tensor whose bytes are `raw`: a matrix of the last dimension as columns and
        all others as rows."""
        import torch  # only here: as above

        blocks = np.frombuffer(raw, np.uint8).reshape(-1, self.bytes)
        columns = shape[-1]
        bits, group, zero, codebook, _ = self.format
        with np.errstate(invalid="ignore"):  # infinite scales of damaged files, times zero
            scale, offset = self.scales(blocks)
        return QuantizedTensor(
            quants=torch.from_numpy(self._quants(blocks)).view(-1, columns),
            scale=torch.from_numpy(scale).view(-1, columns // group),
            offset=None if offset is None else torch.from_numpy(offset).view(-1, columns // group),
            bits=bits,
            group=group,
            zero=zero,
            codebook=codebook,
        )

    def _quants(self, blocks: np.ndarray) -> np.ndarray:
        """uint8 [n, elements]."""
        quants = np.empty((len(blocks), self.elements), np.uint8)
        step = max(1, _CACHED // self.elements)
        for begin in range(0, len(blocks), step):
            part = quants[begin : begin + step]
            for plane in self.planes:
                _unpack(blocks[begin : begin + step], plane, part)
            if self.signed:
                part ^= 0x80
        return quants


def _unpack(blocks: np.ndarray, plane: Plane, quants: np.ndarray) -> None:
    """Writes the plane's bits of each element into `quants`: over what was there if they are the
    lowest, else beside it.

    Works on eight bytes of all blocks at a time: numpy's cost is per inner loop, and a block is too
    short for one.
    """
    words = quants.view("<u8")
    if plane.width == 1:
        table = (_SPREAD << plane.to).view("<u8")[:, 0]
        for byte in range(plane.bytes):
            words[:, byte] |= table[blocks[:, plane.at + byte]]
        return
    mask = np.uint64(int.from_bytes(bytes([((1 << plane.bits) - 1) << plane.to] * 8), "little"))
    column = np.empty(len(blocks), np.uint64)
    for byte in range(0, plane.bytes, 8):
        at = plane.at + byte
        packed = np.ascontiguousarray(blocks[:, at : at + 8]).view("<u8")[:, 0]
        run, within = divmod(byte, plane.width)
        first = run * plane.width * (8 // plane.bits) + within
        for part, shift in enumerate(range(0, 8, plane.bits)):
            target = words[:, (first + part * plane.width) // 8]
            if shift >= plane.to:
                np.right_shift(packed, np.uint64(shift - plane.to), out=column)
            else:
                np.left_shift(packed, np.uint64(plane.to - shift), out=column)
            if plane.to:
                column &= mask
                target |= column
            else:
                np.bitwise_and(column, mask, out=target)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """float32 [n, 1] of the float16 at that byte."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _one_scale(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return _half(blocks, 0), None


def _scale_and_offset(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return _half(blocks, 0), _half(blocks, 2)


def _exponent(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Half of a power of two with a bias of 127, since the codebook has the doubled levels."""
    exponent = blocks[:, :1].astype(np.uint32)
    normal = (np.maximum(exponent, 1) - 1) << np.uint32(23)
    bits = np.where(exponent < 2, np.uint32(0x200000) << (exponent & 1), normal)
    return bits.astype(np.uint32).view(np.float32), None


def _k4_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Q4_K, Q5_K: eight scales and eight minima of 6 bits in 12 bytes: four scales, four minima,
    and the low bits of the last four of both, whose high bits are above the first four's."""
    first, second, low = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.hstack([first & 63, (low & 15) | ((first >> 2) & 48)])
    minima = np.hstack([second & 63, (low >> 4) | ((second >> 2) & 48)])
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def _q2_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    packed = blocks[:, :16]
    return _half(blocks, 80) * (packed & 15), -(_half(blocks, 82) * (packed >> 4))


def _q3_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Sixteen scales of 6 bits: a plane of the low four bits, and one of the high two."""
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    scales = np.hstack([low & 15, low >> 4])
    scales |= np.hstack([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)])
    return _half(blocks, 108) * (scales.astype(np.int8) - np.int8(32)), None


def _q6_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8), None


def _iq4_xs_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Eight scales of 6 bits: the low four in 4 bytes, the high two in a 16-bit number."""
    low = blocks[:, 4:8]
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 8)
    scales |= (high & 3).astype(np.uint8) << 4
    return _half(blocks, 0) * (scales.astype(np.int8) - np.int8(32)), None


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _type(
    name: str,
    elements: int,
    bytes: int,
    group: int,
    scales: Scales,
    *planes: Plane,
    zero: int = 0,
    codebook: tuple[int, ...] | None = None,
    offsets: bool = False,
    signed: bool = False,
) -> BlockType:
    bits = sum(plane.bits for plane in planes)
    form = QuantFormat(bits, group, zero, codebook, offsets)
    return BlockType(name, elements, bytes, form, planes, scales, signed)


TYPES: Mapping[int, DenseType | BlockType] = {
    0: DenseType("F32", 4, "float32"),
    1: DenseType("F16", 2, "float16"),
    2: _type("Q4_0", 32, 18, 32, _one_scale, Plane(2, 16, 16, 4), zero=8),
    3: _type("Q4_1", 32, 20, 32, _scale_and_offset, Plane(4, 16, 16, 4), offsets=True),
    6: _type("Q5_0", 32, 22, 32, _one_scale, Plane(6, 16, 16, 4), Plane(2, 4, 1, 1, 4), zero=16),
    7: _type(
        "Q5_1", 32, 24, 32, _scale_and_offset, Plane(8, 16, 16, 4), Plane(4, 4, 1, 1, 4),
        offsets=True,
    ),
    8: _type("Q8_0", 32, 34, 32, _one_scale, Plane(2, 32, 32, 8), zero=128, signed=True),
    10: _type("Q2_K", 256, 84, 16, _q2_scales, Plane(16, 64, 32, 2), offsets=True),
    11: _type(
        "Q3_K", 256, 110, 16, _q3_scales, Plane(32, 64, 32, 2), Plane(0, 32, 32, 1, 2), zero=4
    ),
    12: _type("Q4_K", 256, 144, 32, _k4_scales, Plane(16, 128, 32, 4), offsets=True),
    13: _type(
        "Q5_K", 256, 176, 32, _k4_scales, Plane(48, 128, 32, 4), Plane(16, 32, 32, 1, 4),
        offsets=True,
    ),
    14: _type(
        "Q6_K", 256, 210, 16, _q6_scales, Plane(0, 128, 64, 4), Plane(128, 64, 32, 2, 4), zero=32
    ),
    20: _type("IQ4_NL", 32, 18, 32, _one_scale, Plane(2, 16, 16, 4), codebook=_IQ4),
    23: _type("IQ4_XS", 256, 136, 32, _iq4_xs_scales, Plane(8, 128, 16, 4), codebook=_IQ4),
    30: DenseType("BF16", 2, "bfloat16"),
    39: _type("MXFP4", 32, 17, 32, _exponent, Plane(1, 16, 16, 4), codebook=E2M1),
}  # fmt: skip
"""The tensor types that can be read, by their number in the file."""

_OTHERS: Mapping[int, str] = {
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 29: "IQ1_M",
    9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


def type_name(number: int) -> str:
    """The type of that number as people call it; the number itself if it is of no known type."""
    block = TYPES.get(number)
    return block.name if block is not None else _OTHERS.get(number, f"number {number}")
