from __future__ import annotations

import itertools

import pytest

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate, segments
from asgl.models.registry import open_checkpoint
from asgl.types import Message
from tiny import CHATML

WITH_DEFAULT = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}"""
INSTRUCTIONS = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must alternate user/assistant') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + ('<<SYS>>' + system + '<</SYS>>' if loop.first and system is defined else '') -}}
        {{- message['content'].strip() + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message['content'].strip() + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""
OTHER_NAMES = """\
{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start>' ~ role ~ '\n' ~ (message['content'] | trim) ~ '<end>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"""
SPLITTABLE = {
    "ChatML": (ChatTemplate(CHATML), {"system", "user", "assistant", "tool"}),
    "default system message": (ChatTemplate(WITH_DEFAULT), {"system", "user", "assistant"}),
    "headers, trimmed": (
        ChatTemplate(HEADERS, bos="<|bos|>"),
        {"system", "user", "assistant", "ipython"},
    ),
    "instructions": (ChatTemplate(INSTRUCTIONS, bos="<s>", eos="</s>"), {"user", "assistant"}),
    "other names": (ChatTemplate(OTHER_NAMES, bos="<bos>"), {"user", "assistant"}),
}
CONTENTS = [
    "Hello",
    " two  spaces ",
    "line\nline\n",
    "\n",
    "x",
    "<|im_end|> & <b>'\"</b> {{ x }}",
    "日本 🙂",
]


def assembled(template: ChatTemplate, messages: list[Message]) -> str:
    """What a prompt stream builds of the parts."""
    text = template.head + (
        "" if messages[0]["role"] == "system" else template.default_system or ""
    )
    for message in messages:
        parts = template.role_parts(message["role"])
        content = message["content"].strip() if parts.trims else message["content"]
        text += parts.prefix + content + parts.suffix
    return text


@pytest.mark.parametrize("name", SPLITTABLE)
def test_parts_put_together_are_what_the_template_renders(name: str) -> None:
    template, roles = SPLITTABLE[name]
    contents = itertools.cycle(CONTENTS)
    for start, turns in itertools.product(
        [["system"], []] if "system" in roles else [[]], range(1, 8)
    ):
        order = [*start, *(("user", "assistant")[turn % 2] for turn in range(turns))]
        messages = [Message(role=role, content=next(contents)) for role in order]
        assert assembled(template, messages) == template.render(messages)
        if order[-1] == "user" and name != "instructions":
            prompt = template.render(messages, add_generation_prompt=True)
            assert prompt == assembled(template, messages) + template.role_parts("assistant").prefix


def test_parts_of_chatml() -> None:
    template = ChatTemplate(CHATML, bos="<|im_start|>")
    assert template.role_parts("user") == ("<|im_start|>user\n", "<|im_end|>\n", False)
    assert template.role_parts("tool") == ("<|im_start|>tool\n", "<|im_end|>\n", False)
    assert template.default_system is None
    assert template.head == "", (
        "the bos text begins every message here; the template does not write it by that name"
    )


def test_default_system_message_and_head() -> None:
    assert (
        SPLITTABLE["default system message"][0].default_system
        == "<|im_start|>system\nYou are helpful.<|im_end|>\n"
    )
    assert SPLITTABLE["headers, trimmed"][0].head == "<|bos|>"
    assert SPLITTABLE["headers, trimmed"][0].role_parts("user").trims
    assert SPLITTABLE["instructions"][0].head == ""
    assert SPLITTABLE["instructions"][0].role_parts("user").prefix == "<s>[INST] "


TURN = "{{ '<' + message['role'] + '>' + message['content'] + '</>' }}"
UNSPLITTABLE = {
    "changes contents": (
        "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] | upper "
        "}}{% endfor %}",
        "leaves out or changes the content",
    ),
    "escapes contents": (
        "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] | e + "
        "'</>' }}{% endfor %}",
        "changes the content of a message of the role 'user'",
    ),
    "strips one end": (
        "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'].lstrip() "
        "+ '</>' }}"
        "{% endfor %}",
        "changes the content",
    ),
    "leaves out": (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        + TURN
        + "{% endif %}{% endfor %}",
        "leaves out or changes the content of a message of the role 'assistant'",
    ),
    "reverses": (
        "{% for message in messages | reverse %}" + TURN + "{% endfor %}",
        "leaves out or changes",
    ),
    "repeats": (
        "{% for message in messages %}" + TURN + TURN + "{% endfor %}",
        "repeats or reorders",
    ),
    "numbers turns": (
        "{% for message in messages %}{{ loop.index ~ message['role'] ~ message['content'] ~ '\n' "
        "}}{% endfor %}",
        "unlike later ones",
    ),
    "treats the last answer apart": (
        "{% for message in messages %}{{ '<' + message['role'] + '>' + ('<think></think>' if "
        "loop.last and "
        "message['role'] == 'assistant' else '') + message['content'] + '</>' }}{% endfor %}",
        "differently by its place",
    ),
    "begins a generation apart": (
        "{% for message in messages %}" + TURN + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant><think>' }}{% endif %}",
        "begins an answer",
    ),
    "ends with the conversation": (
        "{% for message in messages %}" + TURN + "{% endfor %}{{ eos_token }}",
        "depends on what follows",
    ),
    "does not compile": ("{% for message in messages %}", "does not compile"),
    "refuses": ("{{ raise_exception('no chat today') }}", "no chat today"),
    "undefined": ("{{ messages[0].content.nothing.at_all }}", "cannot be rendered"),
    "not a number": ("{{ 1 + messages[0]['content'] }}", "cannot be rendered"),
}


@pytest.mark.parametrize("case", UNSPLITTABLE)
def test_templates_that_cannot_be_split(case: str) -> None:
    source, message = UNSPLITTABLE[case]
    with pytest.raises(ModelError, match=message):
        ChatTemplate(source, eos="</s>").role_parts("user")


def test_a_role_that_cannot_be_split_leaves_the_others_usable() -> None:
    template = SPLITTABLE["instructions"][0]
    with pytest.raises(ModelError, match="cannot be split"):
        template.role_parts("system")
    with pytest.raises(ModelError, match="System role not supported"):
        SPLITTABLE["other names"][0].role_parts("system")
    with pytest.raises(ModelError, match="must alternate"):
        template.role_parts("tool")
    assert template.role_parts("assistant").suffix == " </s>"


def test_nothing_is_compiled_before_it_is_needed() -> None:
    template = ChatTemplate("{% broken")
    assert template.source == "{% broken"
    with pytest.raises(ModelError, match="does not compile"):
        template.render([Message(role="user", content="x")])


def test_segments() -> None:
    special = {"<|im_start|>": 1, "<|im_end|>": 2, "<|im_end|>\n": 3, "[X]": 4}
    assert segments("<|im_start|>user\n", special) == [1, "user\n"]
    assert segments("a<|im_end|>b[X][X]", special) == ["a", 2, "b", 4, 4]
    assert segments("<|im_end|>\n<|im_end|>", special) == [3, 2], (
        "the longer of two that match wins"
    )
    assert segments("[x] (X)", special) == ["[x] (X)"]
    assert segments("", special) == []
    assert segments("text", {}) == ["text"]
    assert segments("", {}) == []


@pytest.mark.model
def test_the_template_of_the_model() -> None:
    checkpoint = open_checkpoint("smollm2-135m")
    template = checkpoint.chat_template
    assert template is not None
    assert template.default_system == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n"
    )
    messages = [
        Message(role="user", content=" Hi\n"),
        Message(role="assistant", content="Yes"),
        Message(role="user", content="?"),
    ]
    assert assembled(template, messages) == template.render(messages)
    special = checkpoint.tokenizer.special_tokens
    parts = template.role_parts("user")
    assert segments(parts.prefix, special) == [1, "user\n"]
    assert segments(parts.suffix, special) == [2, "\n"]
