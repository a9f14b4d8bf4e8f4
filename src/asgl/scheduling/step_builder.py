"""Builds a step: rows of the next tokens of requests, the slots that they fill, and the plan."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asgl.plan import INT, Continued, SampledToken, SampleRow, ScoreRow, SharedSpan, StepPlan
from asgl.scheduling.kv_cache import KVCache
from asgl.scheduling.radix_cache import Node
from asgl.scheduling.select_tree import Edge
from asgl.scheduling.sequence import SequenceState

MIN_SHARED_SPAN = 32
"""Shorter spans are not worth a partial result of their own."""


class Row(NamedTuple):
    """New tokens of a request's sequence, or of one edge of its select tree."""

    sequence: SequenceState
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

    @property
    def ends_prompt(self) -> bool:
        """Whether no token of its sequence that is known comes after it. That stays so whatever
        becomes of the sequence while the step runs, unless it generates."""
        return self.position + len(self.tokens) >= len(self.sequence.tokens)


class StepInFlight:
    """A step between its plan and its commit. From now until `land`, what it samples is pending."""

    def __init__(self, plan: StepPlan, rows: list[Row]) -> None:
        self.plan = plan
        self.rows = rows
        """In the plan's order."""
        self.places: Mapping[int, int] = {
            sample.request_id: place for place, sample in enumerate(plan.samples)
        }
        """For each request that is sampled for, by id, the place in the step's samples."""
        self.leaving: list[SequenceState] = []
        """Requests that ended meanwhile: their slots are free when the step has returned."""
        self._sampled = [row.sequence for row in rows if row.sequence.id in self.places]
        for sequence in self._sampled:
            sequence.pending += 1

    def land(
        self, samples: Sequence[SampledToken | None] = ()
    ) -> Mapping[int, SampledToken | None]:
        """Ends the step. Returns its samples, by the ids of their requests; none if it failed."""
        for sequence in self._sampled:
            sequence.pending -= 1
        return {number: samples[place] for number, place in self.places.items()} if samples else {}


# --- rows -----------------------------------------------------------------------------------------


def next_row(kv_cache: KVCache, sequence: SequenceState, count: int) -> Row:
    """Allocates and lays out the next `count` tokens of the sequence, or the one that is
    pending."""
    start = len(sequence.slots)
    continues = start == len(sequence.tokens)
    tokens = array(INT, [0]) if continues else sequence.tokens[start : start + count]
    kv_cache.grow(sequence, count)
    return Row(sequence, tokens, start, sequence.slots, continues=continues)


def extend(kv_cache: KVCache, sequence: SequenceState, budget: int, rows: list[Row]) -> int:
    """Lays out what fits of the sequence and of its select tree, `budget` tokens at most; returns
    how many tokens that is."""
    used = 0
    if sequence.unplanned > 1:
        used = min(sequence.unplanned, budget, kv_cache.available)
        if used > 0:
            rows.append(next_row(kv_cache, sequence, used))
    if sequence.tree is not None and len(sequence.slots) == len(sequence.tokens):
        used += _extend_tree(kv_cache, sequence, budget - used, rows)
    return used


def _extend_tree(kv_cache: KVCache, sequence: SequenceState, budget: int, rows: list[Row]) -> int:
    tree = sequence.tree
    assert tree is not None
    used = 0
    for edge, offset in tree.pending():
        count = min(len(edge.tokens) - offset, budget - used, kv_cache.available)
        if count <= 0:
            break
        tree.take(edge, kv_cache.allocate(count))
        context = sequence.slots[:]
        for above in edge.path():
            context.extend(above.slots)
        position = len(sequence.tokens) + edge.start + offset
        tokens = edge.tokens[offset : offset + count]
        rows.append(Row(sequence, tokens, position, context, edge, offset))
        used += count
        if offset + count < len(edge.tokens):
            break  # an edge below this one needs all of it
    return used


# --- the plan -------------------------------------------------------------------------------------


def build_step(number: int, rows: list[Row], before: StepInFlight | None) -> StepInFlight:
    """Puts rows together to step `number`, those with one new token first. `before`: the step in
    flight that rows continue."""
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
            assert before is not None
            continued.append(Continued(first, before.places[row.sequence.id]))
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
    return StepInFlight(plan, rows)


def _ask(row: Row, first: int, samples: list[SampleRow], scores: list[ScoreRow]) -> None:
    """Adds what is wanted of the row's logits. first: the place of its first token in the step."""
    sequence, tree = row.sequence, row.sequence.tree
    last = first + len(row.tokens) - 1
    if row.edge is not None:
        assert tree is not None
        nodes = row.edge.nodes[row.edge_offset : row.edge_offset + len(row.tokens)]
        scores.extend(
            ScoreRow(first + offset, tree.targets(node)) for offset, node in enumerate(nodes)
        )
    elif not row.ends_prompt:
        return  # a chunk that is not the prompt's last
    elif tree is not None:
        scores.append(ScoreRow(last, tree.targets()))
    elif sequence.request.max_tokens > 0:
        samples.append(_sample_row(sequence, last))
    else:
        scores.append(ScoreRow(last, (0,)))  # of a prefetch: to hear whether it is a number


def _sample_row(sequence: SequenceState, index: int) -> SampleRow:
    request, grammar = sequence.request, sequence.grammar
    draw = sequence.generated + sequence.pending
    banned = request.banned if draw < request.min_tokens else ()
    mask = grammar.mask(banned) if grammar is not None else None
    return SampleRow(
        index,
        request.id,
        request.spec,
        draw,
        banned=banned if mask is None else (),
        history=sequence.tokens[:] if request.spec.needs_history else None,
        prompt_length=len(request.prompt),
        mask=mask,
    )


def shared_spans(rows: list[Row]) -> tuple[SharedSpan, ...]:
    """The edges of the radix tree that several rows read, those of the same rows joined to one
    span.

    Rows 0 and 1 hold B, row 2 holds A: the spans are (0, 100, (0, 1, 2)) and (100, 140, (0, 1)).

        root --[0:100]-- A --[100:140]-- B
    """
    below: dict[Node, list[int]] = {}
    for index, row in enumerate(rows):
        if row.sequence.node is not None:
            for node in row.sequence.node.path():
                below.setdefault(node, []).append(index)
    shared = {node: indices for node, indices in below.items() if len(indices) > 1}

    def same_rows(node: Node | None, as_node: Node) -> bool:
        # one is above the other, so as many rows are the same rows
        return node in shared and len(shared[node]) == len(shared[as_node])

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
