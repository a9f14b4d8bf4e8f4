"""How a model's call of tools is generated, run and answered: see `asgl.language.tools` and
`PromptStream.call_tools`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import anyio

from asgl.checks import number
from asgl.errors import ConfigError, OutputError, StreamError, ToolError
from asgl.language import ops
from asgl.language.executor import Executor
from asgl.language.failures import cancelled
from asgl.language.handle import Handle
from asgl.language.internal_ops import Rewind, TakeSnapshot
from asgl.language.operation import Operation
from asgl.language.tool_styles import Answered, Style, calls_in, style_of
from asgl.language.tools import (
    Tool,
    ToolCall,
    by_name,
    result_text,
)

OnToolError: TypeAlias = Literal["model", "program"]


class _Asked(NamedTuple):
    """A call as it was generated."""

    tool: Tool[..., Any]
    arguments: dict[str, Any]


async def call_tools(
    executor: Executor,
    tools: Sequence[Tool[..., Any]],
    on_error: OnToolError,
    timeout: float | None,
    parallel: bool,
    options: Mapping[str, Any],
) -> list[ToolCall]:
    """See `PromptStream.call_tools`."""
    named = by_name(tools)
    if on_error not in get_args(OnToolError):
        raise ConfigError(f"on_error must be 'model' or 'program', not {on_error!r}")
    if timeout is not None:
        number("timeout", timeout, 0, above=True, finite=False)
    if executor.message is not None:
        raise ConfigError(
            f"call_tools writes messages of its own, and a {executor.message.role!r} message is "
            "open: leave it first"
        )
    await executor.sync()
    before = executor.submit(TakeSnapshot(), grows=False)
    await executor.ended(before)
    style = style_of(executor.engine, list(before.result().roles), named, parallel)
    try:
        executor.submit(style.opening())
        handle = Handle[str](executor.make(ops.gen, None, {**options, **style.constraint}))
        await handle
        asked = _asked(handle.text, handle.finish_reason or "", style)
        calls = await _run(asked, on_error, timeout)
        executor.submit(style.answer(list(map(_answered, calls)), calls_in(executor.messages)))
    except BaseException:
        _take_back(executor, before)
        raise
    return calls


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


async def _run(
    asked: Sequence[_Asked], on_error: OnToolError, timeout: float | None
) -> list[ToolCall]:
    """Runs all calls at once. ToolError at the first failure if the program is to hear of it: the
    others are cancelled."""
    calls: dict[int, ToolCall] = {}
    failures: list[ToolError] = []

    async def run(index: int, tool: Tool[..., Any], arguments: dict[str, Any]) -> None:
        try:
            values = tool.arguments(arguments)
            with anyio.move_on_after(timeout):
                result = await tool.function(**values)
                result_text(result)  # what is no JSON fails here
                calls[index] = ToolCall(tool, arguments, result)
                return
            failed(
                index, tool, arguments, TimeoutError(), f"did not end within {timeout:g} seconds"
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
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
        tool: Tool[..., Any],
        arguments: dict[str, Any],
        error: Exception,
        what: str = "",
    ) -> None:
        calls[index] = ToolCall(tool, arguments, error=error)
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
