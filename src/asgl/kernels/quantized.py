"""Matrices in few bits, as block formats of model files hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from asgl.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CACHED = 2**19
"""So many elements are worked on at once: what is in between stays in the CPU's cache."""

E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The codebook of MXFP4: numbers with one bit of mantissa, doubled to be integers."""


class QuantFormat(NamedTuple):
    """How a quantized matrix is written, but for its numbers.

    bits: of a quant, 2 to 8. group: weights along a row that share a scale. zero: the quant that
    stands for 0 before the offset. codebook: what quant i stands for in place of i - zero, None
    for that. offsets: whether each group has an offset beside its scale.
    """

    bits: int
    group: int
    zero: int = 0
    codebook: tuple[int, ...] | None = None
    offsets: bool = True


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A matrix of n x k in groups along k: value = scale * level + offset, where the level of a
    quant q is q - zero, or codebook[q] if there is a codebook.

    quants: uint8 [n, k], one value a byte, 0 .. 2**bits - 1. scale, offset: float32 [n, k / group];
    symmetric formats have no offset. `bits`, `group`, `zero` and `codebook` as in `QuantFormat`.
    """

    quants: Tensor
    scale: Tensor
    offset: Tensor | None
    bits: int
    group: int
    zero: int = 0
    codebook: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.quants.shape[0], self.quants.shape[1])

    @property
    def format(self) -> QuantFormat:
        return QuantFormat(self.bits, self.group, self.zero, self.codebook, self.offset is not None)

    @property
    def origin(self) -> Tensor:
        """float32 [n, k / group]: what a quant of 0 stands for, without a codebook."""
        origin = self.scale * -self.zero
        return origin if self.offset is None else origin + self.offset

    def is_finite(self) -> bool:
        """Whether whatever the quants are, the values are finite numbers."""
        levels = self.codebook or (-self.zero, (1 << self.bits) - 1 - self.zero)
        widest = self.scale * max(map(abs, levels))
        if self.offset is not None:
            widest = widest.abs() + self.offset.abs()
        return bool(widest.isfinite().all())

    def rows(self, order: Tensor | slice) -> QuantizedTensor:
        """Those rows, in that order."""
        offset = None if self.offset is None else self.offset[order]
        return replace(self, quants=self.quants[order], scale=self.scale[order], offset=offset)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The dense matrix [n, k]."""
        n, k = self.shape
        dense = self.scale.new_empty((n, k), dtype=dtype)
        levels = None if self.codebook is None else self.scale.new_tensor(self.codebook)
        step = max(1, _CACHED // k)
        for begin in range(0, n, step):
            rows = slice(begin, begin + step)
            if levels is None:
                values = self.quants[rows].to(self.scale.dtype)
                if self.zero:  # first, so that scale * level is rounded once, as files mean it
                    values -= self.zero
            else:
                values = levels[self.quants[rows].int()]
            values = values.unflatten(1, (-1, self.group)).mul_(self.scale[rows].unsqueeze(2))
            if self.offset is not None:
                values = values.add_(self.offset[rows].unsqueeze(2))
            dense[rows] = values.flatten(1)
        return dense


def stacked(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """One matrix of the rows of all parts, which are of one format."""
    import torch  # only here: what names formats should not wait for torch

    return replace(
        parts[0],
        quants=torch.cat([part.quants for part in parts]),
        scale=torch.cat([part.scale for part in parts]),
        offset=torch.cat([part.offset for part in parts if part.offset is not None])
        if parts[0].offset is not None
        else None,
    )


_GROUP = 32
"""Weights that share a scale and an offset where dense weights are rounded."""


def quantize(weight: Tensor, bits: Literal[4, 8]) -> QuantizedTensor:
    """Rounds a dense matrix [n, k] to 4 or 8 bits in groups of 32 along k, from each group's least
    to its greatest.

    Scales and offsets are numbers of float16, as model files hold them. ConfigError if k is no
    multiple of 32, or the weights are too large for that.
    """
    n, k = weight.shape
    refused = f"a matrix of {n} x {k} cannot be held in int{bits}"
    if k % _GROUP:
        raise ConfigError(f"{refused}: {k} is no multiple of {_GROUP}; use weights='dense'")
    grouped = weight.float().view(n, k // _GROUP, _GROUP)
    low, high = grouped.aminmax(dim=2)
    low = low.half().float()
    scale = ((high - low) / (2**bits - 1)).clamp_min(2.0**-24).half().float()
    if not (low.isfinite().all() and scale.isfinite().all()):
        raise ConfigError(f"{refused}: its weights leave the range of float16; use weights='dense'")
    quants = ((grouped - low.unsqueeze(2)) / scale.unsqueeze(2)).round_().clamp_(0, 2**bits - 1)
    return QuantizedTensor(quants.byte().view(n, k), scale, low, bits, _GROUP)
