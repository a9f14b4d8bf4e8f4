"""What templates of three kinds write around calls and results; and those that are not understood."""

from __future__ import annotations

from typing import Any

import pytest

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tool_template import system_with_tools, tool_parts

WRAPPED = r"""
{%- if tools %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}{{- '# Tools\n' }}
{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{% endfor %}{{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant' }}{{- '\n' + m.content if m.content else '' }}
{%- for c in m.tool_calls %}{{- '\n<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson }}{{- '}\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
"""Calls in tags, several in one message, results in a message of the user."""

BARE = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call only') }}{% endif %}<|h|>assistant<|/h|>"
    "{\"name\": \"{{ m.tool_calls[0].function.name }}\", \"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}<|e|>"
    "{% elif m.role == 'tool' %}<|h|>ipython<|/h|>{{ m.content }}<|e|>"
    "{% else %}<|h|>{{ m.role }}<|/h|>{% if m.role == 'user' and tools and loop.last %}{{ tools | tojson }}{% endif %}"
    "{{ m.content }}<|e|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|h|>assistant<|/h|>{% endif %}"
)
"""One call at a time, as a bare object with "parameters"."""

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
    tool = {"type": "function", "function": {"name": "f", "description": "x", "parameters": {"type": "object", "properties": {}}}}
    calls: list[Any] = [{"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}},
                        {"type": "function", "function": {"name": "g", "arguments": {}}}]
    system = system_with_tools(template, [tool])
    user = template.role_parts("user")
    text = (system.prefix + "Be good." + system.suffix + user.prefix + "Hi" + user.suffix + parts.before
            + '{"name": "f", "arguments": {"a": [1]}}' + str(parts.between_calls) + '{"name": "g", "arguments": {}}'
            + parts.middle + "one" + parts.between_results + "two" + parts.after)
    assert text == template.render([
        {"role": "system", "content": "Be good."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "one"}, {"role": "tool", "content": "two"}], tools=[tool])


def test_bare_calls_one_at_a_time() -> None:
    parts = tool_parts(ChatTemplate(BARE, bos="<s>"))
    assert parts is not None
    assert (parts.before, parts.arguments_key, parts.between_calls) == ("<|h|>assistant<|/h|>", "parameters", None)
    assert (parts.middle, parts.after) == ("<|e|><|h|>ipython<|/h|>", "<|e|>")


def test_templates_that_are_not_understood_know_no_tools() -> None:
    plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    assert tool_parts(ChatTemplate(plain)) is None
    assert tool_parts(ChatTemplate(plain + "{# tools #}")) is None
    assert tool_parts(ChatTemplate("{% if tools %}{{ nonsense.nothing.at_all }}{% endif %}" + plain)) is None
    assert NUMBERED != WRAPPED
    assert tool_parts(ChatTemplate(NUMBERED)) is None
    assert tool_parts(None) is None


def test_a_template_that_leaves_the_system_message_out_beside_tools() -> None:
    lost = WRAPPED.replace("{{- messages[0].content + '\\n\\n' }}", "")
    with pytest.raises(ModelError, match="beside tools"):
        system_with_tools(ChatTemplate(lost), [{"a": 1}])
