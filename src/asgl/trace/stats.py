"""What a run cost, by the names of its ops: how often, how many tokens, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil

from asgl.trace.model import Model
from asgl.trace.nodes import Op, Run

PARTS = ("waiting", "computing", "generating", "tools", "streams")
"""Where the time of ops goes: in the queue, on prompts, on new tokens, in tools that they called,
and on other streams that theirs waited for."""


@dataclass
class OpStatistics:
    """All ops of one name. Times are seconds."""

    title: str
    """The kind of the op, and the variable it sets."""
    count: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    """How many texts were not valid."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    seconds: list[float] = field(default_factory=list[float])
    """Of each op, from its start to its end."""
    first_token: list[float] = field(default_factory=list[float])
    """Of each op that generated, from its start to its first token."""
    rates: list[float] = field(default_factory=list[float])
    """Generated tokens a second, of each request."""
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """Where the time of all of them went, by `PARTS`."""

    @property
    def cached_share(self) -> float | None:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that so many of them do not exceed; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(ceil(share * len(ordered)) - 1, 0)]


def statistics_of(model: Model) -> list[OpStatistics]:
    """For each name of ops in all runs, in the order in which they came first."""
    found: dict[str, OpStatistics] = {}
    for run in model.runs.values():
        for op in run.ops():
            if op.kind == "snapshot":
                continue
            entry = found.setdefault(op.title, OpStatistics(op.title))
            _add(entry, op, run)
    return list(found.values())


def _add(entry: OpStatistics, op: Op, run: Run) -> None:
    entry.count += 1
    entry.failed += op.state == "failed"
    entry.cancelled += op.state == "cancelled"
    entry.retried += len(op.rejected)
    if op.started_at is not None:
        entry.seconds.append(op.seconds(run.now))
    for request in op.requests:
        if request.admitted_at is not None:
            entry.prompt_tokens += request.prompt_tokens
            entry.cached_tokens += request.cached_tokens
        entry.generated += request.generated
        if rate := request.rate(run.now):
            entry.rates.append(rate)
        for part, seconds in request.seconds(run.now).items():
            entry.spent[part] += seconds
    first = op.requests[0].first_token_at if op.requests else None
    if first is not None and op.started_at is not None:
        entry.first_token.append(max(first - op.started_at, 0.0))
    for call in op.tools:
        open_until = run.now if call.state == "tool" else call.began_at + call.seconds
        entry.spent["tools"] += max(open_until - call.began_at, 0.0)
    entry.spent["streams"] += op.waited
