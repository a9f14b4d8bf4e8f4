"""Steps that together do every kind of work that a later step can need: kernels are compiled, or
loaded, at their first launch, which no request should wait for.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

from asgl.plan import INT, Continued, SampleRow, ScoreRow, SharedSpan, StepPlan
from asgl.sampling import SamplingSpec

_GREEDY = SamplingSpec(temperature=0.0)
_EDITED = SamplingSpec(top_p=0.5, repetition_penalty=2.0, logit_bias=((0, 1.0),))


def warm_up_plans(capacity: int) -> list[StepPlan]:
    """Plans of a prompt and of a decode, greedy, sampled and scored, over the first slots."""
    prompt = list(range(min(2, capacity)))
    plans: list[StepPlan] = []
    for spec in (_GREEDY, SamplingSpec(logprobs=1)):
        extend = _plan([(prompt, len(prompt))], spec)
        plans += [replace(extend, scores=(ScoreRow(0, (0,)),)), _plan([([0], 1)], spec)]
    return plans


def gpu_warm_up_plans(capacity: int, vocabulary: int) -> list[StepPlan]:
    """Plans beside `warm_up_plans` that launch every GPU kernel in every form; fewer if the
    capacity is smaller than they need."""
    everything = b"\xff" * ((vocabulary + 7) // 8)
    plans = [
        _plan([([0], 1), ([1, 2], 2)], _GREEDY),  # decode beside extend: launched, not replayed
        _plan([([0], 1)], _EDITED, mask=everything),
        _plan([([0, 1], 1), ([0, 2], 1)], _GREEDY, shared=(SharedSpan(0, 1, (0, 1)),)),
        # larger tiles of the logits
        *(_plan([([slot], 1) for slot in range(rows)], _GREEDY) for rows in (17, 33)),
        # with what the step before sampled
        replace(_plan([([0], 1)], _GREEDY), continued=(Continued(0, 0),)),
    ]
    return [plan for plan in plans if max(plan.kv_indices) < capacity]


def _plan(
    rows: Sequence[tuple[Sequence[int], int]],
    spec: SamplingSpec,
    *,
    shared: tuple[SharedSpan, ...] = (),
    mask: bytes | None = None,
) -> StepPlan:
    """Rows as (slots of the context, how many of them are new), those with one new token first;
    each samples its last."""
    positions, slots, indices = (array(INT) for _ in range(3))
    qo, kv = array(INT, [0]), array(INT, [0])
    for context, new in rows:
        positions.extend(range(len(context) - new, len(context)))
        slots.extend(context[len(context) - new :])
        indices.extend(context)
        qo.append(len(positions))
        kv.append(len(indices))
    history = array(INT, [0]) if spec.needs_history else None
    samples = tuple(
        SampleRow(end - 1, row, spec, 0, history=history, mask=mask)
        for row, end in enumerate(qo[1:])
    )
    decode_rows = sum(new == 1 for _, new in rows)
    return StepPlan(
        0,
        decode_rows,
        array(INT, [0] * len(positions)),
        positions,
        slots,
        qo,
        kv,
        indices,
        shared,
        samples,
    )
