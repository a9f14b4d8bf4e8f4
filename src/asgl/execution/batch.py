"""Lowers a plan to tensors, and checks what the kernels rely on: they do not check bounds."""

from __future__ import annotations

from array import array

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asgl.errors import InternalError
from asgl.kernels.api import Batch
from asgl.plan import StepPlan

_Ints = NDArray[np.int32]


def lower(
    plan: StepPlan, *, capacity: int, vocabulary: int, context: int, device: torch.device
) -> Batch:
    """The batch of a plan. On CPUs its tensors share the memory of the plan's arrays.

    InternalError if the plan breaks its invariants: a token outside the vocabulary, a position
    outside the context, a slot outside the pool, rows that do not add up, or whose last slots are
    not those of their new tokens.
    """
    ids, positions, slots = (
        _ints(values) for values in (plan.input_ids, plan.positions, plan.slots)
    )
    qo, kv, indices = (
        _ints(values) for values in (plan.qo_indptr, plan.kv_indptr, plan.kv_indices)
    )
    if not len(ids) == len(positions) == len(slots):
        raise InternalError(
            f"step {plan.number}: {len(ids)} tokens, {len(positions)} positions, {len(slots)} slots"
        )
    new, contexts = (
        _lengths(plan, "qo_indptr", qo, len(ids)),
        _lengths(plan, "kv_indptr", kv, len(indices)),
    )
    if len(new) != len(contexts) or not len(new):
        raise InternalError(
            f"step {plan.number}: {len(new)} rows of tokens, {len(contexts)} of context"
        )
    if new.min() < 1 or (contexts < new).any():
        raise InternalError(
            f"step {plan.number}: a row has no new token, or fewer slots than new tokens"
        )
    if not 0 <= plan.decode_rows <= len(new) or (new[: plan.decode_rows] != 1).any():
        raise InternalError(
            f"step {plan.number}: of the first {plan.decode_rows} rows of {len(new)} some are "
            "longer"
        )
    _within(plan, "token", ids, vocabulary)
    _within(plan, "position", positions, context)
    _within(plan, "slot", slots, capacity)
    _within(plan, "slot of a context", indices, capacity)
    if len(np.unique(slots)) < len(slots):
        raise InternalError(f"step {plan.number}: two tokens are to be stored in one slot")
    ends = np.repeat(kv[1:] - qo[1:], new) + np.arange(len(ids), dtype=np.int32)
    if (indices[ends] != slots).any():
        raise InternalError(
            f"step {plan.number}: the context of a row does not end with the slots of its new "
            "tokens"
        )
    for sample in plan.samples:
        _index(plan, sample.index)
        if sample.mask is not None and (
            len(sample.mask) != (vocabulary + 7) // 8 or not any(sample.mask)
        ):
            raise InternalError(
                f"step {plan.number}: the mask of request {sample.request_id} is not one of "
                f"{vocabulary}"
            )
    for score in plan.scores:
        _index(plan, score.index)
        if score.targets and not (min(score.targets) >= 0 and max(score.targets) < vocabulary):
            raise InternalError(
                f"step {plan.number}: a target is outside the vocabulary: {score.targets}"
            )
    for start, end, rows in plan.shared:
        sound = 0 <= start < end and rows and min(rows) >= 0 and max(rows) < len(new)
        if not sound or end > contexts[list(rows)].min():
            raise InternalError(
                f"step {plan.number}: the shared span {start}:{end} is not in all of its rows "
                f"{rows}"
            )
    return Batch(
        *(_tensor(values, device) for values in (ids, positions, slots, qo, kv, indices)),
        decode_rows=plan.decode_rows,
        max_kv=int(contexts.max()),
        shared=plan.shared,
    )


def _ints(values: array[int]) -> _Ints:
    return np.frombuffer(values, dtype=np.int32) if len(values) else np.empty(0, dtype=np.int32)


def _tensor(values: _Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _lengths(plan: StepPlan, name: str, indptr: _Ints, total: int) -> _Ints:
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != total:
        raise InternalError(
            f"step {plan.number}: {name} does not go from 0 to {total}: {indptr.tolist()[:8]}..."
        )
    return np.diff(indptr)


def _within(plan: StepPlan, what: str, values: _Ints, limit: int) -> None:
    if values.min() < 0 or values.max() >= limit:
        bad = values[(values < 0) | (values >= limit)][0]
        raise InternalError(f"step {plan.number}: {what} {bad} is not in 0..{limit - 1}")


def _index(plan: StepPlan, index: int) -> None:
    if not 0 <= index < plan.tokens:
        raise InternalError(
            f"step {plan.number}: token {index} of {plan.tokens} is to be sampled or scored"
        )
