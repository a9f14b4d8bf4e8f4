"""What a view says without a terminal: a line every few seconds, and one for each failure."""

from __future__ import annotations

from collections.abc import Iterator

from asgl.trace.nodes import STATES, Run
from asgl.viewer.canvas import harmless
from asgl.viewer.view import count, seconds


class PlainLines:
    """Tells of a run in lines of text."""

    def __init__(self) -> None:
        self._told: set[tuple[int, int]] = set()
        """The failures that a line was given for: run and stream."""

    def failures(self, run: Run) -> Iterator[str]:
        """A line for each failure that is new."""
        for stream in list(run.failed.values()):
            key = run.key, stream.id
            if key not in self._told:
                self._told.add(key)
                yield f"asgl: {harmless(stream.title)} failed: {harmless(stream.reason)[:200]}"

    def progress(self, run: Run, now: float) -> str:
        """How it stands."""
        end = now if run.closed_at is None else run.closed_at
        states = ", ".join(f"{run.counts[state]} {state}" for state in STATES if run.counts[state])
        passed = max(end - run.opened_at, 1e-9)
        parts = [f"asgl: {seconds(passed).strip()}", states or "no streams yet"]
        rate = run.generated / passed if run.closed_at is not None else run.rate(5.0)
        parts.append(f"{count(run.generated)} tokens, {rate:.0f}/s")
        if run.hit_rate is not None:
            parts.append(f"{run.hit_rate:.0%} of prompts cached")
        if run.capacity and run.last_step is not None:
            used = 1 - run.last_step.free / run.capacity
            parts.append(f"KV cache {used:.0%} full")
        if run.retractions:
            parts.append(f"{run.retractions} retractions")
        return "; ".join(parts)
