"""From hidden states to what a step reports, without waiting for the device in between.

As sampler.py, but that all tensors go up before the step and come down after it: host lists are
made only once everything is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from asgl.errors import InternalError
from asgl.execution.cuda_device import CudaDevice
from asgl.execution.sampler import (
    HEAD_ROWS,
    asking_rows,
    chosen_and_top,
    sampled_tokens,
    sampling_batch,
    score_places,
    scored,
)
from asgl.kernels.api import Kernels, SamplingBatch
from asgl.kernels.triton.target import Target
from asgl.models.transformer import Transformer
from asgl.plan import SampledToken, SampleRow, ScoreRow, StepPlan


class GraphKernels(Kernels, Protocol):
    """A back end whose launches can be captured: none depends on what the device computed."""

    target: Target

    def rows_of_span_tile(self, heads: int, kv_heads: int, head_dim: int) -> int: ...

    def mask_logits(self, logits: Tensor, allowed: Tensor) -> None: ...


@dataclass(slots=True)
class _Samples:
    """Rows that are sampled at once, with places in the upload."""

    rows: tuple[SampleRow, ...]
    how: SamplingBatch
    fields: dict[str, list[int]]
    asking_at: int | None
    mask_at: int | None


class Outputs:
    """What one step reports. `inputs` go up with the batch, and come back as `sent`; `compute`
    launches; `read` after the wait."""

    def __init__(
        self, plan: StepPlan, device: CudaDevice, kernels: GraphKernels, vocabulary: int
    ) -> None:
        self.inputs: list[Tensor] = []
        self.sent: list[Tensor] = []
        self._device, self._kernels, self._vocabulary = device, kernels, vocabulary
        self._results: list[Callable[[], list[SampledToken | None]]] = []
        self._scored: list[Callable[[], list[tuple[float, ...] | None]]] = []
        self._sampled: list[Tensor] = []
        wanted = plan.wanted
        self.wanted = bool(wanted)
        self.inputs.append(torch.tensor(wanted, dtype=torch.int64))
        self._samples = [
            self._prepare(plan.samples[at : at + HEAD_ROWS])
            for at in range(0, len(plan.samples), HEAD_ROWS)
        ]
        self._continued = (
            self._add(torch.tensor(plan.continued, dtype=torch.int64).T.contiguous())
            if plan.continued
            else None
        )
        self._scores = [
            (asked := plan.scores[at : at + HEAD_ROWS], self._targets(asked))
            for at in range(0, len(plan.scores), HEAD_ROWS)
        ]

    @property
    def at(self) -> Tensor:
        """int64 on the device: the flattened tokens that are asked for."""
        return self.sent[0]

    def _add(self, tensor: Tensor) -> int:
        self.inputs.append(tensor)
        return len(self.inputs) - 1

    def _prepare(self, rows: tuple[SampleRow, ...]) -> _Samples:
        how = sampling_batch(
            [replace(row, mask=None) for row in rows], self._vocabulary, torch.device("cpu")
        )
        fields: dict[str, list[int]] = {}
        for name in ("temperature", "top_p", "top_k", "min_p", "key"):
            fields[name] = [self._add(getattr(how, name))]
        for name in ("edits", "repetition"):
            if (triple := getattr(how, name)) is not None:
                fields[name] = [self._add(part) for part in triple]
        asking = asking_rows(rows)
        masked = any(row.mask is not None for row in rows)
        return _Samples(
            rows,
            how,
            fields,
            self._add(torch.tensor(asking)) if asking else None,
            self._add(_masks(rows, self._vocabulary)) if masked else None,
        )

    def _targets(self, asked: tuple[ScoreRow, ...]) -> int:
        """The place of int64 [2, targets]: row and token."""
        return self._add(torch.stack(score_places(asked)))

    # --- on the device ---

    @property
    def sampled(self) -> Tensor:
        """int64 on the device: the tokens of all samples, in the order of the plan."""
        return self._sampled[0] if len(self._sampled) == 1 else torch.cat(self._sampled)

    def continue_from(self, before: Tensor | None, input_ids: Tensor) -> None:
        """Puts what the step before sampled where the plan goes on with it, before anything reads
        `input_ids` (int32)."""
        if self._continued is not None:
            if before is None:
                raise InternalError(
                    "a step goes on with samples of a step before, and there was none"
                )
            token, sample = self.sent[self._continued]
            # -1 where there was nothing to sample from: what goes on with that is dropped, but it
            # must not be looked up
            known = before.index_select(0, sample).clamp_min(0)
            input_ids.index_copy_(0, token, known.to(input_ids.dtype))

    def compute(self, model: Transformer, hidden: Tensor) -> None:
        """Launches everything, and the copies to the host. hidden [asked, d], in the order of the
        plan."""
        first = 0
        for part in self._samples:
            self._sample(part, model.head(hidden[first : first + len(part.rows)]))
            first += len(part.rows)
        for asked, targets in self._scores:
            logprobs = self._kernels.log_softmax(model.head(hidden[first : first + len(asked)]))
            rows, tokens = self.sent[targets]
            down = self._device.download(logprobs[rows, tokens])
            self._scored.append(partial(_read_scores, asked, down))
            first += len(asked)

    def _sample(self, part: _Samples, logits: Tensor) -> None:
        how = replace(
            part.how,
            **{
                name: self.sent[places[0]]
                if len(places) == 1
                else tuple(self.sent[at] for at in places)
                for name, places in part.fields.items()
            },
        )
        logprobs = asking = None
        if part.asking_at is not None:
            asking = self.sent[part.asking_at]
            logprobs = self._kernels.log_softmax(logits.index_select(0, asking))
        if part.mask_at is not None:
            self._kernels.mask_logits(logits, self.sent[part.mask_at])
        tokens = self._kernels.sample(logits, how)
        self._sampled.append(tokens)
        results = [tokens]
        if logprobs is not None and asking is not None:
            results += chosen_and_top(logprobs, tokens.index_select(0, asking), part.rows)
        down = [self._device.download(result) for result in results]
        self._results.append(partial(_read_samples, part.rows, down))

    # --- after the wait ---

    def read(
        self,
    ) -> tuple[tuple[SampledToken | None, ...], tuple[tuple[float, ...] | None, ...]]:
        """What the plan asked for, as in `StepResult`."""
        return (
            tuple(token for result in self._results for token in result()),
            tuple(score for result in self._scored for score in result()),
        )


def _masks(rows: tuple[SampleRow, ...], vocabulary: int) -> Tensor:
    """int32 [rows, words], 32 tokens a word; all ones for rows without a mask."""
    words = -(-vocabulary // 32)
    packed = np.full((len(rows), 4 * words), 255, np.uint8)
    for place, row in enumerate(rows):
        if row.mask is not None:
            bits = np.frombuffer(row.mask, np.uint8)[: 4 * words]
            packed[place] = 0
            packed[place, : len(bits)] = bits
    return torch.from_numpy(packed.view("<i4"))


def _read_samples(rows: Sequence[SampleRow], down: Sequence[Tensor]) -> list[SampledToken | None]:
    return sampled_tokens(rows, *(part.tolist() for part in down))


def _read_scores(asked: Sequence[ScoreRow], down: Tensor) -> list[tuple[float, ...] | None]:
    return scored(asked, down.tolist())
