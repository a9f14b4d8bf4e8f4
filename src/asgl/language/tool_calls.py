"""How a model's call of tools is generated, run and answered: see `asgl.language.tools` and
`PromptStream.call_tools`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import anyio

from asgl.checks import number
from asgl.errors import ConfigError, OutputError, StreamError, ToolError
from asgl.language import ops
from asgl.language.context import StreamContext
from asgl.language.executor import Executor
from asgl.language.failures import cancelled
from asgl.language.handle import Handle
from asgl.language.internal_ops import AppendTurn, Rewind, TakeSnapshot, TurnText
from asgl.language.operation import Operation
from asgl.language.tool_styles import Answered, Style, calls_in, style_of
from asgl.language.tools import (
    AnyTool,
    ToolCall,
    by_name,
    result_text,
)
from asgl.sampling import SamplingParams
from asgl.trace import ToolEvent

OnToolError: TypeAlias = Literal["model", "program"]
ToolChoice: TypeAlias = Literal["auto", "required", "none"] | AnyTool


class _Asked(NamedTuple):
    """A call as it was generated."""

    tool: AnyTool
    arguments: dict[str, Any]


class ToolCalls(list[ToolCall]):
    """The calls that a model made, in order. `text` is what it said beside them: without a call,
    its answer."""

    text: str = ""
    """What the model said beside its calls, or instead of any."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of an agent: see `PromptStream.agent`."""

    index: int
    """0 for the first."""
    text: str
    """What the model said: its answer, or what it said before its calls."""
    calls: tuple[ToolCall, ...]
    """The calls that it made, with their results; none in the last turn, if it ended by itself."""
    end: Literal["answer", "max_turns"] | None
    """Why this turn is the last: the model answered, or so many turns were made; None if it is
    not."""


class How(NamedTuple):
    """The arguments of `call_tools`, checked."""

    tools: dict[str, AnyTool]
    choice: Literal["auto", "required", "none"]
    on_error: OnToolError
    timeout: float | None
    parallel: bool
    on_text: Callable[[str], object] | None
    options: Mapping[str, Any]


def checked(
    tools: Sequence[AnyTool],
    choice: ToolChoice,
    on_error: OnToolError,
    timeout: float | None,
    parallel: bool,
    on_text: Callable[[str], object] | None,
    options: Mapping[str, Any],
) -> How:
    """ConfigError for an argument that is none."""
    named = by_name(tools)
    if isinstance(choice, AnyTool):
        if choice not in named.values():
            raise ConfigError(f"the choice {choice!r} is none of the tools: {', '.join(named)}")
        named, choice = {choice.name: choice}, "required"
    if choice not in ("auto", "required", "none"):
        raise ConfigError(f"choice must be 'auto', 'required', 'none' or a tool, not {choice!r}")
    if on_error not in get_args(OnToolError):
        raise ConfigError(f"on_error must be 'model' or 'program', not {on_error!r}")
    if timeout is not None:
        number("timeout", timeout, 0, above=True, finite=False)
    if on_text is not None and not callable(on_text):  # pyright: ignore[reportUnnecessaryComparison]
        raise ConfigError(f"on_text must be a function of a piece of text, not {on_text!r}")
    if choice == "auto" and options.get("keep_stop"):
        raise ConfigError("keep_stop has no meaning where a stop tells that a call begins")
    ops.gen(None, **options)
    return How(named, choice, on_error, timeout, parallel, on_text, options)


async def agent(executor: Executor, how: How, max_turns: int) -> AsyncIterator[Turn]:
    """See `PromptStream.agent`."""
    for index in range(max_turns):
        calls = await call_tools(executor, how)
        end: Literal["answer", "max_turns"] | None = None
        if not calls:
            end = "answer"
        elif index == max_turns - 1:
            end = "max_turns"
        yield Turn(index, calls.text, tuple(calls), end)
        if end is not None:
            return


async def call_tools(executor: Executor, how: How) -> ToolCalls:
    """See `PromptStream.call_tools`."""
    if executor.message is not None:
        raise ConfigError(
            f"call_tools writes messages of its own, and a {executor.message.role!r} message is "
            "open: leave it first"
        )
    await executor.sync()
    before = executor.submit(TakeSnapshot(), grows=False)
    await executor.ended(before)
    style = style_of(executor.context, list(before.result().roles), how.tools, how.parallel)
    made, called = ToolCalls(), None
    try:
        if how.choice == "required":
            executor.submit(style.opening())
        else:
            said = await _say(executor, style, how)
            if how.choice == "none" or not style.is_call(said.text, said.matched_stop):
                executor.submit(style.ending(said.text))
                made.text = said.text
                return made
            if style.marker:
                executor.submit(AppendTurn((TurnText(style.marker, True),), opens=True))
                made.text = said.text
            else:
                called = said
        if called is None:
            called = _gen(executor, {**how.options, **style.constraint})
            await called
        asked = _asked(called.text, called.finish_reason or "", style)
        made += await _run(asked, how.on_error, how.timeout, _Telling(executor.context, called._op))
        first = calls_in(executor.messages)
        executor.submit(style.answer(list(map(_answered, made)), first, made.text))
    except BaseException:
        _take_back(executor, before)
        raise
    return made


