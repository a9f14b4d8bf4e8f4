"""asgl as an engine of the benchmarks: prompts are its own streams, forks its own forks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

import asgl
from asgl.engine.engine import Engine
from asgl.engine.ticket import Ticket
from asgl.language.stream import PromptStream
from bench.ablations import Variant, make_scheduler
from bench.client import Options, Prompt, Usage


class Recorder:
    """Stands between the language and the engine, and keeps the ticket of every request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tickets: list[Ticket] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *arguments: Any, **options: Any) -> Ticket:
        return self._kept(self._engine.generate(*arguments, **options))

    def score(self, *arguments: Any, **options: Any) -> Ticket:
        return self._kept(self._engine.score(*arguments, **options))

    def extend(self, *arguments: Any, **options: Any) -> Ticket:
        return self._kept(self._engine.extend(*arguments, **options))

    def _kept(self, ticket: Ticket) -> Ticket:
        self.tickets.append(ticket)
        return ticket


class AsglClient:
    """One run on an open Runtime, as one of the variants. Makes the engine's cache empty.

    What it takes is not public: the Runtime's engine, for a scheduler that lacks a part, and the
    session's engine, to see the tokens of each request, from which the optimum is computed. Neither
    is of use to programs.
    """

    def __init__(self, runtime: asgl.Runtime, variant: Variant, salt: str = "") -> None:
        opened = runtime._running
        opened.engine.scheduler = make_scheduler(variant, opened.engine.scheduler)
        self._recorder = Recorder(opened.engine)
        opened.session.context.engine = self._recorder  # pyright: ignore[reportAttributeAccessIssue]
        self._runtime = runtime
        self._variant = variant
        self._salt = salt

    def prompt(self, text: str = "") -> AsglPrompt:
        lock = asyncio.Lock() if self._variant.sequential else None
        return AsglPrompt(self, self._runtime.prompt(self._salt + text), lock)

    def copy(self, stream: PromptStream, lock: asyncio.Lock | None) -> AsglPrompt:
        """A prompt of its own with the text of the stream."""
        return AsglPrompt(self, self._runtime.prompt(stream.text), lock)

    @property
    def forks_streams(self) -> bool:
        return self._variant.forks_streams

    @property
    def tickets(self) -> list[Ticket]:
        return self._recorder.tickets

    @property
    def usages(self) -> list[Usage]:
        return [
            Usage(
                ticket.prompt_tokens,
                ticket.cached_tokens,
                ticket.generated_tokens,
                None
                if ticket.first_token_at is None
                else ticket.first_token_at - ticket.submitted_at,
            )
            for ticket in self.tickets
        ]


class AsglPrompt:
    """A PromptStream. `lock`: held while one of the program's generations runs, for programs
    without parallelism."""

    def __init__(self, client: AsglClient, stream: PromptStream, lock: asyncio.Lock | None) -> None:
        self._client = client
        self._stream = stream
        self._turn: AbstractAsyncContextManager[Any] = lock or nullcontext()
        self._lock = lock

    def append(self, text: str) -> None:
        self._stream.append(text)

    async def gen(self, options: Options) -> str:
        more: dict[str, Any] = {}
        if options.regex is not None:
            more["regex"] = options.regex
        if options.schema is not None:
            more["json_schema"] = options.schema
        async with self._turn:
            handle = self._stream.gen(
                max_tokens=options.max_tokens,
                stop=options.stop,
                temperature=options.temperature,
                seed=options.seed,
                ignore_eos=options.exact,
                **more,
            )
            await handle
        return handle.text

    async def select(self, choices: Sequence[str]) -> int:
        async with self._turn:
            handle = self._stream.select(None, choices)
            await handle
        assert handle.index is not None
        return handle.index

    @asynccontextmanager
    async def fork(self, n: int) -> AsyncIterator[Sequence[Prompt]]:
        if not self._client.forks_streams:
            yield [self._client.copy(self._stream, self._lock) for _ in range(n)]
            return
        async with self._stream.fork(n) as branches:
            yield [AsglPrompt(self._client, branch, self._lock) for branch in branches]
