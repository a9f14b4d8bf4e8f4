"""All prompt streams of one Runtime: their constructor, their end, and the failures that nobody has
seen."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path
from weakref import WeakSet

from asgl.errors import ConfigError, EngineClosedError
from asgl.language.backend import Engine
from asgl.language.budgets import Budget
from asgl.language.core import Core
from asgl.language.outcome import Failure, unseen_errors
from asgl.language.saved import from_json
from asgl.language.stream import PromptStream
from asgl.sampling import SamplingParams

_MOST_FAILURES = 1024


class Session:
    """Belongs to one Runtime, and to the event loop that it is made on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.streams: WeakSet[Core] = WeakSet()
        """Those that somebody still refers to."""
        self.lost_failures = 0
        """Failures that were not kept, since nobody had seen a thousand others: how many."""
        self._failures: list[Failure] = []
        self._ids = count()
        self._closed = False

    def prompt(
        self,
        text: str = "",
        *,
        sampling: SamplingParams | None = None,
        cache_salt: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        budget: Budget | None = None,
        name: str | None = None,
    ) -> PromptStream:
        """A new stream that begins with `text`. Its KV is shared only with streams of the same
        `cache_salt`.

        Each request to the engine that its ops make may take `deadline` seconds.

        ConfigError for a bad argument, EngineClosedError once the Runtime was left.
        """
        _check("text", text, str)
        _check("name", name, str, optional=True)
        self._check_prompt(sampling, cache_salt, priority, deadline, budget)
        core = Core(
            self,
            name=name,
            origin=(name, text),
            path=(),
            sampling=sampling or SamplingParams(),
            namespace=cache_salt,
            priority=priority,
            budgets=(budget,) if budget is not None else (),
            deadline=deadline,
        )
        if budget is not None:
            budget.start()
        core.emit_stream("opened")
        stream = PromptStream(core)
        if text:
            stream.append(text)
        return stream

    def _check_prompt(
        self,
        sampling: object,
        cache_salt: object,
        priority: object,
        deadline: object,
        budget: object,
    ) -> None:
        self.check_loop()
        if self._closed:
            raise EngineClosedError("the Runtime was left: make prompts inside its block")
        _check("sampling", sampling, SamplingParams, optional=True)
        _check("cache_salt", cache_salt, str, optional=True)
        _check("priority", priority, int)
        if deadline is not None and (
            isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline > 0
        ):
            raise ConfigError(f"deadline must be a number of seconds above 0, not {deadline!r}")
        _check("budget", budget, Budget, optional=True)

    def load(
        self,
        path: Path,
        *,
        kv: bool = True,
        sampling: SamplingParams | None = None,
        cache_salt: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        budget: Budget | None = None,
    ) -> PromptStream:
        """A stream that goes on from what `PromptStream.save` wrote. ModelError if the file is
        wrong."""
        self._check_prompt(sampling, cache_salt, priority, deadline, budget)
        state, has_kv = self.engine.saved.read_prompt(path, kv)
        prompt = from_json(state, str(path))
        core = Core.resumed(
            self,
            prompt.ops,
            prompt.snapshot,
            path if has_kv else None,
            name=prompt.name,
            origin=prompt.origin,
            path=prompt.path,
            sampling=sampling or SamplingParams(),
            namespace=cache_salt,
            priority=priority,
            deadline=deadline,
            budgets=(budget,) if budget is not None else (),
        )
        if budget is not None:
            budget.start()
        return PromptStream(core)

    async def aclose(self) -> None:
        """Closes all streams and cancels what runs on them. Idempotent."""
        self._closed = True
        for core in list(self.streams):
            core.close("the Runtime was left")
        await asyncio.sleep(0)

    def unseen_failures(self) -> list[BaseException]:
        """The failures of ops that nobody has seen, oldest first; each is given once."""
        failures, self._failures = self._failures, []
        return unseen_errors(failures)

    # --- for the streams

    def next_id(self) -> int:
        return next(self._ids)

    def record(self, failure: Failure) -> None:
        """Keeps a failure until somebody saw it."""
        if len(self._failures) >= _MOST_FAILURES:
            self._failures = [other for other in self._failures if not other.seen]
        if len(self._failures) < _MOST_FAILURES:
            self._failures.append(failure)
        else:
            self.lost_failures += 1

    def check_loop(self) -> None:
        """ConfigError if this is not the event loop of the Runtime."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self.loop:
            raise ConfigError(
                "a Runtime and its streams belong to the event loop that the Runtime was opened "
                "on, and this is "
                f"{'another one' if loop is not None else 'code outside of it'}: open a Runtime "
                "here"
            )


def _check(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    if (value is None and optional) or (isinstance(value, kind) and not isinstance(value, bool)):
        return
    raise ConfigError(
        f"{name} must be {kind.__name__}{' or None' if optional else ''}, not {value!r}"
    )
