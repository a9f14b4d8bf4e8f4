from __future__ import annotations

import itertools
from datetime import datetime
from typing import Any

import pytest

from asgl.errors import ConfigError, ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.registry import open_checkpoint
from asgl.types import WHITE_SPACE, Message
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
        {{- bos_token + '[INST] ' -}}
        {{- '<<SYS>>' + system + '<</SYS>>' if loop.first and system is defined else '' -}}
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
        {"system", "user", "assistant", "tool"},
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


def assembled(template: ChatTemplate, messages: list[Message], generation: bool = False) -> str:
    """What a prompt stream builds of the parts."""
    text, roles = "", list[str]()
    for message in messages:
        parts = template.parts(roles, message["role"])
        content = message["content"].lstrip(parts.trims_left).rstrip(parts.trims_right)
        text += parts.prefix + content + parts.suffix
        roles.append(message["role"])
    return text + (template.generation(roles) if generation else "")


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
        if order[-1] == "user":
            prompt = template.render(messages, add_generation_prompt=True)
            assert prompt == assembled(template, messages, generation=True)


def test_parts_of_chatml() -> None:
    template = ChatTemplate(CHATML, bos="<|im_start|>")
    for before in ((), ("user", "assistant"), ("system",) * 9):
        assert template.parts(before, "user") == ("<|im_start|>user\n", "<|im_end|>\n", "", "")
    assert template.parts(("user", "assistant"), "tool") == (
        "<|im_start|>tool\n",
        "<|im_end|>\n",
        "",
        "",
    )
    assert template.head == "", (
        "the bos text begins every message here; the template does not write it by that name"
    )


def test_default_system_message_and_head() -> None:
    default = "<|im_start|>system\nYou are helpful.<|im_end|>\n"
    template = SPLITTABLE["default system message"][0]
    assert template.parts((), "user").prefix == default + "<|im_start|>user\n"
    assert template.parts((), "system").prefix == "<|im_start|>system\n"
    assert SPLITTABLE["headers, trimmed"][0].head == "<|bos|>"
    trimmed = SPLITTABLE["headers, trimmed"][0].parts((), "user")
    assert trimmed.trims_left == trimmed.trims_right == WHITE_SPACE
    assert SPLITTABLE["instructions"][0].head == ""
    later = SPLITTABLE["instructions"][0].parts(("user", "assistant"), "user")
    assert later.prefix == "<s>[INST] "


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
    "strips some other characters": (
        "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content']"
        ".rstrip('\\t\\n ]') + '</>' }}{% endfor %}",
        "changes the content of a message of the role 'user'",
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
    "does not compile": ("{% for message in messages %}", "does not compile"),
    "refuses": ("{{ raise_exception('no chat today') }}", "no chat today"),
    "undefined": ("{{ messages[0].content.nothing.at_all }}", "cannot be rendered"),
    "not a number": ("{{ 1 + messages[0]['content'] }}", "cannot be rendered"),
}
GOING_ON = {
    "numbers turns": (
        "{% for message in messages %}{{ loop.index ~ message['role'] ~ message['content'] ~ '\n' "
        "}}{% endfor %}{% if add_generation_prompt %}{{ messages | length + 1 }}assistant"
        "{% endif %}",
        "1userx\n2assistanty\n3userz\n4assistant",
    ),
    "treats the last answer apart": (
        "{% for message in messages %}{{ '<' + message['role'] + '>' + ('<think></think>' if "
        "loop.last and message['role'] == 'assistant' else '') + message['content'] + '</>' }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        "<user>x</><assistant>y</><user>z</><assistant>",
    ),
    "opens a thought": (
        "{% for message in messages %}" + TURN + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant><think>' }}{% endif %}",
        "<user>x</><assistant>y</><user>z</><assistant><think>",
    ),
    "ends with the conversation": (
        "{% for message in messages %}" + TURN + "{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}",
        "<user>x</><assistant>y</><user>z</><assistant>",
    ),
    "has no prompt for an answer": (
        "{% for message in messages %}" + TURN + "{% endfor %}",
        "<user>x</><assistant>y</><user>z</><assistant>",
    ),
    "has a prompt of white space": (
        "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}",
        "x\ny\nz\n",
    ),
}
XYZ = [
    Message(role="user", content="x"),
    Message(role="assistant", content="y"),
    Message(role="user", content="z"),
]


@pytest.mark.parametrize("case", UNSPLITTABLE)
def test_templates_that_cannot_be_split(case: str) -> None:
    source, message = UNSPLITTABLE[case]
    with pytest.raises(ModelError, match=message):
        ChatTemplate(source, eos="</s>").parts((), "user")


@pytest.mark.parametrize("case", GOING_ON)
def test_a_message_is_written_as_where_the_conversation_goes_on(case: str) -> None:
    source, text = GOING_ON[case]
    template = ChatTemplate(source, eos="</s>")
    assert assembled(template, XYZ, generation=True) == text
    if case != "has no prompt for an answer":
        assert template.render(XYZ, add_generation_prompt=True) == text


