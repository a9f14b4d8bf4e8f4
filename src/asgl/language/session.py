"""All prompt streams of one Runtime: how they are made, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from asgl.checks import integer, number
from asgl.errors import ConfigError, EngineClosedError
from asgl.language.backend import Engine
from asgl.language.budget import Budget
from asgl.language.context import SessionContext, StreamOptions
from asgl.language.executor import Executor
from asgl.language.internal_ops import StartFromFile
from asgl.language.message_list import Messages, messages
from asgl.language.saved_prompt import from_json
from asgl.language.stream import PromptStream
from asgl.sampling import SamplingParams


class PromptOptions(TypedDict, total=False):
    """The keyword arguments that `Runtime.prompt` and `Runtime.load` share.

    sampling: defaults for the ops of the prompt. cache_salt: keys and values are shared only with
    streams of the same salt. priority: higher ones are admitted first. deadline: seconds that each
    request to the engine may take. budget: bounds all ops of the prompt and its forks. template:
    values for variables of the model's chat template.
    """

    sampling: SamplingParams | None
    cache_salt: str | None
    priority: int
    deadline: float | None
    budget: Budget | None
    template: Mapping[str, Any] | None


class Session:
    """Belongs to one Runtime, and to the event loop that it is made on."""

    def __init__(self, engine: Engine) -> None:
        self.context = SessionContext(engine)

    def prompt(
        self,
        text: str | Messages = "",
        *,
        name: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> PromptStream:
        """A new stream that begins with `text`, or with messages. ConfigError for a bad argument,
        EngineClosedError once the Runtime was left."""
        self._check_open()
        _check("name", name, str, optional=True)
        content = text if isinstance(text, str) else messages(text)
        text = text if isinstance(text, str) else ""
        executor = Executor(self.context, stream_options(name, (name, text), **options))
        self._check_template(executor)
        executor.context.emit_stream("opened")
        stream = PromptStream(executor)
        if content != "":
            stream.append(content)
        return stream

    def load(
        self, path: Path, *, kv: bool = True, **options: Unpack[PromptOptions]
    ) -> PromptStream:
        """A stream that goes on from what `PromptStream.save` wrote. ModelError if the file is
        wrong."""
        self._check_open()
        stream_options(None, (None, ""), **options)  # what is wrong with them is said first
        state, has_kv = self.context.engine.saved.read_prompt(path, kv)
        prompt = from_json(state, str(path))
        options["template"] = options.get("template") or prompt.template
        executor = Executor(
            self.context,
            stream_options(prompt.name, prompt.origin, **options),
            path=prompt.path,
            ops=prompt.ops,
        )
        self._check_template(executor)
        executor.context.emit_stream("opened")
        executor.enqueue(StartFromFile(prompt.snapshot, path if has_kv else None))
        return PromptStream(executor)

    def check_owns(self, stream: PromptStream) -> None:
        """ConfigError if the stream is one of another Runtime."""
        context = stream._queue.executor("prefetch").context
        if context.session is not self.context:
            raise ConfigError(
                f"{context.describe()} belongs to another Runtime, which has a cache of its own: "
                "use the Runtime whose prompt() made it"
            )

    async def aclose(self) -> None:
        """Closes all streams and cancels what runs on them. Idempotent."""
        self.context.closed = "the Runtime was left"
        try:
            for task in self.context.tasks:
                task.cancel()
            while tasks := self.context.tasks:
                await asyncio.wait(tasks)
        finally:
            executors = {*self.context.busy, *self.context.open}
            for executor in sorted(executors, key=lambda executor: executor.context.id):
                executor.close(self.context.closed)
        await asyncio.sleep(0)

    def unseen_failures(self) -> list[BaseException]:
        """The failures of ops that nobody has seen, oldest first; each is given once."""
        return self.context.unseen_failures()

    @property
    def lost_failures(self) -> int:
        """How many failures were not kept, because a thousand others had not been seen."""
        return self.context.lost_failures

    def _check_template(self, executor: Executor) -> None:
        """Raises for template arguments that the model's template does not take."""
        if executor.context.options.template:
            _ = executor.context.chat_template

    def _check_open(self) -> None:
        self.context.check_loop()
        if self.context.closed is not None:
            raise EngineClosedError("the Runtime was left: make prompts inside its block")


def stream_options(
    name: str | None,
    origin: tuple[str | None, str],
    *,
    sampling: SamplingParams | None = None,
    cache_salt: str | None = None,
    priority: int = 0,
    deadline: float | None = None,
    budget: Budget | None = None,
    template: Mapping[str, Any] | None = None,
) -> StreamOptions:
    """Checks the options of a prompt; a budget's time begins. ConfigError for a bad one."""
    _check("sampling", sampling, SamplingParams, optional=True)
    _check("cache_salt", cache_salt, str, optional=True)
    integer("priority", priority)
    if deadline is not None:
        number("deadline", deadline, 0, above=True)
    _check("budget", budget, Budget, optional=True)
    if template is not None and not (
        isinstance(template, Mapping) and all(isinstance(key, str) for key in template)
    ):
        raise ConfigError(f"template must map names of variables to values, not be {template!r}")
    if budget is not None:
        budget.start()
    return StreamOptions(
        name=name,
        origin=origin,
        sampling=sampling or SamplingParams(),
        cache_salt=cache_salt,
        priority=priority,
        deadline=deadline,
        budgets=() if budget is None else (budget,),
        template=template or {},
    )


def _check(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    if (value is None and optional) or (isinstance(value, kind) and not isinstance(value, bool)):
        return
    raise ConfigError(
        f"{name} must be {kind.__name__}{' or None' if optional else ''}, not {value!r}"
    )
