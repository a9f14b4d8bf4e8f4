"""What the scheduler counts, as a whole and for each namespace."""

from __future__ import annotations

from dataclasses import dataclass, field

from asgl.scheduling.sequence import SequenceState

_MOST_NAMESPACES = 1024
"""So many namespaces are counted; beyond that, the one that was counted longest ago is dropped."""


@dataclass(slots=True)
class NamespaceCounters:
    """What is counted for each namespace, since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class Counters(NamespaceCounters):
    """What is counted in all, since the start."""

    steps: int = 0
    forced_tokens: int = 0
    computed_tokens: int = 0
    """New tokens of all steps: the scheduler's measure of time."""
    retractions: int = 0
    namespaces: dict[str | None, NamespaceCounters] = field(default_factory=dict)

    def admitted(self, sequence: SequenceState) -> None:
        """Counts a request that is admitted for the first time."""
        for counters in (self, self._of(sequence.namespace)):
            counters.cached_tokens += sequence.cached_tokens
            counters.prompt_tokens += len(sequence.prompt)

    def generated(self, sequence: SequenceState) -> None:
        """Counts a token of the request."""
        for counters in (self, self._of(sequence.namespace)):
            counters.generated_tokens += 1

    def _of(self, namespace: str | None) -> NamespaceCounters:
        """The counters of a namespace. Those that were asked for last are kept longest."""
        counters = self.namespaces.pop(namespace, None) or NamespaceCounters()
        if len(self.namespaces) >= _MOST_NAMESPACES:
            del self.namespaces[next(iter(self.namespaces))]
        self.namespaces[namespace] = counters
        return counters
