"""What templates of three kinds write around calls and results; and those that are not
understood."""

from __future__ import annotations

from typing import Any

import pytest
from tool_templates import BARE, LLAMA, MISTRAL, MISTRAL_WITH_IDS, WRAPPED

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tool_template import system_with_tools, tool_parts
from asgl.types import ToolParts

NUMBERED = WRAPPED.replace('{"name": "\' + c', '{"id": "\' + c.id + \'", "name": "\' + c')


def test_calls_in_tags() -> None:
    parts = tool_parts(ChatTemplate(WRAPPED))
    assert parts is not None
    assert parts.before == "<|im_start|>assistant\n<tool_call>\n"
    assert (parts.name_key, parts.arguments_key) == ("name", "arguments")
    assert parts.between_calls == "\n</tool_call>\n<tool_call>\n"
    assert parts.middle == "\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n"
    assert parts.between_results == "\n</tool_response>\n<tool_response>\n"
    assert parts.after == "\n</tool_response><|im_end|>\n"


def test_what_was_found_put_together_is_what_the_template_writes() -> None:
    template = ChatTemplate(WRAPPED)
    parts = tool_parts(template)
    assert parts is not None
    tool = {
        "type": "function",
        "function": {
            "name": "f",
            "description": "x",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    calls: list[Any] = [
        {"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}},
        {"type": "function", "function": {"name": "g", "arguments": {}}},
    ]
    system = system_with_tools(template, [tool])
    user = template.parts(("user", "assistant"), "user")
    text = (
        system.prefix
        + "Be good."
        + system.suffix
        + user.prefix
        + "Hi"
        + user.suffix
        + parts.before
        + '{"name": "f", "arguments": {"a": [1]}}'
        + str(parts.between_calls)
        + '{"name": "g", "arguments": {}}'
        + parts.middle
        + "one"
        + parts.between_results
        + "two"
        + parts.after
    )
    assert text == template.render(
        [
            {"role": "system", "content": "Be good."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "one"},
            {"role": "tool", "content": "two"},
        ],
        tools=[tool],
    )


def test_results_as_json_texts_and_tools_in_the_message_of_the_system() -> None:
    template = ChatTemplate(LLAMA, bos="<s>")
    parts = tool_parts(template)
    assert parts is not None
    assert parts.quoted
    assert (parts.middle, parts.after) == ("<|im_end|><|im_start|>ipython\n\n", "<|im_end|>")
    system = system_with_tools(template, [{"a": 1}])
    assert system.prefix.endswith('to be called by JSON:\n\n{\n    "a": 1\n}\n\n')
    assert system.suffix == "<|im_end|>"


def test_calls_as_a_list_and_calls_with_ids() -> None:
    parts = tool_parts(ChatTemplate(MISTRAL, bos="<s>", eos="</s>"))
    assert parts == ToolParts(
        "[CALLS] [",
        "name",
        "arguments",
        ", ",
        "]</s>[RESULT] ",
        "[/RESULT][RESULT] ",
        "[/RESULT]",
        False,
    )
    assert tool_parts(ChatTemplate(MISTRAL_WITH_IDS, bos="<s>", eos="</s>")) is None


def test_bare_calls_one_at_a_time() -> None:
    parts = tool_parts(ChatTemplate(BARE, bos="<s>"))
    assert parts is not None
    assert (parts.before, parts.arguments_key, parts.between_calls) == (
        "<|h|>assistant<|/h|>",
        "parameters",
        None,
    )
    assert (parts.middle, parts.after) == ("<|e|><|h|>ipython<|/h|>", "<|e|>")


def test_templates_that_are_not_understood_know_no_tools() -> None:
    plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    assert tool_parts(ChatTemplate(plain)) is None
    assert tool_parts(ChatTemplate(plain + "{# tools #}")) is None
    assert (
        tool_parts(ChatTemplate("{% if tools %}{{ nonsense.nothing.at_all }}{% endif %}" + plain))
        is None
    )
    assert NUMBERED != WRAPPED
    assert tool_parts(ChatTemplate(NUMBERED)) is None


def test_a_template_that_leaves_the_system_message_out_beside_tools() -> None:
    lost = WRAPPED.replace("{{- messages[0].content + '\\n\\n' }}", "")
    with pytest.raises(ModelError, match="beside tools"):
        system_with_tools(ChatTemplate(lost), [{"a": 1}])
