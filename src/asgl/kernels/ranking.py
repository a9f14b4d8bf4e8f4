"""Sampling by rank: tokens from logits, in plain torch. Each row's draw depends on that row
alone."""

from __future__ import annotations

import torch
from torch import Tensor

from asgl.kernels.api import SamplingBatch

CANDIDATES = 1024
"""So many of the likeliest tokens are ranked first; the whole vocabulary is, only for rows that
need more."""


def sample(logits: Tensor, how: SamplingBatch) -> Tensor:
    """`asgl.kernels.api.Kernels.sample`. Overwrites `logits`."""
    if how.repetition is not None:
        rows, tokens, penalty = how.repetition
        old = logits[rows, tokens]
        logits[rows, tokens] = torch.where(old > 0, old / penalty, old * penalty)
    if how.edits is not None:
        rows, tokens, added = how.edits
        logits[rows, tokens] += added
    best = logits.argmax(dim=1)
    broken = ~logits.gather(1, best.unsqueeze(1)).isfinite().squeeze(1)  # argmax finds a NaN
    best[broken] = -1
    if how.all_greedy:
        return best
    random = (how.temperature > 0) & ~broken
    temperature = torch.where(random, how.temperature, 1.0).unsqueeze(1)
    # the greatest is taken off first, so that no temperature overflows
    probabilities = torch.softmax(
        (logits - logits.gather(1, best.clamp_min(0).unsqueeze(1))) / temperature, dim=1
    )
    rows = random.nonzero().squeeze(1)
    best[rows] = _draw(
        probabilities[rows],
        *(part[rows] for part in (how.uniform, how.top_k, how.top_p, how.min_p)),
    )
    return best


def _draw(
    probabilities: Tensor, uniform: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """Ranks the likeliest tokens, and all of them for rows where those did not decide."""
    filters = (uniform, top_k, top_p, min_p)
    if probabilities.shape[1] <= CANDIDATES:
        values, tokens = probabilities.sort(dim=1, descending=True, stable=True)
        return tokens.gather(1, _invert(values, *filters)[0]).squeeze(1)
    values, tokens = probabilities.topk(CANDIDATES + 1, dim=1)
    tokens, by_token = tokens.sort(dim=1)
    values, by_value = values.gather(1, by_token).sort(dim=1, descending=True, stable=True)
    rank, decided = _invert(values[:, :-1], *filters)
    # of tokens as likely as the first one left out, topk took any
    decided &= values.gather(1, rank) > values[:, -1:]
    drawn = tokens.gather(1, by_value).gather(1, rank).squeeze(1)
    if not bool(decided.all()):
        rest = (~decided).nonzero()[:, 0]
        values, tokens = probabilities[rest].sort(dim=1, descending=True, stable=True)
        rank, _ = _invert(values, *(part[rest] for part in filters))
        drawn[rest] = tokens.gather(1, rank).squeeze(1)
    return drawn


def _invert(
    values: Tensor, uniform: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws ranks [m, 1] from probabilities [m, c] in descending order: all there are, or the first
    of them.

    Also returns bool [m, 1]: whether the draw is what the complete ranking would give, if it was
    not complete.
    """
    candidates = values.shape[1]
    uniform, top_k, top_p, min_p = (part.unsqueeze(1) for part in (uniform, top_k, top_p, min_p))
    exact = values.double()
    mass = exact.cumsum(dim=1)
    limited = (top_k > 0) & (top_k <= candidates)
    total = torch.where(
        limited, mass.gather(1, torch.where(limited, top_k, candidates).long() - 1), 1.0
    )
    keep = (
        (values > 0)
        & (values >= min_p * values[:, :1])
        & ((top_p >= 1) | (mass - exact < top_p * total))
    )
    keep &= ~limited | (torch.arange(candidates, device=values.device) < top_k)
    mass = torch.where(keep, exact, 0.0).cumsum(dim=1)
    ends = limited | ~keep[:, -1:]
    open_end = (
        ~ends & (top_k == 0) & (top_p >= 1) & (min_p <= 0)
    )  # nothing is filtered: the total is known to be 1
    held = torch.where(open_end, 1.0, mass[:, -1:])
    rank = (mass <= uniform * held).sum(dim=1, keepdim=True)
    inside = rank < candidates
    rank = torch.minimum(rank, keep.sum(dim=1, keepdim=True) - 1)
    known = (top_k <= candidates) | (
        top_p >= 1
    )  # else the share top_p is of a mass that is not in sight
    return rank, known & (ends | (open_end & inside))
