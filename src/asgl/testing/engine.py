"""An engine that says what a script says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from asgl.engine.events import RequestKind, tell_of_request, tell_of_token
from asgl.engine.output import OutputText
from asgl.engine.ticket import Ticket
from asgl.errors import ContextLengthError, EngineClosedError
from asgl.execution.grammar import Compiler, Grammar, Matcher
from asgl.language.ops import Gen, Select
from asgl.plan import SampledToken
from asgl.sampling import SamplingParams
from asgl.scheduling.request import Request
from asgl.testing.constraints import ByteVocabulary
from asgl.testing.saved import SavedAsJson
from asgl.testing.script import ScriptedAnswers, ScriptError
from asgl.testing.words import EOS, ChatML, Words, WordTokenizer
from asgl.trace import StepEvent, Tracers
from asgl.types import EngineStatistics, FinishReason


class ScriptedEngine:
    """Serves a Session: `asgl.language.backend.Engine`, and what a Runtime asks besides."""

    def __init__(
        self,
        answers: ScriptedAnswers,
        defaults: SamplingParams,
        context_length: int,
        tracers: Tracers,
    ) -> None:
        self.tokenizer = WordTokenizer()
        self.chat_template = ChatML()
        self.grammars = Compiler(ByteVocabulary())
        self.saved = SavedAsJson(self.tokenizer)
        self.tracers, self.defaults = tracers, defaults
        self._answers, self._context_length = answers, context_length
        self._loop = asyncio.get_running_loop()
        self._ids = count()
        self._running: dict[Ticket, Iterator[int]] = {}
        """For each request the tokens that it is still to say."""
        self._ticking = False
        self.end: EngineClosedError | None = None
        self._prompt_tokens = self._generated_tokens = self._cancelled = self._steps = 0

    # --- requests

    def check_sampling(self, params: SamplingParams, /) -> None:
        """All parameters fit a script."""

    def heal(self, prompt: Sequence[int], /) -> tuple[int, str]:
        """Words are whole: nothing is to be healed."""
        return 0, ""

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        logprobs: int | None,
        end_tokens: Sequence[int],
        grammar: Grammar | None = None,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        output = OutputText(
            lambda: Words(self.tokenizer),
            stops=params.stop or (),
            stop_regexes=params.stop_regex or (),
            stop_tokens=params.stop_token_ids or (),
            end_tokens=end_tokens,
            keep_stop=bool(params.keep_stop),
            min_tokens=params.min_tokens or 0,
        )
        assert params.max_tokens is not None
        room = max(0, self._context_length - len(prompt))
        matcher = grammar.matcher(()) if grammar is not None else None
        ticket = self._ticket(prompt, asked, output, min(params.max_tokens, room), matcher)
        if not room:
            return self._refuse(ticket, self._too_long(prompt))
        if not isinstance(asked, Gen):
            error = ScriptError("a script has no distribution of tokens: use a model for this")
            return self._refuse(ticket, error)
        try:
            answer = self._answers.next(asked, self.tokenizer.decode(prompt), grammar)
        except Exception as error:  # ScriptError, or what a function of the script raised
            answer = error
        if isinstance(answer, BaseException):
            return self._refuse(ticket, answer)
        if not ticket.request.max_tokens:
            self._settle(ticket, reason="length")
            return ticket
        return self._start(ticket, iter([*self.tokenizer.encode(answer), EOS]))

    def score(
        self,
        prompt: Sequence[int],
        options: Sequence[Sequence[int]],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        ticket = self._ticket(prompt, asked, options=options)
        if len(prompt) + max(map(len, options)) > self._context_length:
            return self._refuse(ticket, self._too_long(prompt))
        chosen = -1
        if isinstance(
            asked, Select
        ):  # else the options are scored by themselves, and all are alike
            try:
                chosen = self._answers.next(asked, self.tokenizer.decode(prompt))
            except Exception as error:
                return self._refuse(ticket, error)
            if isinstance(chosen, BaseException):
                return self._refuse(ticket, chosen)
        ticket.option_logprobs = [
            [0.0 if index == chosen else -1.0] * len(option) for index, option in enumerate(options)
        ]
        return self._start(ticket, iter(()))

    def extend(
        self,
        prompt: Sequence[int],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        ticket = self._ticket(prompt, asked)
        if len(prompt) > self._context_length:
            return self._refuse(ticket, self._too_long(prompt))
        return self._start(ticket, iter(()))

    def cancel(self, ticket: Ticket, /) -> None:
        if not ticket.settled:
            del self._running[ticket]
            self._cancelled += 1
            ticket.withdraw(self._loop.time())
            self._tell("cancelled", ticket)

    def stop(self, ticket: Ticket, /) -> None:
        if not ticket.settled:
            self._settle(ticket, reason="stopped")

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    # --- what a Runtime asks besides

    def statistics(self) -> EngineStatistics:
        """There is no cache, so it counts requests and tokens only."""
        return EngineStatistics(
            capacity=0,
            free=0,
            evictable=0,
            pinned=0,
            running=len(self._running),
            waiting=0,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=0,
            generated_tokens=self._generated_tokens,
            forced_tokens=0,
            evicted_tokens=0,
            retractions=0,
            cancelled=self._cancelled,
            plan_seconds=0.0,
            run_seconds=0.0,
            idle_seconds=0.0,
            namespaces={},
        )

    def flush_cache(self) -> int:
        return 0

    def pin(self, tokens: Sequence[int], *, namespace: str | None = None, seconds: float) -> int:
        """There is no cache to keep anything in."""
        return len(tokens)

    async def close(self) -> None:
        self.end = EngineClosedError("the Runtime was closed")
        for ticket in list(self._running):
            self._settle(ticket, error=self.end)
        await asyncio.sleep(0)

    # --- inside

    def _ticket(
        self,
        prompt: Sequence[int],
        asked: object,
        output: OutputText | None = None,
        max_tokens: int = 0,
        grammar: Matcher | None = None,
        options: Sequence[Sequence[int]] | None = None,
    ) -> Ticket:
        request = Request(
            next(self._ids), prompt, max_tokens=max_tokens, grammar=grammar, options=options
        )
        return Ticket(request, output, self._loop.time(), asked)

    def _too_long(self, prompt: Sequence[int]) -> ContextLengthError:
        return ContextLengthError(
            f"the prompt's {len(prompt)} tokens leave no room: the context has "
            f"{self._context_length}",
            tokens=len(prompt),
            limit=self._context_length,
        )

    def _refuse(self, ticket: Ticket, error: BaseException) -> Ticket:
        self._tell("failed", ticket, repr(error))
        ticket.finish(self._loop.time(), error=error)
        return ticket

    def _start(self, ticket: Ticket, tokens: Iterator[int]) -> Ticket:
        if self.end is not None:
            return self._refuse(ticket, self.end)
        self._running[ticket] = tokens
        self._prompt_tokens += ticket.prompt_tokens
        self._tell("submitted", ticket)
        self._tell("admitted", ticket)
        self._tick()
        return ticket

    def _tick(self) -> None:
        if self._running and not self._ticking:
            self._ticking = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """One token for every request that runs."""
        rows = list(self._running.items())
        if self.tracers:
            self._tell_of_step([ticket for ticket, _ in rows])
        self._steps += 1
        for ticket, tokens in rows:
            if ticket.settled:
                continue
            if ticket.output is None:
                self._settle(ticket)
            else:
                self._say(ticket, ticket.output, next(tokens, EOS))
        self._ticking = False
        self._tick()

    def _say(self, ticket: Ticket, output: OutputText, token: int) -> None:
        ticket.first_token_at = ticket.first_token_at or self._loop.time()
        ticket.tokens.append(SampledToken(token, 0.0, ((token, 0.0),)))
        self._generated_tokens += 1
        reason = output.push(token)
        matcher = ticket.request.grammar
        if self.tracers:
            constrained, decode = matcher is not None, self.tokenizer.decode
            tell_of_token(self.tracers, ticket, ticket.tokens[-1], constrained, decode)
        if reason is None and matcher is not None:
            for byte in self.tokenizer.token_bytes(token):
                matcher.push(byte)
            reason = "grammar" if matcher.complete else None
        if reason is None and (token == EOS or len(ticket.tokens) == ticket.request.max_tokens):
            reason = "eos" if token == EOS else "length"
        if reason is None:
            if ticket.on_progress is not None:
                ticket.on_progress()
        else:
            self._settle(ticket, reason=reason)

    def _settle(
        self,
        ticket: Ticket,
        *,
        reason: FinishReason | None = None,
        error: BaseException | None = None,
    ) -> None:
        self._running.pop(ticket, None)
        if ticket.output is not None and reason in ("length", "stopped", "grammar"):
            ticket.output.finish()
        if error is not None:
            self._tell("failed", ticket, repr(error))
        else:
            self._tell("finished", ticket, reason or "")
        ticket.finish(self._loop.time(), reason=reason, error=error)

    # --- what tracers are told

    def _tell(self, kind: RequestKind, ticket: Ticket, reason: str = "") -> None:
        if self.tracers:
            tell_of_request(self.tracers, kind, ticket, reason, generated=len(ticket.tokens))

    def _tell_of_step(self, tickets: list[Ticket]) -> None:
        rows = tuple((ticket.request_id, 1) for ticket in tickets)
        self.tracers.emit(
            StepEvent(self._steps, len(rows), 0, len(rows), len(rows), 0, 0, 0, 0.0, 0.0, rows)
        )
