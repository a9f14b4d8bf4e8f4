"""Puts rows together to a StepPlan."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import NamedTuple

from asgl.plan import INT, Continued, SampleRow, ScoreRow, SharedSpan, StepPlan
from asgl.scheduling.branches import Edge
from asgl.scheduling.radix_cache import Node
from asgl.scheduling.request import Request

MIN_SHARED_SPAN = 32
"""Shorter spans are not worth a partial result of their own."""


class Row(NamedTuple):
    """New tokens of a request's sequence, or of one edge of its branches."""

    request: Request
    tokens: array[int]
    """The new tokens."""
    position: int
    """Of the first new token."""
    context: array[int]
    """The slots of all tokens up to the last new one."""
    edge: Edge | None = None
    edge_offset: int = 0
    """Where in the edge the new tokens begin."""
    continues: bool = False
    """Its one token is not known yet: the step in flight samples it."""


def build_plan(
    number: int, rows: list[Row], before: Mapping[int, int]
) -> tuple[StepPlan, list[Row]]:
    """The plan, and the rows in its order: those with one new token first. `before`: which sample
    of the step in flight is that of which request, by id."""
    rows = sorted(rows, key=lambda row: len(row.tokens) != 1)
    input_ids, positions, slots = array(INT), array(INT), array(INT)
    qo_indptr, kv_indptr, kv_indices = array(INT, [0]), array(INT, [0]), array(INT)
    samples: list[SampleRow] = []
    scores: list[ScoreRow] = []
    continued: list[Continued] = []
    for row in rows:
        first, count = len(input_ids), len(row.tokens)
        input_ids.extend(row.tokens)
        if count == 1:
            positions.append(row.position)
        else:
            positions.extend(range(row.position, row.position + count))
        slots.extend(row.context[-count:])
        kv_indices.extend(row.context)
        qo_indptr.append(len(input_ids))
        kv_indptr.append(len(kv_indices))
        if row.continues:
            continued.append(Continued(first, before[row.request.id]))
        _ask(row, first, samples, scores)
    plan = StepPlan(
        number=number,
        decode_rows=sum(len(row.tokens) == 1 for row in rows),
        input_ids=input_ids,
        positions=positions,
        slots=slots,
        qo_indptr=qo_indptr,
        kv_indptr=kv_indptr,
        kv_indices=kv_indices,
        shared=shared_spans(rows),
        samples=tuple(samples),
        scores=tuple(scores),
        continued=tuple(continued),
    )
    return plan, rows


def _ask(row: Row, first: int, samples: list[SampleRow], scores: list[ScoreRow]) -> None:
    """What is wanted of the row's logits."""
    request, branches = row.request, row.request.branches
    last = first + len(row.tokens) - 1
    if row.edge is not None:
        assert branches is not None
        for offset in range(len(row.tokens)):
            scores.append(
                ScoreRow(first + offset, branches.targets(row.edge.nodes[row.edge_offset + offset]))
            )
    elif row.position + len(row.tokens) < len(request.tokens):
        return  # a chunk that is not the prompt's last
    elif branches is not None:
        scores.append(ScoreRow(last, branches.targets()))
    elif request.max_tokens > 0:
        spec, grammar, draw = request.spec, request.grammar, request.generated + request.pending
        banned = request.banned if draw < request.min_tokens else ()
        mask = grammar.mask(banned) if grammar is not None else None
        samples.append(
            SampleRow(
                last,
                request.id,
                spec,
                draw,
                banned if mask is None else (),
                request.tokens[:] if spec.needs_history else None,
                len(request.prompt),
                mask,
            )
        )


def shared_spans(rows: list[Row]) -> tuple[SharedSpan, ...]:
    """The edges of the radix tree that several rows read, those of the same rows joined to one
    span.

    root --[0:100]-- A --[100:140]-- B     rows 0 and 1 hold B, row 2 holds A: spans (0, 100, (0, 1, 2)),
                                           (100, 140, (0, 1))
    """
    below: dict[Node, list[int]] = {}
    for index, row in enumerate(rows):
        if row.request.node is not None:
            for node in row.request.node.path():
                below.setdefault(node, []).append(index)
    shared = {node: indices for node, indices in below.items() if len(indices) > 1}

    def same_rows(node: Node | None, as_node: Node) -> bool:
        return node in shared and len(shared[node]) == len(
            shared[as_node]
        )  # one is above the other: the longer set wins

    continued = {node.parent for node in shared if same_rows(node.parent, node)}
    spans: list[SharedSpan] = []
    for bottom, indices in shared.items():
        if bottom in continued:
            continue
        top = bottom
        while top.parent is not None and same_rows(top.parent, bottom):
            top = top.parent
        if bottom.depth - top.start >= MIN_SHARED_SPAN:
            spans.append(SharedSpan(top.start, bottom.depth, tuple(indices)))
    return tuple(sorted(spans))
