"""How calls of tools and their results are written into a stream: as the model's own chat template
writes them, or as messages of the shape that `asgl.language.tools` shows, or as lines of text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asgl.errors import ModelError
from asgl.language.context import StreamContext
from asgl.language.internal_ops import AppendTurn, TurnText
from asgl.language.tools import AnyTool, call_schema, json_value, list_schema, result_text
from asgl.types import FunctionCall, GrammarSource, Message, MessageToolCall, ToolParts

MOST_CALLS = 8
"""So many calls are made at once at most, if more than one may be."""


class Answered(NamedTuple):
    """A call and its answer."""

    name: str
    arguments: Mapping[str, Any]
    value: Any
    """What the tool gave; JSON."""
    error: str | None = None
    """What the model is told of a failure, instead."""

    @property
    def content(self) -> str:
        """As a message has it: text as it is, other values as JSON."""
        return result_text(self.value if self.error is None else {"error": self.error})

    @property
    def line(self) -> str:
        """With the tool's name, where the template does not say what a result answers."""
        said = (
            {"error": self.error} if self.error is not None else {"result": json_value(self.value)}
        )
        return json.dumps({"name": self.name, **said}, ensure_ascii=False)

    @staticmethod
    def of_text(name: str, arguments: str, content: str) -> Answered:
        """From what messages have: the content as the value that was written so, if it is one."""
        value: Any = content
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(content)
        told = value.get("error") if isinstance(value, dict) and len(value) == 1 else None
        error = told if isinstance(told, str) else None
        return Answered(name, json.loads(arguments), value, error)


class Style:
    """How calls and results are written into one stream. This one: as lines of text."""

    name_key, arguments_key = "name", "arguments"

    def __init__(self, tools: Mapping[str, AnyTool], parallel: bool) -> None:
        self.tools, self.parallel = tools, parallel

    @property
    def constraint(self) -> dict[str, Any]:
        """Of the generation, as an argument of `gen`."""
        schema = self._call_schema
        return {"json_schema": list_schema(schema, MOST_CALLS) if self.parallel else schema}

    @property
    def _call_schema(self) -> dict[str, Any]:
        return call_schema(list(self.tools.values()), self.name_key, self.arguments_key)

    marker = ""
    """What the template writes between the header of the assistant's message and the calls."""

    @property
    def choice(self) -> dict[str, Any]:
        """Of a generation that may call or say anything else, where no marker tells: what begins
        as a call is one."""
        schema = json.dumps(
            list_schema(self._call_schema, MOST_CALLS) if self.parallel else self._call_schema
        )
        first = r"\[" if self.parallel else "{"
        return {
            "grammar": f"start: call | said\ncall: %json {schema}\n"
            rf"said: /\s*[^{first}\s](.|\n)*/"
        }

    @property
    def trigger(self) -> str | int | None:
        """What ends the generation because a call begins: text, or a control token, that the marker
        begins with. None where there is no marker."""
        return None

    def is_call(self, text: str, matched_stop: str | int | None) -> bool:
        """Whether the model has begun a call."""
        if self.trigger is not None:
            return matched_stop == self.trigger
        return text.lstrip().startswith("[" if self.parallel else "{")

    def beginning(self) -> AppendTurn:
        """Opens what the model says, a call or not."""
        return AppendTurn(())

    def ending(self, text: str) -> AppendTurn:
        """Ends what the model said, which was no call."""
        return AppendTurn(())

    def opening(self) -> AppendTurn:
        """Opens a call."""
        return AppendTurn(())

    def calls_of(self, text: str) -> list[Any]:
        value = json.loads(text)
        return value if self.parallel else [value]

    def text_of(self, calls: Sequence[Answered]) -> str:
        """The calls as they would be generated."""
        said = [json.dumps(self._object(call), ensure_ascii=False) for call in calls]
        return f"[{', '.join(said)}]" if self.parallel else said[0]

    def answer(self, calls: Sequence[Answered], first: int, said: str = "") -> AppendTurn:
        """What is written after the calls. `first` is the number of the first in the stream, `said`
        what the model said before them."""
        return AppendTurn((TurnText("\n" + "".join(f"{call.line}\n" for call in calls), False),))

    def _object(self, call: Answered) -> dict[str, Any]:
        return {self.name_key: call.name, self.arguments_key: dict(call.arguments)}