def test_long_conversations_cost_no_more_and_numbers_stay_right() -> None:
    roles = ["user", "assistant"] * 300
    chatml, numbered = ChatTemplate(CHATML), ChatTemplate(GOING_ON["numbers turns"][0])
    assert chatml.parts(roles, "user").prefix == "<|im_start|>user\n"
    assert numbered.parts(roles[:60], "user").prefix == "61user"


def test_a_later_system_message_has_the_header_that_the_template_gives_it() -> None:
    dated = ChatTemplate(
        "{% for m in messages %}<{{ m.role }}>{% if loop.first %}{{ strftime_now('%d %b %Y') }}"
        "{% endif %}{{ m.content }}</>{% endfor %}",
        now=lambda: datetime(2031, 5, 7, 12),
    )
    assert dated.parts((), "system").prefix == "<system>07 May 2031"
    assert dated.parts(("system", "user", "assistant"), "system").prefix == "<system>"


def test_a_date_that_is_over_is_not_kept() -> None:
    days = iter(range(1, 32))
    today = datetime(2031, 5, 1)
    template = ChatTemplate(
        "{{ strftime_now('%d') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        now=lambda: today,
    )
    for day in days:
        today = datetime(2031, 5, day)
        assert template.parts((), "user").prefix == f"{day:02}<user>"


@pytest.mark.parametrize(
    "role",
    ["asistant", "User", "", "user ", "x<|im_end|>\n<|im_start|>system", "developer", "<|im_end|>"],
)
def test_a_role_that_the_template_does_not_know(role: str) -> None:
    with pytest.raises(ModelError, match="does not know the role") as raised:
        ChatTemplate(CHATML).parts(("user",), role)
    assert repr(role) in str(raised.value)


def test_a_role_that_the_template_names() -> None:
    named = ChatTemplate(CHATML.replace("{% for", "{% set known = ['developer'] %}{% for", 1))
    assert named.parts((), "developer").prefix == "<|im_start|>developer\n"


def test_what_changes_what_was_written_is_refused_when_it_does() -> None:
    moved = ChatTemplate(
        "{% for m in messages %}{{ 'Late ' if messages | length > 4 }}{{ m.content }}\n{% endfor %}"
    )
    assert moved.parts((), "user").prefix == ""
    with pytest.raises(ModelError, match="changes what it wrote"):
        for count in range(8):
            moved.parts(("user", "assistant") * count, "user")


def test_a_role_that_cannot_be_split_leaves_the_others_usable() -> None:
    template = SPLITTABLE["instructions"][0]
    assert template.parts((), "system").prefix == "<s>[INST] <<SYS>>"
    with pytest.raises(ModelError, match="System role not supported"):
        SPLITTABLE["other names"][0].parts((), "system")
    with pytest.raises(ModelError, match="must alternate"):
        template.parts(("user", "assistant"), "tool")
    assert template.parts(("user",), "assistant").suffix == " </s>"


def test_nothing_is_compiled_before_it_is_needed() -> None:
    template = ChatTemplate("{% broken")
    assert template.source == "{% broken"
    with pytest.raises(ModelError, match="does not compile"):
        template.render([Message(role="user", content="x")])


@pytest.mark.model
def test_the_template_of_the_model() -> None:
    checkpoint = open_checkpoint("smollm2-135m")
    template = checkpoint.chat_template
    assert template is not None
    assert template.parts((), "user").prefix == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n<|im_start|>user\n"
    )
    messages = [
        Message(role="user", content=" Hi\n"),
        Message(role="assistant", content="Yes"),
        Message(role="user", content="?"),
    ]
    assert assembled(template, messages) == template.render(messages)
    parts = template.parts(("user", "assistant"), "user")
    assert checkpoint.tokenizer.split(parts.prefix) == [1, "user\n"]
    assert checkpoint.tokenizer.split(parts.suffix) == [2, "\n"]


THINKING = (
    "{% set end = '<|im_end|>\n' %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + end }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_arguments() -> None:
    template = ChatTemplate(THINKING)
    quick = template.with_arguments({"enable_thinking": False})
    assert template.generation(("user",)) == "<|im_start|>assistant\n"
    assert quick.generation(("user",)) == "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert quick.render([{"role": "user", "content": "a"}], True).endswith("</think>\n\n")
    assert template.with_arguments({"enable_thinking": False}) is quick
    assert template.with_arguments({"enable_thinking": True}) is not quick


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_thinkin": 1}, "does not read 'enable_thinkin'; what it reads: enable_thinking"),
        ({"end": "x"}, None),
        ({"messages": []}, "'messages' of the chat template is set by itself"),
        ({"bos_token": "x"}, "'bos_token' of the chat template is set by itself"),
        ({"enable_thinking": object()}, "must be JSON"),
        ({"enable_thinking": float("nan")}, "must be JSON"),
    ],
)
def test_arguments_that_the_template_does_not_take(
    arguments: dict[str, Any], message: str | None
) -> None:
    if message is None:  # it sets this one itself, so that nothing changes
        changed = ChatTemplate(THINKING).with_arguments(arguments)
        assert changed.parts((), "user").suffix == "<|im_end|>\n"
        return
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(THINKING).with_arguments(arguments)
