"""What a chat template writes around the calls of tools and their results, found by rendering it
with sentinels.

    before   "<|im_start|>assistant\\n<tool_call>\\n"
    a call   {"name": N, "arguments": {K: V}}
    middle   "\\n</tool_call><|im_end|>\\n<|im_start|>user\\n<tool_response>\\n"
    a result S0
    after    "\\n</tool_response><|im_end|>\\n"

Templates agree on how messages look that they are given: `tool_calls` in a message of the
assistant, results in messages of the role "tool". What they make of it differs: a template for
which the parts cannot be told apart, or that wants more than a name and arguments (an id, say), is
used as one that knows no tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from asgl.errors import ModelError
from asgl.types import Message, RoleParts, ToolParts

_NAME, _KEY, _VALUE = "Zqtoolqz", "Zqkeyqz", "Zqvalueqz"
_USER, _SYSTEM = "Zquserqz", "Zqsystemqz"
_RESULTS = ('Zqfirst"qz', 'Zqsecond"qz')
"""Each has a character that JSON escapes."""
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string"}},
            "required": [_KEY],
        },
    },
}


class Template(Protocol):
    """The part of a `ChatTemplate` that is asked here."""

    source: str

    @property
    def head(self) -> str: ...

    def parts(self, before: Sequence[str], role: str) -> RoleParts: ...

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        add_generation_prompt: bool = False,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str: ...


def tool_parts(template: Template) -> ToolParts | None:
    """None for a template that knows no tools, or none that this module understands."""
    if "tools" not in template.source:
        return None
    one, two = _parts_of(template, 1), _parts_of(template, 2)
    if (
        one is None
        or two is None
        or two[:3] != one[:3]
        or (two.middle, two.after) != (one.middle, one.after)
    ):
        return one
    return two


def system_with_tools(template: Template, tools: Sequence[Mapping[str, Any]]) -> RoleParts:
    """What goes around the content of a first message, of the system, that tells of the tools;
    `template.head` is not in it. ModelError if that cannot be told apart."""
    system, user = template.parts((), "system"), template.parts(("system",), "user")
    text = template.render(
        [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}], tools=tools
    )
    before, found, rest = text.partition(_SYSTEM)
    after, also_found, _ = rest.partition(user.prefix + _USER)
    if not found or not also_found or not before.startswith(template.head):
        raise ModelError(
            "the model's chat template does not write a system message beside tools: describe the "
            "tools in text"
        )
    return system._replace(prefix=before[len(template.head) :], suffix=after)


def _parts_of(template: Template, calls: int) -> ToolParts | None:
    """The parts, from a conversation with so many calls, and as many results; None if they cannot
    be told apart."""
    requests = [
        {
            "id": f"call0000{index}",
            "type": "function",
            "function": {"name": _NAME, "arguments": {_KEY: _VALUE}},
        }
        for index in range(calls)
    ]
    results = [
        {
            "role": "tool",
            "name": _NAME,
            "tool_call_id": f"call0000{index}",
            "content": _RESULTS[index],
        }
        for index in range(calls)
    ]
    messages = [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": "", "tool_calls": requests},
        *results,
    ]
    try:
        text, user = template.render(messages, tools=[_TOOL]), template.parts((), "user")
    except ModelError:
        return None  # it raises for what it does not know
    _, found, text = text.partition(_USER)
    if not found or not text.startswith(user.suffix):
        return None
    spans = _calls_in(text)
    quoted = _RESULTS[0] not in text
    results = [json.dumps(result) if quoted else result for result in _RESULTS[:calls]]
    places = [text.find(result) for result in results]
    if len(spans) != calls or min(places) < spans[-1][1] or places != sorted(places):
        return None
    keys = {tuple(json.loads(text[begin:end])) for begin, end in spans}
    if len(keys) != 1:
        return None
    ((name_key, arguments_key),) = keys
    last = places[-1] + len(results[-1])
    return ToolParts(
        text[len(user.suffix) : spans[0][0]],
        name_key,
        arguments_key,
        text[spans[0][1] : spans[1][0]] if calls > 1 else None,
        text[spans[-1][1] : places[0]],
        text[places[0] + len(results[0]) : places[1]] if calls > 1 else "",
        text[last:],
        quoted,
    )


def _calls_in(text: str) -> list[tuple[int, int]]:
    """Where the calls begin and end: JSON objects of a name and arguments, and of nothing else."""
    spans: list[tuple[int, int]] = []
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        if list(value.values()) == [_NAME, {_KEY: _VALUE}] and text[at:end] == json.dumps(value):
            spans.append((at, end))
            at = end
        else:
            at += 1
    return spans