async def _say(executor: Executor, style: Style, how: How) -> Handle[str]:
    """Lets the model say what it will; the call that it begins, if it begins one, is whole only
    where no marker comes before it."""
    executor.submit(style.beginning())
    options: dict[str, Any] = dict(how.options)
    if how.choice == "auto" and style.trigger is not None:
        name = "stop" if isinstance(style.trigger, str) else "stop_token_ids"
        options[name] = [*_inherited(executor, options, name), style.trigger]
    elif how.choice == "auto":
        options |= style.choice
    said = _gen(executor, options)
    if how.on_text is None:
        await said
        return said
    text, shown = "", 0
    async for piece in said:
        text += piece
        called = how.choice == "auto" and style.is_call(text, None)
        if text.strip() and not called:
            how.on_text(text[shown:])
            shown = len(text)
    return said


def _gen(executor: Executor, options: Mapping[str, Any]) -> Handle[str]:
    return Handle[str](executor.make(ops.gen, None, options))


def _inherited(executor: Executor, options: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The stops of a generation, by the levels that it has them from."""
    given = SamplingParams(**{name: options.get(name)})
    params = given.over(executor.context.options.sampling).over(executor.engine.defaults)
    return getattr(params, name) or ()


def _asked(text: str, finish_reason: str, style: Style) -> list[_Asked]:
    """OutputError for what is no call: only where the constraint was not kept (a scripted Runtime,
    say)."""
    try:
        return [
            _Asked(style.tools[call[style.name_key]], dict(call[style.arguments_key]))
            for call in style.calls_of(text)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"the text {text!r} is no call of one of the tools {', '.join(style.tools)}: {error!r}",
            text=text,
            finish_reason=finish_reason,
        ) from error


class _Telling:
    """Tells tracers of the calls that an op has generated."""

    def __init__(self, context: StreamContext, op: Operation) -> None:
        assert op.number is not None
        self._context, self._number = context, op.number
        self._began: dict[int, float] = {}

    def __call__(
        self,
        kind: Literal["started", "finished", "failed", "cancelled"],
        index: int,
        tool: AnyTool,
        arguments: dict[str, Any],
        *,
        result: Any = None,
        error: str = "",
    ) -> None:
        if not (tracers := self._context.engine.tracers):
            return
        now = self._context.session.loop.time()
        seconds = now - self._began.setdefault(index, now)
        told = result_text(result) if kind == "finished" else ""
        tracers.emit(
            ToolEvent(
                kind,
                self._context.id,
                self._number,
                index,
                tool.name,
                arguments,
                seconds,
                told,
                error,
            )
        )


async def _run(
    asked: Sequence[_Asked], on_error: OnToolError, timeout: float | None, tell: _Telling
) -> list[ToolCall]:
    """Runs all calls at once. ToolError at the first failure if the program is to hear of it: the
    others are cancelled."""
    calls: dict[int, ToolCall] = {}
    failures: list[ToolError] = []

    async def run(index: int, tool: AnyTool, arguments: dict[str, Any]) -> None:
        tell("started", index, tool, arguments)
        try:
            with anyio.move_on_after(timeout):
                result = await tool.run(arguments)
                result_text(result)  # what is no JSON fails here
                calls[index] = ToolCall(tool, arguments, result)
                tell("finished", index, tool, arguments, result=result)
                return
            failed(
                index, tool, arguments, TimeoutError(), f"did not end within {timeout:g} seconds"
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                tell("cancelled", index, tool, arguments)
                raise
            failed(
                index,
                tool,
                arguments,
                cancelled(f"the tool {tool.name!r} raised a CancelledError of its own", None),
            )
        except Exception as error:
            failed(index, tool, arguments, error)

    def failed(
        index: int,
        tool: AnyTool,
        arguments: dict[str, Any],
        error: Exception,
        what: str = "",
    ) -> None:
        calls[index] = ToolCall(tool, arguments, error=error)
        tell("failed", index, tool, arguments, error=what or repr(error))
        if on_error == "program":
            failure = ToolError(
                f"the tool {tool.name!r} {what or f'raised {error!r}'}",
                tool=tool.name,
                arguments=arguments,
            )
            failure.__cause__ = error
            failures.append(failure)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, call in enumerate(asked):
            group.start_soon(run, index, call.tool, call.arguments)
    if failures:
        raise failures[0]
    return [calls[index] for index in range(len(asked))]


def _take_back(executor: Executor, before: Operation) -> None:
    """Lets the stream say again what it said before."""
    try:
        executor.submit(Rewind(before))
    except StreamError:  # it was closed meanwhile, or failed, and says so itself
        if executor.closed is not None:
            executor.transcript.restore(before.result())


def _answered(call: ToolCall) -> Answered:
    error = None if call.error is None else _told(call.error)
    return Answered(call.tool.name, call.arguments, call.result, error)


def _told(error: Exception) -> str:
    """What a model is told of an error: no traceback."""
    return (
        "timed out"
        if isinstance(error, TimeoutError) and not str(error)
        else f"{type(error).__name__}: {error}"
    )
