"""Plans by hand, and tiny random models, for tests of what runs them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from asgl.models.config import ModelConfig, Rope
from asgl.models.layout import expected_shapes
from asgl.plan import INT, SampleRow, ScoreRow, SharedSpan, StepPlan
from asgl.sampling import SamplingSpec

GREEDY = SamplingSpec(temperature=0.0)


@dataclass
class Row:
    """One row of a step: its new tokens and their slots, and the slots of all that came before.

    `sample`: sample after the last new token; `score`: (new token, targets) pairs.
    """

    tokens: Sequence[int]
    slots: Sequence[int]
    before: Sequence[int] = ()
    sample: SamplingSpec | None = None
    draw: int = 0
    banned: tuple[int, ...] = ()
    history: Sequence[int] | None = None
    prompt_length: int = 0
    score: Sequence[tuple[int, tuple[int, ...]]] = ()


def step(rows: Sequence[Row], *, shared: tuple[SharedSpan, ...] = (), number: int = 1) -> StepPlan:
    """The plan of these rows; those with one new token must come first. Samples and scores are in
    the order of the rows."""
    ids, positions, slots, indices = (array(INT) for _ in range(4))
    qo, kv = array(INT, [0]), array(INT, [0])
    samples: list[SampleRow] = []
    scores: list[ScoreRow] = []
    for request, row in enumerate(rows):
        first = len(ids)
        positions.extend(range(len(row.before), len(row.before) + len(row.tokens)))
        ids.extend(row.tokens)
        slots.extend(row.slots)
        indices.extend([*row.before, *row.slots])
        qo.append(len(ids))
        kv.append(len(indices))
        if row.sample is not None:
            history = None if row.history is None else array(INT, row.history)
            at = len(ids) - 1
            samples.append(
                SampleRow(at, request, row.sample, row.draw, row.banned, history, row.prompt_length)
            )
        scores.extend(ScoreRow(first + at, targets) for at, targets in row.score)
    decode = 0
    while decode < len(rows) and len(rows[decode].tokens) == 1:
        decode += 1
    return StepPlan(
        number,
        decode,
        ids,
        positions,
        slots,
        qo,
        kv,
        indices,
        shared,
        tuple(samples),
        tuple(scores),
    )


TINY = ModelConfig(
    architecture="llama",
    layers=2,
    hidden_size=64,
    intermediate_size=96,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=211,
    context_length=256,
    rope=Rope(10_000.0, 16),
    norm_eps=1e-5,
    tied_head=True,
)


@dataclass
class MemoryCheckpoint:
    """A checkpoint whose tensors are random, seeded, float32, and large enough to give
    distributions that are not flat."""

    config: ModelConfig = TINY
    seed: int = 0
    name: str = "tiny"
    tokenizer: Any = None
    chat_template: Any = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for name, shape in expected_shapes(self.config).items():
            values = torch.randn(shape, generator=generator)
            if len(shape) == 1:
                values = values * 0.1 + (0.0 if name.endswith("bias") else 1.0)
            elif name not in ("embedding", "head"):
                values *= 1.5 * shape[1] ** -0.5
            else:
                values *= 2 * shape[1] ** -0.5
            self.tensors.setdefault(name, values)

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def close(self) -> None:
        self.tensors.clear()
