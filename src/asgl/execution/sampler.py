"""From logits to tokens: what requests ask for, as tensors for the sampling kernel, and
log-probabilities.

Randomness is counter-based: each token's random number is a hash of the request's seed, of how many
tokens it has before, and of the token's own id. No generator has a state, so that a request's draws
do not depend on the batch it rides in, and hardly on the last digits of its logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asgl.execution.masks import bar, forbidden
from asgl.kernels.api import Kernels, SamplingBatch
from asgl.plan import SampledToken, SampleRow, ScoreRow

HEAD_ROWS = 64
"""Logits of so many tokens are held at once."""
_GAMMA = 0x9E3779B97F4A7C15
_LEAST = 1e-30
"""A top_p below that would be 0 in float32, of which no token is left."""
_Edits = tuple[NDArray[np.int64], NDArray[np.floating[Any]]]


def keys(seeds: Sequence[int], draws: Sequence[int]) -> NDArray[np.int64]:
    """For each pair of a seed and a count of draws below 2**64 a number of 64 random bits.

    The SplitMix64 sequence (Steele, Lea and Flood, OOPSLA 2014) that starts at the seed's own hash,
    at place draw + 1. The seed is hashed first, lest seeds that are a multiple of the sequence's
    increment apart give shifted sequences.
    """
    place = (np.array(draws, dtype=np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    return _mix(_mix(np.array(seeds, dtype=np.uint64)) + place).view(np.int64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers, each bit of which depends on all bits
    of the argument."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sampling_batch(
    samples: Sequence[SampleRow],
    vocabulary: int,
    device: torch.device,
    columns: NDArray[np.int64] | None = None,
) -> SamplingBatch:
    """The tensors of the sampling kernel. Banned and biased tokens outside the vocabulary are left
    out.

    `columns`: the tokens that there are logits of, in rising order; None for all.
    """
    specs = [sample.spec for sample in samples]
    logits = vocabulary if columns is None else len(columns)

    def column(values: list[float] | list[int] | NDArray[np.int64], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device)

    edits: list[_Edits] = []
    repetitions: list[_Edits] = []
    for sample in samples:
        edits.append(_among(columns, _additions(sample, vocabulary)))
        repetitions.append(_among(columns, _repetitions(sample)))
    return SamplingBatch(
        temperature=column([spec.temperature for spec in specs], torch.float32),
        top_p=column([max(spec.top_p, _LEAST) for spec in specs], torch.float32),
        top_k=column([min(spec.top_k, logits) for spec in specs], torch.int32),
        min_p=column([spec.min_p for spec in specs], torch.float32),
        key=column(
            keys([spec.seed for spec in specs], [sample.draw for sample in samples]), torch.int64
        ),
        ids=None if columns is None else column(columns, torch.int32),
        edits=_triples(edits, device),
        repetition=_triples(repetitions, device),
        all_greedy=all(spec.temperature == 0.0 for spec in specs),
        unfiltered=all(
            spec.top_p == 1.0 and spec.top_k == 0 and spec.min_p == 0.0 for spec in specs
        ),
    )


_NOTHING: _Edits = (np.empty(0, dtype=np.int64), np.empty(0))


def _additions(sample: SampleRow, vocabulary: int) -> _Edits:
    """What is added to the logits of which tokens, each token once: penalties, logit_bias, and -inf
    for banned tokens."""
    spec = sample.spec
    penalised = sample.history is not None and (
        spec.frequency_penalty != 0.0 or spec.presence_penalty != 0.0
    )
    if not (penalised or spec.logit_bias or sample.banned):
        return _NOTHING
    tokens = [
        np.fromiter(chain((token for token, _ in spec.logit_bias), sample.banned), dtype=np.int64)
    ]
    biases = [bias for _, bias in spec.logit_bias] + [-np.inf] * len(sample.banned)
    added: list[NDArray[np.floating[Any]]] = [np.array(biases, dtype=np.float64)]
    if penalised and sample.history is not None:
        output, counts = np.unique(
            np.array(sample.history[sample.prompt_length :], dtype=np.int64), return_counts=True
        )
        tokens.append(output)
        added.append(-(counts * spec.frequency_penalty + spec.presence_penalty))
    all_tokens, all_added = np.concatenate(tokens), np.concatenate(added)
    inside = (all_tokens >= 0) & (all_tokens < vocabulary)
    unique, place = np.unique(all_tokens[inside], return_inverse=True)
    total = np.zeros(len(unique))
    np.add.at(total, place, all_added[inside])
    return unique, total


def _repetitions(sample: SampleRow) -> _Edits:
    penalty = sample.spec.repetition_penalty
    if penalty == 1.0 or sample.history is None:
        return _NOTHING
    tokens = np.unique(np.array(sample.history, dtype=np.int64))
    return tokens, np.full(len(tokens), penalty)


def _among(columns: NDArray[np.int64] | None, edits: _Edits) -> _Edits:
    """The edits of those tokens alone, by column."""
    if columns is None:
        return edits
    tokens, values = edits
    place = np.searchsorted(columns, tokens)
    there = place < len(columns)
    there[there] = columns[place[there]] == tokens[there]
    return place[there], values[there]


def _triples(edits: list[_Edits], device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    if not any(len(tokens) for tokens, _ in edits):
        return None
    rows = np.repeat(np.arange(len(edits)), [len(tokens) for tokens, _ in edits])
    tokens, values = (np.concatenate(parts) for parts in zip(*edits, strict=True))
    return (
        torch.from_numpy(rows).to(device),
        torch.from_numpy(tokens).to(device),
        torch.from_numpy(values).to(device, torch.float32),
    )


def sample(
    kernels: Kernels, logits: Tensor, samples: Sequence[SampleRow]
) -> list[SampledToken | None]:
    """A token for each row of float32 logits [m, vocabulary], which may be overwritten; None for a
    row that is no distribution (see `Kernels.sample`).

    Log-probabilities are those of the logits as given, before masks, and are computed only for the
    rows that ask for them.
    """
    asking = asking_rows(samples)
    logprobs = None
    if asking:
        every = len(asking) == len(samples)
        logprobs = kernels.log_softmax(logits if every else logits[asking])
    if (barred := forbidden(samples, logits.shape[1])) is not None:
        bar(logits, barred)
    tokens = kernels.sample(logits, sampling_batch(samples, logits.shape[1], logits.device))
    if logprobs is None:
        return sampled_tokens(samples, tokens.tolist())
    own, values, ids = chosen_and_top(logprobs, tokens[asking], samples)
    return sampled_tokens(samples, tokens.tolist(), own.tolist(), values.tolist(), ids.tolist())


def asking_rows(samples: Sequence[SampleRow]) -> list[int]:
    """The rows that ask for log-probabilities."""
    return [row for row, wanted in enumerate(samples) if wanted.spec.logprobs is not None]


def chosen_and_top(
    logprobs: Tensor, tokens: Tensor, samples: Sequence[SampleRow]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the log-probabilities [a, vocabulary] of the rows that ask for them: those of their tokens
    [a], the greatest ones [a, k], and whose those are [a, k]; k is the most that a row asks for.
    """
    most = max(wanted.spec.logprobs or 0 for wanted in samples)
    values, ids = logprobs.topk(min(most, logprobs.shape[1]), dim=1)
    # a row without a token has -1
    own = logprobs.gather(1, tokens.clamp_min(0).unsqueeze(1)).squeeze(1)
    return own, values, ids


