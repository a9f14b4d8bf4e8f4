"""What grammars allow of the tokens of a step: a mask of bits for each row, as arrays for the whole
batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asgl.plan import SampleRow

FEW = 256
"""For so many allowed tokens or fewer it pays to compute the logits of those alone."""


class Split(NamedTuple):
    """The rows of a step, by how much of the output layer they need. Indices into the step's
    samples."""

    decided: list[tuple[int, int]]
    """Rows with their token: there is one that is allowed, and nothing is to be computed."""
    few: list[int]
    """Rows for which the logits of a few tokens do."""
    rest: list[int]


def split(samples: Sequence[SampleRow]) -> Split:
    """Sorts the rows. One that reports log-probabilities needs all logits, whatever it allows."""
    found = Split([], [], [])
    for row, sample in enumerate(samples):
        if sample.mask is None or sample.spec.logprobs is not None:
            found.rest.append(row)
            continue
        bits = int.from_bytes(sample.mask, "little")
        count = bits.bit_count()
        if count == 1:
            found.decided.append((row, bits.bit_length() - 1))
        else:
            (found.few if count <= FEW else found.rest).append(row)
    return found


def forbidden(samples: Sequence[SampleRow], vocabulary: int) -> NDArray[np.bool_] | None:
    """[m, vocabulary]: which tokens may not be sampled. None if no row has a mask."""
    if all(sample.mask is None for sample in samples):
        return None
    everything = b"\xff" * ((vocabulary + 7) // 8)
    packed = np.frombuffer(
        b"".join(sample.mask or everything for sample in samples), dtype=np.uint8
    )
    bits = np.unpackbits(
        ~packed.reshape(len(samples), -1), axis=1, count=vocabulary, bitorder="little"
    )
    return bits.view(np.bool_)


def bar(logits: Tensor, barred: NDArray[np.bool_]) -> None:
    """Sets the logits [m, k] of barred tokens to -inf, in place.

    Not by torch on CPUs: for so many elements it wakes its own threads, which then spin on the
    cores that the kernels need.
    """
    if logits.device.type == "cpu":
        np.copyto(logits.numpy(), np.float32(-np.inf), where=barred)
    else:
        logits.masked_fill_(torch.from_numpy(barred).to(logits.device), -torch.inf)
