"""How a generation grows: a token is taken, the output says whether it ends there, and the grammar
what it forces next."""

from __future__ import annotations

from asgl.plan import SampledToken
from asgl.scheduling.counters import Counters
from asgl.scheduling.sequence import SequenceState, Update
from asgl.types import FinishReason


class Generation:
    """Appends tokens to sequences. counters: counts them. updates: gets the news of all tokens but
    the last of each call. jump_forward: tokens that a grammar forces are appended at once; else one
    is sampled after the other.
    """

    def __init__(self, counters: Counters, updates: list[Update], *, jump_forward: bool) -> None:
        self._counters = counters
        self._updates = updates
        self._jump_forward = jump_forward

    def begin(self, sequence: SequenceState) -> tuple[SampledToken | None, FinishReason | None]:
        """As `grow`, before the first token."""
        return self._jump(sequence, None, None)

    def grow(
        self, sequence: SequenceState, token: SampledToken
    ) -> tuple[SampledToken | None, FinishReason | None]:
        """Appends a sampled token and those that the grammar forces after it. Returns the last one,
        and the reason if the generation ends there."""
        return self._jump(sequence, token, self._take(sequence, token))

    def _take(self, sequence: SequenceState, token: SampledToken) -> FinishReason | None:
        """Appends a token; the reason if the generation ends with it."""
        sequence.tokens.append(token.token_id)
        self._counters.generated(sequence)
        grammar, output = sequence.grammar, sequence.request.output
        if grammar is not None and grammar.ends(token.token_id):
            return "grammar"
        reason = output.push(token.token_id) if output is not None else None
        if reason is None and grammar is not None:
            grammar.push(token.token_id)
            if grammar.free:
                sequence.grammar = None  # from now on steps can be planned ahead
        return reason

    def _jump(
        self, sequence: SequenceState, last: SampledToken | None, reason: FinishReason | None
    ) -> tuple[SampledToken | None, FinishReason | None]:
        """Appends the tokens that the grammar forces after the token `last`, unless that ended the
        generation for a `reason`.

        What was appended has no keys and values yet: the next step computes all of it at once.
        Where log-probabilities are asked for, nothing is appended that was not sampled.
        """
        request, grammar = sequence.request, sequence.grammar
        jumps = grammar is not None and self._jump_forward and request.spec.logprobs is None
        while grammar is not None and jumps and reason is None and (forced := grammar.forced()):
            room = request.max_tokens - sequence.generated
            if room <= 0:
                break
            for token_id in forced[:room]:
                if last is not None:
                    self._updates.append(Update(sequence, last))
                last = SampledToken(token_id, forced=True)
                self._counters.forced_tokens += 1
                reason = self._take(sequence, last)
                if reason is not None:
                    break
        if reason is None and grammar is not None and grammar.complete:
            reason = "grammar"
        if reason is None and 0 < request.max_tokens <= sequence.generated:
            reason = "length"
        return last, reason
