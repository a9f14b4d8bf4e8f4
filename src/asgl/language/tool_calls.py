"""How a model's call of tools is generated, run and answered: see `asgl.language.tools` and
`PromptStream.call_tools`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import anyio

from asgl.checks import number
from asgl.errors import ConfigError, ModelError, OutputError, StreamError, ToolError
from asgl.language import messages, ops
from asgl.language.backend import Engine
from asgl.language.executor import Executor
from asgl.language.failures import cancelled
from asgl.language.handle import Handle
from asgl.language.internal_ops import AppendTurn, Rewind, TakeSnapshot, TurnText
from asgl.language.operation import Operation
from asgl.language.tools import (
    Tool,
    ToolCall,
    by_name,
    call_schema,
    json_value,
    list_schema,
    result_text,
)
from asgl.types import GrammarSource, Message, ToolParts

OnToolError: TypeAlias = Literal["model", "program"]
MOST_CALLS = 8
"""So many calls are made at once at most, if more than one may be."""


class _Asked(NamedTuple):
    """A call as it was generated."""

    tool: Tool[..., Any]
    arguments: dict[str, Any]


class _Style:
    """How calls and results are written into one stream. This one: as lines of text."""

    name_key, arguments_key = "name", "arguments"

    def __init__(self, tools: Mapping[str, Tool[..., Any]], parallel: bool) -> None:
        self.tools, self.parallel = tools, parallel

    @property
    def constraint(self) -> dict[str, Any]:
        """Of the generation, as an argument of `gen`."""
        schema = call_schema(list(self.tools.values()), self.name_key, self.arguments_key)
        return {"json_schema": list_schema(schema, MOST_CALLS) if self.parallel else schema}

    def opening(self) -> AppendTurn:
        return AppendTurn(())

    def calls_of(self, text: str) -> list[Any]:
        value = json.loads(text)
        return value if self.parallel else [value]

    def answer(self, text: str, calls: Sequence[ToolCall]) -> AppendTurn:
        """What is written after the calls, which were `text`."""
        return AppendTurn((TurnText("\n" + "".join(f"{_plain(call)}\n" for call in calls), False),))


class _ChatStyle(_Style):
    """As messages, each result one of its own."""

    def __init__(
        self, tools: Mapping[str, Tool[..., Any]], parallel: bool, engine: Engine, roles: list[str]
    ) -> None:
        super().__init__(tools, parallel)
        self._template, self._roles = messages.template_of(engine), roles
        try:
            self._template.parts([*roles, "assistant"], "tool")
            self._role = "tool"
        except ModelError:
            self._role = "user"

    def opening(self) -> AppendTurn:
        return AppendTurn((TurnText(self._template.generation(self._roles), True),), opens=True)

    def answer(self, text: str, calls: Sequence[ToolCall]) -> AppendTurn:
        roles = [*self._roles, "assistant"]
        pieces = [TurnText(self._template.parts(self._roles, "assistant").suffix, True)]
        spoken = [Message(role="assistant", content=text)]
        for call in calls:
            around = self._template.parts(roles, self._role)
            pieces += [
                TurnText(around.prefix, True),
                TurnText(_plain(call), False),
                TurnText(around.suffix, True),
            ]
            roles.append(self._role)
            spoken.append(Message(role=self._role, content=_plain(call)))
        return AppendTurn(tuple(pieces), tuple(spoken), tuple(roles[len(self._roles) :]))


class _OwnStyle(_Style):
    """As the model's own template writes them."""

    def __init__(
        self,
        tools: Mapping[str, Tool[..., Any]],
        parallel: bool,
        engine: Engine,
        parts: ToolParts,
    ) -> None:
        super().__init__(tools, parallel)
        self._parts = parts
        self.name_key, self.arguments_key = parts.name_key, parts.arguments_key
        if parallel and parts.between_calls is None:
            raise ModelError(
                "the model's chat template writes one call in a message: leave out parallel=True"
            )
        self._between = engine.tokenizer.split(parts.between_calls or "")

    @property
    def constraint(self) -> dict[str, Any]:
        if not self.parallel:
            return super().constraint
        schema = call_schema(list(self.tools.values()), self.name_key, self.arguments_key)
        spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        call = json.dumps(schema | {"x-guidance": spacing})
        between = [
            f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in self._between
        ]
        text = f"start: call ({' '.join(between)} call){{0,{MOST_CALLS - 1}}}\ncall: %json {call}"
        control = tuple(part for part in self._between if isinstance(part, int))
        return {"grammar": GrammarSource("grammar", text, control=control)}

    def opening(self) -> AppendTurn:
        return AppendTurn((TurnText(self._parts.before, True),), opens=True)

    def calls_of(self, text: str) -> list[Any]:
        calls: list[Any] = []
        at = 0
        while at < len(text):
            call, end = json.JSONDecoder().raw_decode(text, at)
            calls.append(call)
            at = end + (len(self._parts.between_calls or "") if end < len(text) else 0)
        return calls

    def answer(self, text: str, calls: Sequence[ToolCall]) -> AppendTurn:
        pieces: list[TurnText] = [TurnText(self._parts.middle, True)]
        spoken = [Message(role="assistant", content=text)]
        for index, call in enumerate(calls):
            content = result_text(
                call.result if call.error is None else {"error": _told(call.error)}
            )
            pieces += [TurnText(self._parts.between_results, True)] if index else []
            text = json.dumps(content, ensure_ascii=False) if self._parts.quoted else content
            pieces.append(TurnText(text, False))
            spoken.append(Message(role="tool", content=content))
        return AppendTurn((*pieces, TurnText(self._parts.after, True)), tuple(spoken))


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
    style = _style_of(executor.engine, list(before.result().roles), named, parallel)
    try:
        executor.submit(style.opening())
        handle = Handle[str](executor.make(ops.gen, None, {**options, **style.constraint}))
        await handle
        asked = _asked(handle.text, handle.finish_reason or "", style)
        calls = await _run(asked, on_error, timeout)
        executor.submit(style.answer(handle.text, calls))
    except BaseException:
        _take_back(executor, before)
        raise
    return calls


def _style_of(
    engine: Engine, roles: list[str], tools: Mapping[str, Tool[..., Any]], parallel: bool
) -> _Style:
    if not roles:
        return _Style(tools, parallel)
    parts = messages.template_of(engine).tool_parts
    if parts is None:
        return _ChatStyle(tools, parallel, engine, roles)
    return _OwnStyle(tools, parallel, engine, parts)


def _asked(text: str, finish_reason: str, style: _Style) -> list[_Asked]:
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


def _plain(call: ToolCall) -> str:
    said = (
        {"error": _told(call.error)}
        if call.error is not None
        else {"result": json_value(call.result)}
    )
    return json.dumps({"name": call.tool.name, **said}, ensure_ascii=False)


def _told(error: Exception) -> str:
    """What a model is told of an error: no traceback."""
    return (
        "timed out"
        if isinstance(error, TimeoutError) and not str(error)
        else f"{type(error).__name__}: {error}"
    )
