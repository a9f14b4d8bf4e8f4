"""Lists of messages, in the shape of the OpenAI API, as ops."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from asgl.errors import ConfigError
from asgl.language.ops import Calls, Ops, Role, Text, WrittenCall
from asgl.language.tools import AnyTool, by_name

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""Messages as the OpenAI API has them: dicts with "role", "content" and, of tools, "tool_calls" and
"tool_call_id"; or objects of its client."""


def messages(messages: Messages, *, tools: Sequence[AnyTool] = ()) -> Ops:
    """The ops that append whole messages: `s += asgl.messages(history)`. `s.messages()` gives them
    back.

    Calls of tools and their results, which come next to each other, are written as the model's own
    chat template writes them. A first system message tells the model of `tools`. Raises ConfigError
    for what no text model can read, and for what is no message.
    """
    given = [_checked(index, message) for index, message in enumerate(_listed(messages))]
    ops = list(_ops(given))
    if tools:
        by_name(tools)
        first = ops[0] if ops else None
        if not isinstance(first, Role) or first.role != "system":
            raise ConfigError("tools are told of in a system message: begin the list with one")
        ops[0] = replace(first, tools=tuple(tools))
    return Ops(tuple(ops))


def _listed(messages: object) -> list[Any]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ConfigError(
            f"a prompt is text, or a list of messages with role and content, not {messages!r}"
        )
    return list(messages)


class _Given:
    """One message of the list."""

    def __init__(self, index: int, message: Mapping[str, Any]) -> None:
        self.where = f"message {index}"
        # what the OpenAI client leaves unset comes as None or an empty list
        fields = {key: value for key, value in message.items() if value not in (None, [], {})}
        self.role = fields.pop("role", None)
        if not isinstance(self.role, str) or not self.role:
            raise ConfigError(f"{self.where} needs a role such as 'user', not {self.role!r}")
        self.content = _text(self.where, fields.pop("content", ""))
        self.calls = fields.pop("tool_calls", [])
        self.answers = fields.pop("tool_call_id", None)
        if self.answers is not None:
            fields.pop("name", None)  # of the tool, which the call names too
        if fields:
            raise ConfigError(
                f"{self.where} has {', '.join(sorted(fields))}, which no chat template writes: "
                "leave it out"
            )


def _checked(index: int, message: Any) -> _Given:
    if not isinstance(message, Mapping) and callable(getattr(message, "model_dump", None)):
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise ConfigError(f"message {index} must be a dict with role and content, not {message!r}")
    return _Given(index, message)


def _text(where: str, content: Any) -> str:
    """The content: a str, or the OpenAI API's list of parts, which must be texts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type", "text") != "text":
            raise ConfigError(f"the content of {where} must be text, not {part!r}")
        texts.append(text)
    return "".join(texts)


def _ops(given: Sequence[_Given]) -> Iterator[Role | Calls]:
    rest = iter(enumerate(given))
    for index, message in rest:
        if message.calls:
            answers: list[_Given] = []
            for answer in given[index + 1 :]:
                if answer.role != "tool" or answer.answers is None:
                    break
                answers.append(answer)
                next(rest)
            yield _exchange(message, answers)
        elif message.answers is not None:
            raise ConfigError(
                f"{message.where} answers the call {message.answers!r}, and no message before it "
                "makes calls"
            )
        else:
            yield Role(message.role, (Text(message.content),))


def _exchange(message: _Given, answers: Sequence[_Given]) -> Calls:
    """Calls and their results."""
    if message.content.strip():
        raise ConfigError(
            f"{message.where} has text beside tool_calls, which is not supported: make it a "
            "message of its own"
        )
    results = {answer.answers: answer.content for answer in answers}
    calls: list[WrittenCall] = []
    for call in message.calls:
        try:
            name, function = call["id"], call["function"]
            arguments = json.loads(function["arguments"])
            assert isinstance(arguments, dict)
            calls.append(
                WrittenCall(str(function["name"]), function["arguments"], results.pop(name))
            )
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            what = f"no message answers it: {call!r}" if isinstance(error, KeyError) else repr(call)
            raise ConfigError(f"{message.where} has a call that is none: {what}") from error
    if results or len(answers) != len(calls):
        raise ConfigError(
            f"{message.where} makes {len(calls)} calls, and the messages after it answer others: "
            f"{[answer.answers for answer in answers]}"
        )
    return Calls(tuple(calls))
