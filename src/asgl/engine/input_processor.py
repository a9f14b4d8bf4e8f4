"""Makes requests of what is asked for: checks the parameters, heals the end of the prompt, and
gives each generation an output that knows its stops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

from asgl.engine.healing import HealedBeginning, Healer
from asgl.engine.output import OutputText
from asgl.engine.stop_regex import compiled
from asgl.errors import ConfigError, ContextLengthError
from asgl.execution.grammar import Grammar
from asgl.models.tokenizer import Tokenizer
from asgl.sampling import SamplingParams
from asgl.scheduling.request import Request

_CHARACTER = 4
"""The most bytes, and so the most tokens, that a character has."""


class InputProcessor:
    """Makes requests for one model. context_length: in tokens."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length

    def check_sampling(self, params: SamplingParams) -> None:
        """ConfigError if the parameters name a token that the model does not have, or have a
        stop_regex that is none."""
        for pattern in params.stop_regex or ():
            compiled(pattern)
        for token in (*(params.stop_token_ids or ()), *(params.logit_bias or ())):
            if token >= self._tokenizer.vocabulary:
                raise ConfigError(
                    f"there is no token {token}: the model's vocabulary has "
                    f"{self._tokenizer.vocabulary} tokens"
                )

    def heal(self, prompt: Sequence[int]) -> tuple[int, str]:
        """How many tokens at the end of the prompt to generate once more, and their text: see
        `healing`."""
        return self._healer.tail(prompt)

    @cached_property
    def _healer(self) -> Healer:
        return Healer(self._tokenizer)

    def generation(
        self,
        number: int,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        logprobs: int | None,
        end_tokens: Sequence[int],
        grammar: Grammar | None,
        namespace: str | None,
        priority: int,
    ) -> tuple[Request, OutputText]:
        """The request of a generation, and its output: see `Engine.generate` for the parameters.

        number: the request's id. `max_tokens` is cut to what the context leaves. ConfigError if
        `params` are not complete.
        """
        spec = params.spec(seed=seed, logprobs=logprobs)
        assert params.max_tokens is not None
        stop_tokens = params.stop_token_ids or ()
        healed, given = self.heal(prompt) if params.token_healing and grammar is None else (0, "")
        prompt = prompt[: len(prompt) - healed]
        begun = b"" if healed else self._tokenizer.cut_bytes(prompt[-_CHARACTER:])
        output = OutputText(
            partial(self._tokenizer.detokenizer, begun=begun),
            stops=params.stop or (),
            stop_regexes=params.stop_regex or (),
            stop_tokens=stop_tokens,
            end_tokens=end_tokens,
            keep_stop=bool(params.keep_stop),
            min_tokens=params.min_tokens or 0,
            given=given,
            healed=healed,
        )
        matcher = None
        if grammar is not None:
            matcher = grammar.matcher(end_tokens, params.min_tokens or 0)
        elif healed:
            matcher = HealedBeginning(self._healer, given)
        request = Request(
            number,
            prompt,
            max_tokens=min(params.max_tokens, max(self._context_length - len(prompt), 0)),
            spec=spec,
            output=output,
            min_tokens=params.min_tokens or 0,
            banned=(*end_tokens, *stop_tokens),
            grammar=matcher,
            namespace=namespace,
            priority=priority,
        )
        return request, output

    def too_long(self, request: Request, beyond: int, what: str) -> ContextLengthError | None:
        """An error if the prompt and `beyond` more tokens are longer than the context. what: says
        in its message what is too long."""
        if len(request.prompt) + beyond <= self._context_length:
            return None
        return ContextLengthError(
            f"the prompt's {len(request.prompt)} tokens {what}: the model's context has "
            f"{self._context_length}. Shorten the prompt",
            tokens=len(request.prompt),
            limit=self._context_length,
            request_id=request.id,
        )