class _InMessages(Style):
    """In a message of the assistant."""

    def __init__(
        self, tools: Mapping[str, AnyTool], parallel: bool, context: StreamContext, roles: list[str]
    ) -> None:
        super().__init__(tools, parallel)
        self._template, self._roles = context.chat_template, roles

    def beginning(self) -> AppendTurn:
        header = TurnText(self._template.generation(self._roles), True)
        return AppendTurn((header,), opens=True, suffix=self._suffix)

    def ending(self, text: str) -> AppendTurn:
        said = Message(role="assistant", content=text)
        return AppendTurn((TurnText(self._suffix, True),), (said,), ("assistant",))

    @property
    def _suffix(self) -> str:
        return self._template.parts(self._roles, "assistant").suffix


class _ChatStyle(_InMessages):
    """As messages, each result one of its own."""

    def __init__(
        self, tools: Mapping[str, AnyTool], parallel: bool, context: StreamContext, roles: list[str]
    ) -> None:
        super().__init__(tools, parallel, context, roles)
        try:
            self._template.parts([*roles, "assistant"], "tool")
            self._role = "tool"
        except ModelError:
            self._role = "user"

    def opening(self) -> AppendTurn:
        return AppendTurn((TurnText(self._template.generation(self._roles), True),), opens=True)

    def answer(self, calls: Sequence[Answered], first: int, said: str = "") -> AppendTurn:
        roles = [*self._roles, "assistant"]
        pieces = [TurnText(self._suffix, True)]
        for call in calls:
            around = self._template.parts(roles, self._role)
            pieces += [
                TurnText(around.prefix, True),
                TurnText(call.line, False),
                TurnText(around.suffix, True),
            ]
            roles.append(self._role)
        added = tuple(roles[len(self._roles) :])
        return AppendTurn(tuple(pieces), _spoken(calls, first, said), added)


class _OwnStyle(_InMessages):
    """As the model's own template writes them."""

    def __init__(
        self,
        tools: Mapping[str, AnyTool],
        parallel: bool,
        context: StreamContext,
        roles: list[str],
        parts: ToolParts,
    ) -> None:
        super().__init__(tools, parallel, context, roles)
        self._parts = parts
        header = self._template.generation(roles)
        self._tokenizer = context.engine.tokenizer
        if parts.before.startswith(header):
            self.marker = parts.before[len(header) :]
        self.name_key, self.arguments_key = parts.name_key, parts.arguments_key
        if parallel and parts.between_calls is None:
            raise ModelError(
                "the model's chat template writes one call in a message: leave out parallel=True"
            )
        self._between = self._tokenizer.split(parts.between_calls or "")

    @property
    def trigger(self) -> str | int | None:
        for part in self._tokenizer.split(self.marker):
            if isinstance(part, int):
                return part
            if part.strip():
                return part.strip()
        return None

    @property
    def constraint(self) -> dict[str, Any]:
        if not self.parallel:
            return super().constraint
        schema = self._call_schema
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

    def text_of(self, calls: Sequence[Answered]) -> str:
        said = [json.dumps(self._object(call), ensure_ascii=False) for call in calls]
        return (self._parts.between_calls or "").join(said)

    def answer(self, calls: Sequence[Answered], first: int, said: str = "") -> AppendTurn:
        pieces: list[TurnText] = [TurnText(self._parts.middle, True)]
        for index, call in enumerate(calls):
            pieces += [TurnText(self._parts.between_results, True)] if index else []
            quoted = json.dumps(call.content, ensure_ascii=False)
            pieces.append(TurnText(quoted if self._parts.quoted else call.content, False))
        return AppendTurn((*pieces, TurnText(self._parts.after, True)), _spoken(calls, first, said))


def _spoken(calls: Sequence[Answered], first: int, said: str) -> tuple[Message, ...]:
    """The messages of an exchange, in the shape of the OpenAI API."""
    names = [f"call_{first + index}" for index in range(len(calls))]
    asked = [
        MessageToolCall(
            id=name,
            type="function",
            function=FunctionCall(
                name=call.name, arguments=json.dumps(dict(call.arguments), ensure_ascii=False)
            ),
        )
        for name, call in zip(names, calls, strict=True)
    ]
    return (
        Message(role="assistant", content=said, tool_calls=asked),
        *(
            Message(role="tool", content=call.content, tool_call_id=name)
            for name, call in zip(names, calls, strict=True)
        ),
    )


def calls_in(said: Sequence[Message]) -> int:
    """How many calls the messages of a stream have."""
    return sum(len(message.get("tool_calls", ())) for message in said)


def style_of(
    context: StreamContext, roles: list[str], tools: Mapping[str, AnyTool], parallel: bool
) -> Style:
    """How the stream writes calls: `roles` are those of its messages. ModelError if its template
    writes one call at a time, and `parallel` asks for more."""
    if not roles:
        return Style(tools, parallel)
    parts = context.chat_template.tool_parts
    if parts is None:
        return _ChatStyle(tools, parallel, context, roles)
    return _OwnStyle(tools, parallel, context, roles, parts)
