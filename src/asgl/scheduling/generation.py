"""How a generation grows: a token is taken, the output says whether it ends there, and the grammar
what it forces next."""

from __future__ import annotations

from asgl.plan import SampledToken
from asgl.scheduling.counters import Counters
from asgl.scheduling.request import Request, Update
from asgl.types import FinishReason


class Generation:
    """Appends tokens to requests. `updates` gets the news of all tokens but the last of each call.

    jump: whether tokens that a grammar forces are appended at once; else one is sampled after the
    other.
    """

    def __init__(self, counters: Counters, updates: list[Update]) -> None:
        self._counters = counters
        self._updates = updates

    def begin(
        self, request: Request, *, jump: bool
    ) -> tuple[SampledToken | None, FinishReason | None]:
        """As `grow`, before the first token."""
        return self._go_on(request, None, None, jump)

    def grow(
        self, request: Request, token: SampledToken, *, jump: bool
    ) -> tuple[SampledToken | None, FinishReason | None]:
        """Appends a sampled token and those that the grammar forces after it: the last one, and the
        reason if it ends there."""
        return self._go_on(request, token, self._take(request, token), jump)

    def _take(self, request: Request, token: SampledToken) -> FinishReason | None:
        """Appends a token; the reason if the generation ends with it."""
        request.tokens.append(token.token_id)
        self._counters.generated(request)
        grammar = request.grammar
        if grammar is not None and grammar.ends(token.token_id):
            return "grammar"
        reason = request.output.push(token.token_id) if request.output is not None else None
        if reason is None and grammar is not None:
            grammar.push(token.token_id)
            if grammar.free:
                request.grammar = None  # from now on steps can be planned ahead
        return reason

    def _go_on(
        self, request: Request, last: SampledToken | None, reason: FinishReason | None, jump: bool
    ) -> tuple[SampledToken | None, FinishReason | None]:
        """Appends the tokens that the grammar forces after the token `last`, which ended the
        generation with `reason` or did not.

        Gives the news of all tokens but the last; returns that one, and the reason if the
        generation ends with it. What was appended has no keys and values yet: the next step
        computes all of it at once. Where log-probabilities are asked for, nothing is appended that
        was not sampled.
        """
        grammar = request.grammar
        jumps = grammar is not None and jump and request.spec.logprobs is None
        while grammar is not None and jumps and reason is None and (forced := grammar.forced()):
            room = request.max_tokens - request.generated
            if room <= 0:
                break
            for token_id in forced[:room]:
                if last is not None:
                    self._updates.append(Update(request, last))
                last = SampledToken(token_id)
                self._counters.forced_tokens += 1
                reason = self._take(request, last)
                if reason is not None:
                    break
        if reason is None and grammar is not None and grammar.complete:
            reason = "grammar"
        if reason is None and 0 < request.max_tokens <= request.generated:
            reason = "length"
        return last, reason