def sampled_tokens(
    samples: Sequence[SampleRow],
    tokens: Sequence[int],
    own: Sequence[float] = (),
    values: Sequence[Sequence[float]] = (),
    ids: Sequence[Sequence[int]] = (),
) -> list[SampledToken | None]:
    """What is reported of the rows of a step: their tokens (-1: none), and as `chosen_and_top` gave
    them, the log-probabilities of those that ask."""
    found = [SampledToken(token) if token >= 0 else None for token in tokens]
    for place, row in enumerate(asking_rows(samples) if own else ()):
        if found[row] is not None:
            count = samples[row].spec.logprobs or 0
            top = tuple(zip(ids[place][:count], values[place][:count], strict=True))
            found[row] = SampledToken(tokens[row], own[place], top)
    return found


def sample_among(
    kernels: Kernels,
    logits: Tensor,
    samples: Sequence[SampleRow],
    columns: NDArray[np.int64],
    barred: NDArray[np.bool_],
) -> list[SampledToken | None]:
    """As `sample`, from the logits [m, k] of the tokens `columns` alone. `barred` [m, vocabulary]:
    those that a row may not have.

    No row may ask for log-probabilities.
    """
    bar(logits, barred[:, columns])
    how = sampling_batch(samples, barred.shape[1], logits.device, columns)
    places = kernels.sample(logits, how).tolist()
    return [SampledToken(int(columns[place])) if place >= 0 else None for place in places]


def score(
    kernels: Kernels, logits: Tensor, scores: Sequence[ScoreRow]
) -> list[tuple[float, ...] | None]:
    """The log-probabilities of each row's targets; None for a row that is no distribution.

    `logits` float32 [m, vocabulary], a row for each of `scores`.
    """
    rows, targets = score_places(scores)
    logprobs = kernels.log_softmax(logits)
    return scored(scores, logprobs[rows.to(logits.device), targets.to(logits.device)].tolist())


def score_places(scores: Sequence[ScoreRow]) -> tuple[Tensor, Tensor]:
    """int64 [targets], twice: of which row each target is, and the targets themselves."""
    pairs = [(row, target) for row, wanted in enumerate(scores) for target in wanted.targets]
    rows, targets = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T.contiguous()
    return rows, targets


def scored(scores: Sequence[ScoreRow], found: Sequence[float]) -> list[tuple[float, ...] | None]:
    """The log-probabilities of all targets, cut into rows; None for a row in which one is NaN."""
    each = iter(found)
    rows = [tuple(next(each) for _ in wanted.targets) for wanted in scores]
    return [None if any(map(math.isnan, row)) else row for row in rows]
