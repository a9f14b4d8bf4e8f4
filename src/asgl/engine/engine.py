"""The engine: three beats a step. Plan (scheduler), run (the device thread), commit (scheduler),
and deliver what came of it.

Everything here runs on the event loop; only the runner runs elsewhere, and on devices that take two
steps at once the next one is planned while it does: see `pipeline`. `generate`, `score` and
`extend` are synchronous: they queue the request and wake the loop.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import anyio.to_thread

from asgl.engine.device import DeviceThread
from asgl.engine.input_processor import InputProcessor
from asgl.engine.kv_files import SavedState
from asgl.engine.output_processor import OutputProcessor
from asgl.engine.pipeline import Pipeline, PlannedStep
from asgl.engine.ticket import Ticket
from asgl.errors import AsglError, EngineClosedError, EngineCrashedError, EngineError, RequestError
from asgl.execution.grammar import Compiler, Grammar
from asgl.execution.runner import Runner
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import Tokenizer
from asgl.plan import INT, StepResult
from asgl.sampling import LIBRARY_DEFAULTS, SamplingParams
from asgl.scheduling.request import Request
from asgl.scheduling.scheduler import Scheduler
from asgl.trace import EvictionEvent, StepEvent, Tracers
from asgl.types import EngineStatistics, NamespaceStatistics

T = TypeVar("T")

_SETTLING_TURNS = 3
"""Turns of the event loop that programs get after requests have ended, so that what they submit
next is in the next step."""


class Engine:
    """Serves requests until it is closed. Belongs to the event loop in which `start` was called.

    runner: computes steps, on the thread `device`. scheduler: plans them. tokenizer, chat_template,
    defaults: of the model and its Runtime; the engine itself only makes detokenizers, the rest is
    for the language above. context_length: of the model, in tokens. tracers: hear of requests and
    steps. fingerprint: of the model, for files. clock: gives seconds, for the times in tickets and
    statistics.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        device: DeviceThread,
        *,
        tokenizer: Tokenizer,
        context_length: int,
        chat_template: ChatTemplate | None = None,
        defaults: SamplingParams = LIBRARY_DEFAULTS,
        tracers: Tracers | None = None,
        fingerprint: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.context_length = context_length
        self.defaults = defaults.over(LIBRARY_DEFAULTS)
        self.tracers = tracers if tracers is not None else Tracers()
        self.grammars = Compiler(tokenizer)
        """Compiles what `generate` takes as its grammar. Slow: for `run_in_thread`."""
        self.runner = runner
        self._device = device
        self._pipeline = Pipeline(runner, device)
        self._wake = asyncio.Event()
        self.saved = SavedState(
            scheduler.kv_cache,
            device,
            runner,
            fingerprint,
            spare=lambda: scheduler.spare,
            on_change=self._wake.set,
        )
        """Saves what is cached to files, and loads it."""
        self._clock = clock
        self._inputs = InputProcessor(tokenizer, context_length)
        self._outputs = OutputProcessor(self.tracers, clock, lambda ids: tokenizer.decode(ids))
        self._evictions_told = 0
        self._next_id = 0
        self._pins: dict[int, asyncio.TimerHandle] = {}
        self._cancelled = 0
        self._plan_seconds = self._run_seconds = self._idle_seconds = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.end: EngineError | None = None
        """Why the engine serves no more; None while it serves."""

    # --- requests ---------------------------------------------------------------------------------

    def check_sampling(self, params: SamplingParams) -> None:
        """ConfigError if the parameters name a token that the model does not have, or have a
        stop_regex that is none."""
        self._inputs.check_sampling(params)

    def heal(self, prompt: Sequence[int]) -> tuple[int, str]:
        """How many tokens at the end of the prompt to generate once more, and their text: see
        `healing`."""
        return self._inputs.heal(prompt)

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        logprobs: int | None = None,
        end_tokens: Sequence[int] = (),
        grammar: Grammar | None = None,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        """Generates tokens after `prompt`.

        prompt: token ids. params: complete, see `SamplingParams.over`; `max_tokens` is cut to what
        the model's context leaves. seed: of the request's random draws. logprobs: how many of the
        likeliest tokens to report with each; None reports no log-probabilities. end_tokens: end the
        generation with reason "eos"; with a grammar only where the text may end. grammar: of
        `grammars`; the reason is "grammar" once nothing may follow. namespace: no cached prefix is
        shared with another one. priority: higher ones are admitted first. asked: becomes
        `Ticket.asked`.

        What is wrong with the request settles the ticket before this returns.
        """
        request, output = self._inputs.generation(
            self._new_id(),
            prompt,
            params,
            seed=seed,
            logprobs=logprobs,
            end_tokens=end_tokens,
            grammar=grammar,
            namespace=namespace,
            priority=priority,
        )
        ticket = Ticket(request, output, self._clock(), asked)
        error = self._inputs.too_long(request, 1, "leave no room to generate")
        if error is None and request.max_tokens == 0:
            self._outputs.add(ticket)
            self._outputs.settle(ticket, reason="length")
            return ticket
        return self._submit(ticket, error)

    def score(
        self,
        prompt: Sequence[int],
        options: Sequence[Sequence[int]],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        """Scores each option, as token ids, as a continuation of `prompt`:
        `ticket.option_logprobs`, in the order of the options. The rest as for `generate`."""
        request = Request(
            self._new_id(),
            prompt,
            options=options,
            namespace=namespace,
            priority=priority,
        )
        ticket = Ticket(request, None, self._clock(), asked)
        longest = max(map(len, options), default=0)
        return self._submit(
            ticket, self._inputs.too_long(request, longest, "and the longest option are too long")
        )

    def extend(
        self,
        prompt: Sequence[int],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        """Computes the keys and values of `prompt`, so that they are in the cache. The rest as for
        `generate`."""
        request = Request(self._new_id(), prompt, namespace=namespace, priority=priority)
        ticket = Ticket(request, None, self._clock(), asked)
        return self._submit(ticket, self._inputs.too_long(request, 0, "are too many"))

    def cancel(self, ticket: Ticket) -> None:
        """Settles the ticket without telling its submitter. No step that is planned from now on
        computes the request; those in flight still do. Idempotent."""
        if ticket.settled:
            return
        self._cancelled += 1
        self._cancel_request(ticket)
        self._outputs.withdraw(ticket)
        self._wake.set()

    def stop(self, ticket: Ticket) -> None:
        """Ends a generation now, with what it has: finish reason "stopped". Idempotent."""
        if ticket.settled:
            return
        # its output has seen tokens that the ticket has not, and they may have ended it
        self._deliver()
        if not ticket.settled:
            self._cancel_request(ticket)
            self._outputs.settle(ticket, reason="stopped")
            self._wake.set()

    def flush_cache(self) -> int:
        """Evicts all that no running request reads. Returns how many tokens that was."""
        flushed = self.scheduler.kv_cache.flush()
        if self.tracers and flushed:
            self._evictions_told = self.scheduler.kv_cache.cache.evicted
            self.tracers.emit(EvictionEvent(flushed, "flush"))
        return flushed

    def pin(self, tokens: Sequence[int], *, namespace: str | None = None, seconds: float) -> int:
        """Keeps what is cached of `tokens` from eviction for so many seconds, unless a request
        could not run otherwise. Returns how many tokens are kept."""
        self._check_loop()
        assert self._loop is not None
        number, length = self.scheduler.kv_cache.pin(array(INT, tokens), namespace)
        self._pins[number] = self._loop.call_later(seconds, self._unpin, number)
        return length

    def _unpin(self, number: int) -> None:
        del self._pins[number]
        # nobody is to be woken: while nothing runs, pins yield to who waits
        self.scheduler.kv_cache.unpin(number)

    def _cancel_request(self, ticket: Ticket) -> None:
        if ticket.sequence is not None:
            self.scheduler.cancel(ticket.sequence)

    def _new_id(self) -> int:
        self._check_loop()
        self._next_id += 1
        return self._next_id

    def _check_loop(self) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            raise EngineError("a Runtime can only be used in the event loop in which it was opened")

    def _submit(self, ticket: Ticket, error: AsglError | None = None) -> Ticket:
        """Queues the ticket's request, or settles it with what is wrong with it."""
        error = error or self.end
        if error is None:
            try:
                ticket.sequence = self.scheduler.submit(ticket.request)
            except RequestError as refused:
                error = refused
        if error is not None:
            self._outputs.settle(ticket, error=error)
            return ticket
        self._outputs.add(ticket)
        self._wake.set()
        return ticket

    # --- the loop ---------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._serve(), name="asgl-engine")

    async def close(self) -> None:
        """Ends every request with EngineClosedError, waits for the step in flight, and frees the
        runner. Idempotent."""
        self._finish(EngineClosedError("the Runtime was closed"))
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task = None
            await self._device.run(self.runner.close)

    async def _serve(self) -> None:
        """Plans, runs and commits until the engine has ended and nothing is in flight."""
        try:
            while self.end is None or self._pipeline.in_flight:
                began = self._clock()
                plan = self.scheduler.plan()
                if self.tracers:
                    self._tell_of_evictions("room", None if plan is None else plan.number)
                settled = self._deliver()
                planned = self._clock()
                self._plan_seconds += planned - began
                if plan is not None:
                    await self._pipeline.launch(PlannedStep(plan, planned - began))
                    if not self._pipeline.full:
                        continue
                if self._pipeline.in_flight:
                    settled |= self._commit(*await self._pipeline.collect())
                elif not settled:
                    await self._wake.wait()
                    self._wake.clear()
                    self._idle_seconds += self._clock() - planned
                for _ in range(_SETTLING_TURNS if settled else 0):
                    await asyncio.sleep(0)
        except GeneratorExit:
            raise  # the loop was closed: nobody waits any more, and nothing can be waited for
        except BaseException as error:
            why: EngineError
            if isinstance(error, asyncio.CancelledError) and self._task_is_cancelled():
                why = EngineClosedError(
                    "the engine was stopped: its task was cancelled, as event loops do with all "
                    "tasks when they are interrupted"
                )
            else:
                why = EngineCrashedError(
                    f"the engine has stopped, because a step failed: {error!r}"
                )
                why.__cause__ = error
            try:
                await self._pipeline.drain()
                self.scheduler.abandon()
            finally:
                self._finish(why)
            if not isinstance(error, Exception):
                raise

    def _task_is_cancelled(self) -> bool:
        """Whether somebody outside has cancelled the task of the engine."""
        return self._task is not None and self._task.cancelling() > 0

    def _commit(self, step: PlannedStep, result: StepResult) -> bool:
        """Takes what a step gave, and delivers it; whether any ticket was settled."""
        began = self._clock()
        rows = self.scheduler.rows_in_flight() if self.tracers else ()
        self.scheduler.commit(result)
        settled = self._deliver()
        self._run_seconds += result.seconds
        self._plan_seconds += self._clock() - began
        if self.tracers:
            self._tell_of_evictions("poisoned")
            self._emit_step(step, result, rows)
        return settled

    def _deliver(self) -> bool:
        """Hands the scheduler's updates to the tickets; whether any was settled."""
        return self._outputs.deliver(self.scheduler.take_updates())

    def _finish(self, why: EngineError) -> None:
        """Stops serving: everything that waits ends with `why`."""
        if self.end is not None:
            return
        self.end = why
        for number, timer in list(self._pins.items()):
            timer.cancel()
            self._unpin(number)
        for ticket in self._outputs.open:
            if ticket.settled:
                continue  # a callback of another one has cancelled it, just now
            self._cancel_request(ticket)
            self._outputs.settle(ticket, error=why)
        self._wake.set()

    async def run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Runs slow work that touches no tensor beside the event loop."""
        return await anyio.to_thread.run_sync(function, *args)

    # --- statistics -------------------------------------------------------------------------------

    def statistics(self) -> EngineStatistics:
        scheduler, counters = self.scheduler, self.scheduler.counters
        return EngineStatistics(
            capacity=scheduler.capacity,
            free=scheduler.kv_cache.pool.free,
            evictable=scheduler.kv_cache.cache.evictable,
            pinned=scheduler.kv_cache.cache.pinned,
            running=len(scheduler.running),
            waiting=scheduler.waiting,
            steps=counters.steps,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            forced_tokens=counters.forced_tokens,
            evicted_tokens=scheduler.kv_cache.cache.evicted,
            retractions=counters.retractions,
            cancelled=self._cancelled,
            plan_seconds=self._plan_seconds,
            run_seconds=self._run_seconds,
            idle_seconds=self._idle_seconds,
            namespaces={
                name: NamespaceStatistics(
                    seen.prompt_tokens, seen.cached_tokens, seen.generated_tokens
                )
                for name, seen in counters.namespaces.items()
            },
        )

    def _tell_of_evictions(
        self, cause: Literal["room", "poisoned"], step: int | None = None
    ) -> None:
        evicted = self.scheduler.kv_cache.cache.evicted
        if new := evicted - self._evictions_told:
            self._evictions_told = evicted
            self.tracers.emit(EvictionEvent(new, cause, step))

    def _emit_step(
        self, step: PlannedStep, result: StepResult, rows: tuple[tuple[int, int], ...]
    ) -> None:
        scheduler, plan = self.scheduler, step.plan
        self.tracers.emit(
            StepEvent(
                plan.number,
                plan.decode_rows,
                plan.rows - plan.decode_rows,
                plan.tokens,
                len(scheduler.running),
                scheduler.waiting,
                scheduler.kv_cache.pool.free,
                scheduler.kv_cache.cache.evictable,
                step.plan_seconds,
                result.seconds,
                rows,
            )
        )
