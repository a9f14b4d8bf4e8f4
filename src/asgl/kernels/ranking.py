"""Sampling in plain torch: what filters keep by rank, then an exponential race among it. Each row's
draw depends on that row alone."""

from __future__ import annotations

import torch
from torch import Tensor

from asgl.kernels import noise
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
    kept = probabilities[rows]
    if not how.unfiltered:
        kept = _filter(kept, *(part[rows] for part in (how.top_k, how.top_p, how.min_p)))
    ids = how.ids if how.ids is not None else torch.arange(logits.shape[1], device=logits.device)
    # what was filtered out, or has no probability in float32, arrives at infinity
    best[rows] = (noise.times(how.key[rows], ids) / kept).argmin(dim=1)
    return best


def _filter(probabilities: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The probabilities [m, vocabulary] with 0 for all tokens that are not kept. Ranks the
    likeliest tokens, and all of them for rows where those did not decide."""
    filters = (top_k, top_p, min_p)
    kept = torch.zeros_like(probabilities)
    rest = torch.arange(len(kept), device=kept.device)
    if probabilities.shape[1] > CANDIDATES:
        values, tokens = probabilities.topk(CANDIDATES + 1, dim=1)
        tokens, by_token = tokens.sort(dim=1)
        values, by_value = values.gather(1, by_token).sort(dim=1, descending=True, stable=True)
        tokens = tokens.gather(1, by_value)
        last = values[:, -1:]
        keep, decided = _keep(values[:, :-1], *filters)
        values, tokens = values[:, :-1], tokens[:, :-1]
        # of tokens as likely as the first one left out, topk took any
        decided &= ~(keep & (values == last)).any(dim=1)
        kept.scatter_(1, tokens, torch.where(keep & decided.unsqueeze(1), values, 0.0))
        rest = rest[~decided]
    if len(rest):
        values, tokens = probabilities[rest].sort(dim=1, descending=True, stable=True)
        keep, _ = _keep(values, *(part[rest] for part in filters))
        kept[rest] = kept[rest].scatter_(1, tokens, torch.where(keep, values, 0.0))
    return kept


def _keep(values: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the probabilities [m, c] are kept, bool [m, c]. They are in descending order: all
    there are, or the first of them.

    Also returns bool [m]: whether the complete ranking would keep no others, if it was not
    complete.
    """
    candidates = values.shape[1]
    top_k, top_p, min_p = (part.unsqueeze(1) for part in (top_k, top_p, min_p))
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
    # else the share top_p is of a mass that is not in sight
    known = (top_k <= candidates) | (top_p >= 1)
    return keep, (known & (limited | ~keep[:, -1:])).squeeze(1)
