"""What is asked for, made into requests: complete parameters, a prompt healed at its end, an output
that knows its stops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

from asgl.engine.healing import HealedBeginning, Healer
from asgl.engine.output import OutputText
from asgl.engine.stop_regex import compiled
from asgl.errors import ConfigError, ContextLengthError
from asgl.execution.grammar import Grammar
from asgl.models.tokenizer import Tokenizer
from asgl.sampling import SamplingParams, SamplingSpec
from asgl.scheduling.request import Request

T = TypeVar("T")


class Intake:
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
        """The request of a generation, and its output. `max_tokens` is cut to what the context
        leaves."""
        stop_tokens = params.stop_token_ids or ()
        healed, given = self.heal(prompt) if params.token_healing and grammar is None else (0, "")
        prompt = prompt[: len(prompt) - healed]
        output = OutputText(
            self._tokenizer.detokenizer,
            stops=params.stop or (),
            stop_regexes=params.stop_regex or (),
            stop_tokens=stop_tokens,
            end_tokens=end_tokens,
            keep_stop=bool(params.keep_stop),
            min_tokens=params.min_tokens or 0,
            given=given,
            healed=healed,
        )
        request = Request(
            number,
            prompt,
            max_tokens=min(
                _complete(params.max_tokens), max(self._context_length - len(prompt), 0)
            ),
            spec=_spec(params, seed, logprobs),
            output=output,
            min_tokens=params.min_tokens or 0,
            banned=(*end_tokens, *stop_tokens),
            grammar=grammar.matcher(end_tokens)
            if grammar is not None
            else HealedBeginning(self._healer, given)
            if healed
            else None,
            namespace=namespace,
            priority=priority,
        )
        return request, output

    def too_long(self, request: Request, beyond: int, what: str) -> ContextLengthError | None:
        """An error, if the prompt and `beyond` more tokens are longer than the context."""
        if len(request.prompt) + beyond <= self._context_length:
            return None
        return ContextLengthError(
            f"the prompt's {len(request.prompt)} tokens {what}: the model's context has "
            f"{self._context_length}. "
            "Shorten the prompt",
            tokens=len(request.prompt),
            limit=self._context_length,
            request_id=request.id,
        )


def _complete(value: T | None) -> T:
    if value is None:
        raise ConfigError(
            "the engine takes complete sampling parameters: merge them over the library's defaults"
        )
    return value


def _spec(params: SamplingParams, seed: int, logprobs: int | None) -> SamplingSpec:
    return SamplingSpec(
        temperature=_complete(params.temperature),
        top_p=_complete(params.top_p),
        top_k=_complete(params.top_k),
        min_p=_complete(params.min_p),
        frequency_penalty=_complete(params.frequency_penalty),
        presence_penalty=_complete(params.presence_penalty),
        repetition_penalty=_complete(params.repetition_penalty),
        logit_bias=tuple((params.logit_bias or {}).items()),
        seed=seed,
        logprobs=logprobs,
    )
