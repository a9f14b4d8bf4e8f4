"""The random numbers of sampling: a hash of a row's key and a token's id.

Nothing else goes in: not how likely the token is, nor its rank, nor what the other tokens are. So a
draw changes only where the model's own numbers bring two tokens that close together.

With t the id and k the 64-bit key, of which `low` and `high` are the halves, in words of 32 bits:

    x = t * WEYL + low
    x = (x ^ x >> 16) * FIRST
    x = (x ^ x >> 15 ^ high) * SECOND
    x = x ^ x >> 15
    u = ((x >> 1) + 1/2) / 2^31,  in (0, 1)

This is the generator known as splitmix32 (its multipliers were found by Wellons' hash-prospector),
started at `low`. `high` goes in between, so that no two keys give sequences that are shifts of each
other.

-log(1 - u) is exponentially distributed, and of such times divided by weights the least is that of
token t in a share of w_t / sum of w of all draws: an exponential race, or the Gumbel-max trick
(Gumbel 1954; Maddison et al., arXiv 1411.0030) without its logarithms.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEYL = 0x9E3779B9
FIRST = 0x21F0AAAD
SECOND = 0x735A2D97
STEP = 2.0**-31

_WORD = 0xFFFFFFFF


def times(keys: Tensor, ids: Tensor) -> Tensor:
    """float64 [m, k]: -log(1 - u) for int64 keys [m] and token ids [k]."""
    low, high = (keys & _WORD).unsqueeze(1), (keys >> 32 & _WORD).unsqueeze(1)
    # products wrap around in int64, and their lower words are those of 32-bit words
    x = (ids.long() * WEYL + low) & _WORD
    x = ((x ^ x >> 16) * FIRST) & _WORD
    x = ((x ^ x >> 15 ^ high) * SECOND) & _WORD
    x ^= x >> 15
    return -torch.log1p(-((x >> 1).double() + 0.5) * STEP)
