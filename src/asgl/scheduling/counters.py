"""What the scheduler counts, as a whole and for each namespace."""

from __future__ import annotations

from dataclasses import dataclass, field

from asgl.scheduling.request import Request

_MOST_NAMESPACES = 1024
"""Of how many namespaces counts are kept; dropped is the one that was counted longest ago."""


@dataclass(slots=True)
class NamespaceCounters:
    """What the scheduler counts for each namespace, since its start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class Counters(NamespaceCounters):
    """What the scheduler counts, since its start."""

    steps: int = 0
    forced_tokens: int = 0
    computed_tokens: int = 0
    """New tokens of all steps: the scheduler's measure of time."""
    retractions: int = 0
    namespaces: dict[str | None, NamespaceCounters] = field(default_factory=dict)

    def admitted(self, request: Request) -> None:
        """The request was admitted for the first time."""
        for counters in (self, self._of(request)):
            counters.cached_tokens += request.cached_tokens
            counters.prompt_tokens += len(request.prompt)

    def generated(self, request: Request) -> None:
        """The request has one token more."""
        for counters in (self, self._of(request)):
            counters.generated_tokens += 1

    def _of(self, request: Request) -> NamespaceCounters:
        """Those of the request's namespace. The one that was asked for last is kept longest."""
        counters = self.namespaces.pop(request.namespace, None) or NamespaceCounters()
        if len(self.namespaces) >= _MOST_NAMESPACES:
            del self.namespaces[next(iter(self.namespaces))]
        self.namespaces[request.namespace] = counters
        return counters
