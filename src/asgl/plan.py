"""What the planner and the runner say to each other: a step as data.

A step computes the new tokens of a ragged batch. Row r has the tokens `qo_indptr[r]:qo_indptr[r +
1]` of `input_ids`, and attends over the slots `kv_indices[kv_indptr[r]:kv_indptr[r + 1]]`, its own
new slots being the last of them:

    kv of row r      [ k0 k1 k2 ... | n0 n1 n2 ]     n: the row's new tokens, written by this step
    query n1 sees      ------------------^           all of what was before, and causally the new

A row's earlier slots may be written by another row of the same step: in every layer all keys and
values are stored before any is read. (The branches of a `select` are rows that read the slots of
the branch above them.)
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import NamedTuple

from .sampling import SamplingSpec

INT = "i"
"""The typecode of the arrays of a plan: 32-bit integers."""


class SharedSpan(NamedTuple):
    """The slot lists of `rows` are the same at the positions `start` to `end`: attention may read
    them once for all.

    A hint, which a back end may ignore. The spans that name a row do not overlap, and are in order
    of `start`.
    """

    start: int
    end: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Sample one token from the logits of the flattened token `index`."""

    index: int
    request_id: int
    spec: SamplingSpec
    draw: int
    """How many tokens the request has sampled before: with `spec.seed`, all that its random numbers
    depend on."""
    banned: tuple[int, ...] = ()
    """Tokens that may not be sampled now."""
    history: array[int] | None = None
    """The request's tokens so far, prompt first, if `spec.needs_history`."""
    prompt_length: int = 0
    """How many tokens of `history` are prompt."""
    mask: bytes | None = None
    """The only tokens that may be sampled, as bits: token t is bit t % 8 of byte t // 8. At least
    one. None: all."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Report the log-probabilities of `targets` as the token after the flattened token `index`."""

    index: int
    targets: tuple[int, ...]


class Continued(NamedTuple):
    """A new token that was not known when the step was planned: the step before, still in flight
    then, samples it.

    `token` is its place in `input_ids`, where 0 stands for it; `sample` its place in the `samples`
    of the step before.
    """

    token: int
    sample: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Rows with one new token come first: `decode_rows` of them."""

    number: int
    decode_rows: int
    input_ids: array[int]
    positions: array[int]
    slots: array[int]
    """Where the keys and values of each new token are stored."""
    qo_indptr: array[int]
    kv_indptr: array[int]
    kv_indices: array[int]
    shared: tuple[SharedSpan, ...] = ()
    samples: tuple[SampleRow, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    continued: tuple[Continued, ...] = ()
    """Empty unless the step was planned while another was in flight; a runner that takes one step
    at a time never sees any."""

    @property
    def rows(self) -> int:
        return len(self.qo_indptr) - 1

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def wanted(self) -> list[int]:
        """The flattened tokens whose logits are wanted: those of `samples`, then of `scores`."""
        return [row.index for row in (*self.samples, *self.scores)]


class SampledToken(NamedTuple):
    token_id: int
    logprob: float | None = None
    """Of the model itself, before temperature, penalties and masks; None if it was not asked
    for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first."""
    forced: bool = False
    """It was not sampled: a grammar allowed nothing else."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave, in the order of the plan's `samples` and `scores`."""

    samples: tuple[SampledToken | None, ...] = ()
    """None where the logits are no distribution: one of them is NaN or +inf, or all are -inf."""
    scores: tuple[tuple[float, ...] | None, ...] = ()
    """None likewise."""
    seconds: float = 0.0
    """How long the step ran on the device; where two are in flight, the time in which both run is
    that of the older one."""
