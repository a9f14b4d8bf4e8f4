"""How many tokens a step may have: running decodes wait for all of it, so its length is bounded in
time, not in tokens alone."""

from __future__ import annotations

_LEAST = 32
"""Tokens that a step may have, however slow the device is: below that a prompt would take for
ever."""
_SAMPLE = 16
"""A step with fewer tokens of prompts says little about the time of one. Less than `_LEAST`: steps
of the smallest budget must still be learnt from, or it would never grow again."""


class StepBudget:
    """Learns from each step what a token of a prompt takes.

    most: tokens of a step at most. seconds: how long running decodes may wait for a step; None for
    as long as it takes.
    """

    def __init__(self, most: int, seconds: float | None) -> None:
        self._most = most
        self._seconds = seconds
        self._per_token = 0.0

    def tokens(self, decodes: int) -> int:
        """How many tokens the next step may have, while so many requests decode."""
        if self._seconds is None or not decodes or not self._per_token:
            return self._most
        return min(self._most, max(int(self._seconds / self._per_token), decodes + _LEAST))

    def learn(self, tokens: int, decodes: int, seconds: float) -> None:
        """Learns that a step of `tokens` tokens, of which `decodes` were decodes, took so long.
        Later tokens of a long prompt take longer, so the last step counts half."""
        if tokens - decodes >= _SAMPLE:
            per_token = seconds / tokens
            self._per_token = (self._per_token + per_token) / 2 if self._per_token else per_token
