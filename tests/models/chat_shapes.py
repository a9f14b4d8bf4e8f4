"""Chat templates in the shapes of public families of models: written for these tests from what is
known of the formats."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Shape(NamedTuple):
    template: str
    special: tuple[str, ...] = ()
    """Markers that are added tokens with `special: true`; beginning and end of a text are so
    anyway."""
    plain: tuple[str, ...] = ()
    """Markers that are added tokens with `special: false`."""
    bos: str = "<s>"
    eos: str = "</s>"
    flags: dict[str, Any] = {}  # noqa: RUF012
    """How markers are found."""
    last_apart: bool = False
    """Whether the template writes the last message unlike earlier ones."""
    refuses: tuple[str, ...] = ()
    """Conversations, as initials of roles, that transformers renders and that are refused here:
    the template changes what it wrote before."""


def q(text: str) -> str:
    """A string literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def simple(
    user: str,
    assistant: str,
    generation: str,
    system: str | None = None,
    head: str = "''",
    content: str = "m.content",
    tail: str = "",
) -> str:
    """A template that writes each message by its role alone. "@" is the content, $ the eos token,
    ^ the bos token; of `generation`, too. A `system` of None raises."""

    def written(form: str) -> str:
        parts = [
            {"@": f"({content})", "$": "eos_token", "^": "bos_token"}.get(part) or q(part)
            for part in _split(form)
        ]
        return "{{- " + " ~ ".join(parts or ["''"]) + " -}}"

    refused = "{{- raise_exception('no system messages here') -}}"
    return (
        "{{- " + head + " -}}{%- for m in messages -%}"
        "{%- if m.role == 'user' -%}" + written(user) + "{%- elif m.role == 'assistant' -%}"
        + written(assistant) + "{%- elif m.role == 'system' -%}"
        + (refused if system is None else written(system))
        + "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}" + written(generation)
        + "{%- else -%}" + (written(tail) if tail else "") + "{%- endif -%}"
    )  # fmt: skip


def _split(form: str) -> list[str]:
    parts = [""]
    for character in form:
        if character in "@$^":
            parts += [character, ""]
        else:
            parts[-1] += character
    return [part for part in parts if part]


def tokens(*names: str) -> tuple[str, ...]:
    return names


IM = tokens("<|im_start|>", "<|im_end|>")
CHATML = "<|im_start|>{0}\n@<|im_end|>\n"
CHATML_PARTS = (
    CHATML.format("user"),
    CHATML.format("assistant"),
    "<|im_start|>assistant\n",
    CHATML.format("system"),
)
PIPES = tokens("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
INST = tokens("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
LLAMA3 = tokens("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = tokens("<start_of_turn>", "<end_of_turn>")
DEEP = tokens("<｜User｜>", "<｜Assistant｜>")

LOOPED_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + LOOPED_CHATML.removeprefix("{% for message in messages %}")
)
QWEN25 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- else %}
    {{- 'You are Q, a helpful assistant.' }}{%- endif %}
    {{- '\\n\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\ncall as <tool_call>{}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Q, a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first)
           or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}{%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or thought) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA31 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == 'tool' or message.role == 'ipython' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
ALTERNATING = """\
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate') -}}
{%- endif -%}"""
LLAMA2 = (
    """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set turns = messages[1:] -%}{%- set system_message = messages[0]['content'] -%}
{%- else -%}
    {%- set turns = messages -%}{%- set system_message = false -%}
{%- endif -%}
{%- for message in turns -%}"""
    + ALTERNATING
    + """\
    {%- if loop.index0 == 0 and system_message != false -%}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message.content -%}
    {%- else -%}{%- set content = message['content'] -%}{%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + content + ' [/INST]' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ' + content + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""
)
MISTRAL1 = (
    "{{- bos_token -}}{%- for message in messages -%}"
    + ALTERNATING
    + """\
    {%- if message['role'] == 'user' -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}
    {%- elif message['role'] == 'assistant' -%}{{- message['content'] + eos_token + ' ' -}}
    {%- else -%}{{- raise_exception('only user and assistant') -}}{%- endif -%}
{%- endfor -%}"""
)
MISTRAL3 = (
    """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system_message = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set turns = messages -%}{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}"""
    + ALTERNATING
    + """\
    {%- if message['role'] == 'user' -%}
        {%- if loop.last and system_message is defined -%}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' -}}
        {%- else -%}{{- '[INST] ' + message['content'] + '[/INST]' -}}{%- endif -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ' + message['content'] | trim + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""
)
MISTRAL_SMALL = """\
{%- set today = strftime_now("%Y-%m-%d") %}
{%- set default = "You are M. The date is " + today + "." %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}{%- set system_message = default %}{%- set turns = messages %}{%- endif %}
{{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}{{- '[INST]' + message['content'] + '[/INST]' }}
    {%- elif message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}
    {%- else %}{{- raise_exception('no such role') }}{%- endif %}
{%- endfor %}"""
GEMMA2 = (
    """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}"""
    + ALTERNATING
    + """\
{% if message['role'] == 'assistant' %}{% set role = 'model' %}
{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
)
GEMMA3 = (
    """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set first = "" -%}{%- set turns = messages -%}{%- endif -%}
{%- for message in turns -%}"""
    + ALTERNATING
    + """\
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"""
)
FALCON = """\
{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}
{%- if message['role'] == 'system' %}{{ 'System: ' + message['content'] }}
{%- elif message['role'] == 'user' %}{{ 'User: ' + message['content'] }}
{%- elif message['role'] == 'assistant' %}{{ 'Falcon: ' + message['content'] }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '\\n\\n' + 'Falcon:' }}{% endif %}"""
OPENCHAT = """\
{{ bos_token }}{% for message in messages %}
{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>'}}
{%- endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"""
VICUNA = """\
{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}
{% set system_message = messages[0]['content'] %}
{% else %}{% set turns = messages %}
{% set system_message = 'A chat between a curious user and an assistant.' %}{% endif %}
{{- system_message }}{% for message in turns %}
{%- if message['role'] == 'user' %}{{ ' USER: ' + message['content'] | trim }}
{%- elif message['role'] == 'assistant' %}
{{- ' ASSISTANT: ' + message['content'] | trim + eos_token }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"""
R1 = (
    "{%- set ns = namespace(system='') -%}{%- for m in messages -%}{%- if m.role == 'system' -%}"
    "{%- set ns.system = m.content -%}{%- endif -%}{%- endfor -%}{{ bos_token }}{{ ns.system }}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{ '<｜User｜>' + m.content }}"
    "{%- elif m.role == 'assistant' -%}{% set content = m.content %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif -%}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
GRANITE3 = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024.\nToday's Date: "
                             + strftime_now('%B %d, %Y') + ".\nYou are G." %}
    {%- set turns = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
{%- for message in turns %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}
    {{- '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""
SMOLLM3 = """\
{%- set system_message = '' -%}{%- set mode = '/think' -%}
{%- if messages[0].role == 'system' -%}
    {%- set system_message = messages[0].content.replace('/no_think', '').rstrip() -%}
    {%- if '/no_think' in messages[0].content -%}{%- set mode = '/no_think' -%}{%- endif -%}
{%- endif -%}
{{- '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') -}}
{{- '\nReasoning Mode: ' + mode + '\n\n## Custom Instructions\n\n' -}}
{%- if system_message -%}{{- system_message + '\n\n' -}}{%- endif -%}{{- '<|im_end|>\n' -}}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' -%}
        {% generation %}
        {%- if mode == '/think' -%}
            {{ '<|im_start|>assistant\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}
        {%- else -%}
            {{ '<|im_start|>assistant\n<think>\n\n</think>\n' + message.content + '<|im_end|>\n' }}
        {%- endif -%}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""
OLMO = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}
{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}
{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"""
HARMONY = """\
{%- macro system_message() -%}
    {{- "You are G.\nKnowledge cutoff: 2024-06\nCurrent date: " + strftime_now("%Y-%m-%d") }}
    {{- "\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final." }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}{{- system_message() }}{{- "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {{- "<|start|>developer<|message|># Instructions\n\n" + messages[0].content + "<|end|>" }}
    {%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{%- for message in turns -%}
    {%- if message.role == 'assistant' -%}
        {%- if loop.last and not add_generation_prompt %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
        {%- endif %}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""
HERMES = """\
{{- bos_token }}
{%- if tools %}{{- '<|im_start|>system\nTools: ' }}
{%- for tool in tools %}{{- tool | tojson(indent=1) }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == "user" or message.role == "system"
       or (message.role == "assistant" and message.tool_calls is not defined) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- elif message.role == "tool" %}
{%- if loop.previtem and loop.previtem.role != "tool" %}{{- '<|im_start|>tool\n' }}{%- endif %}
{{- '<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if not loop.last and loop.nextitem.role != "tool" %}{{- '<|im_end|>' }}
{%- elif loop.last %}{{- '<|im_end|>' }}{%- endif %}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
CHATGLM2 = """\
{% for message in messages %}{% if loop.first and message.role == 'system' %}
{{- raise_exception('no system') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\n\n问：' }}
{{- message['content'] }}{% elif message['role'] == 'assistant' %}
{{- '\n\n答：' + message['content'] + '\n\n' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '\n\n答：' }}{% endif %}"""
GLM4 = """\
[gMASK]<sop>
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ m.content }}
{%- elif m.role == 'assistant' %}<|assistant|>
{{ m.content }}
{%- elif m.role == 'system' %}<|system|>
{{ m.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{%- endif %}"""
GLM45 = """\
[gMASK]<sop>
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last = loop.index0 -%}
{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ m.content }}
{%- elif m.role == 'assistant' %}<|assistant|>
{%- if loop.index0 > ns.last %}{{ '\n<think></think>' }}{%- endif %}{{ '\n' + m.content.strip() }}
{%- elif m.role == 'system' %}<|system|>
{{ m.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '\n' }}{%- endif %}"""
DBRX = """\
{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set turns = messages %}
{% set system_message = 'You are D.' %}{% endif %}
{% for message in turns %}{% if loop.index0 == 0 %}
{{ '<|im_start|>system\n' + system_message | trim + '<|im_end|>\n' }}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% else %}
{{ '\n' + '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% endif %}
{% if (add_generation_prompt == true and loop.last) %}
{{ '\n' + '<|im_start|>' + 'assistant' + '\n' }}{% endif %}{% endfor %}"""
QWEN35 = """\
{%- if not messages | selectattr('role', 'equalto', 'user') | list %}
    {{- raise_exception('No user query found in messages.') }}{%- endif %}
{%- for m in messages %}{%- set content = m.content | trim %}
    {%- if m.role == 'system' and not loop.first %}
        {{- raise_exception('System first.') }}{%- endif %}
    {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"""
COMMAND_R = simple(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>@<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>@<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>@<|END_OF_TURN_TOKEN|>",
    head="bos_token",
    content="m.content.strip()",
)
COMMAND = tokens(
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
)
LINES = (
    "{%- for m in messages -%}{%- if m.role == 'function' -%}{%- continue -%}{%- endif -%}"
    "{%- generation -%}{{ m.role | capitalize }}: {{ m.content | indent(0) }}{{ '\n' }}"
    "{%- endgeneration -%}{%- endfor -%}{%- if add_generation_prompt -%}Assistant:{%- endif -%}"
)
RSTRIP = {"rstrip": True}
BOTH = {"lstrip": True, "rstrip": True}

SHAPES: dict[str, Shape] = {
    "chatml": Shape(LOOPED_CHATML, IM),
    "chatml, plain markers": Shape(LOOPED_CHATML, (), IM),
    "chatml, mixed markers": Shape(LOOPED_CHATML, IM[:1], IM[1:], eos="<|im_end|>"),
    "chatml, bos": Shape(simple(*CHATML_PARTS, head="bos_token"), IM),
    "chatml, default system": Shape(DEFAULT_SYSTEM, IM, bos="<|endoftext|>", eos="<|im_end|>"),
    "qwen 2.5": Shape(
        QWEN25, IM, tokens("<tool_call>", "</tool_call>", "<tools>"), eos="<|im_end|>"
    ),
    "qwen 3": Shape(
        QWEN3, IM, tokens("<think>", "</think>"), eos="<|im_end|>", last_apart=True
    ),
    "qwen 3.5": Shape(QWEN35, IM, ("<think>",), eos="<|im_end|>"),
    "qwq": Shape(
        LOOPED_CHATML.replace("assistant\n'", "assistant\n<think>\n'"), IM, ("<think>",)
    ),
    "internlm 2": Shape(simple(*CHATML_PARTS, head="bos_token"), (), IM, flags=RSTRIP),
    "internlm": Shape(
        simple("<|User|>:@<eoh>\n", "<|Bot|>:@<eoa>\n", "<|Bot|>:", head="bos_token"),
        ("<eoh>", "<eoa>"),
    ),
    "smollm 3": Shape(SMOLLM3, IM),
    "hermes with tools": Shape(HERMES, IM, tokens("<tool_response>", "</tool_response>")),
    "dbrx": Shape(DBRX, IM),
    "lfm 2": Shape(simple(*CHATML_PARTS, head="bos_token"), (*IM, "<|tool_list_start|>")),
    "phi 3": Shape(
        simple(
            "<|user|>\n@<|end|>\n", "<|assistant|>\n@<|end|>\n", "<|assistant|>\n",
            "<|system|>\n@<|end|>\n", tail="$",
        ),
        PIPES, flags=RSTRIP, last_apart=True,
    ),
    "phi 4": Shape(
        simple(
            "<|im_start|>user<|im_sep|>@<|im_end|>", "<|im_start|>assistant<|im_sep|>@<|im_end|>",
            "<|im_start|>assistant<|im_sep|>", "<|im_start|>system<|im_sep|>@<|im_end|>",
        ),
        (*IM, "<|im_sep|>"), flags=BOTH,
    ),
    "phi 4 mini": Shape(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}"
        "{{ eos_token }}{% endif %}",
        (), PIPES, last_apart=True,
    ),
    "zephyr": Shape(
        simple(
            "<|user|>\n@$\n", "<|assistant|>\n@$\n", "<|assistant|>\n", "<|system|>\n@$\n"
        ),
    ),
    "stablelm zephyr": Shape(
        simple("<|user|>\n@$\n", "<|assistant|>\n@$\n", "<|assistant|>\n",
               "<|system|>\n@$\n", content="m.content.strip()"),
        (), PIPES[:3],
    ),
    "tulu": Shape(
        simple("<|user|>\n@\n", "<|assistant|>\n@$\n", "<|assistant|>\n", "<|system|>\n@\n")
    ),
    "starchat": Shape(
        simple("<|user|>\n@<|end|>\n", "<|assistant|>\n@<|end|>\n", "<|assistant|>\n",
               "<|system|>\n@<|end|>\n"),
        PIPES,
    ),
    "olmo": Shape(OLMO, (), PIPES[:3], last_apart=True),
    "falcon": Shape(FALCON),
    "falcon 3": Shape(
        simple("<|user|>\n@\n", "<|assistant|>\n@$\n", "<|assistant|>\n", "<|system|>\n@\n"),
        PIPES[:3],
    ),
    "openchat": Shape(OPENCHAT, ("<|end_of_turn|>",)),
    "openchat, plain end": Shape(OPENCHAT, (), ("<|end_of_turn|>",)),
    "vicuna": Shape(VICUNA),
    "vicuna, lines": Shape(
        simple("USER: @\n", "ASSISTANT: @$\n", "ASSISTANT:", "@\n\n", head="bos_token")
    ),
    "koala": Shape(
        simple("USER: @ ", "GPT: @$", "GPT:", "@ ", head="'BEGINNING OF CONVERSATION: '")
    ),
    "alpaca": Shape(
        simple("### Instruction:\n@\n\n", "### Response:\n@$\n\n", "### Response:\n", "@\n\n")
    ),
    "guanaco": Shape(simple("### Human: @\n", "### Assistant: @\n", "### Assistant:", "@\n")),
    "solar": Shape(
        simple("### User:\n@\n\n", "### Assistant:\n@\n\n", "### Assistant:\n",
               "### System:\n@\n\n")
    ),
    "dolly": Shape(
        simple("### Instruction:\n@\n\n", "### Response:\n@\n\n### End\n\n", "### Response:\n"),
        (), ("### Instruction:", "### Response:", "### End"),
    ),
    "deepseek coder": Shape(
        simple("### Instruction:\n@\n", "### Response:\n@\n<|EOT|>\n", "### Response:", "@\n",
               head="bos_token ~ 'You are an AI programming assistant.\n'"),
        ("<|EOT|>",),
    ),
    "deepseek llm": Shape(
        simple("User: @\n\n", "Assistant: @$", "Assistant:", "@\n\n", head="bos_token")
    ),
    "deepseek 3": Shape(
        simple("<｜User｜>@", "<｜Assistant｜>@$", "<｜Assistant｜>", "@", head="bos_token"),
        (), DEEP, bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>",
    ),
    "deepseek r1": Shape(
        R1, (), (*DEEP, "<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>",
    ),
    "hunyuan": Shape(
        simple("<｜hy_User｜>@", "<｜hy_Assistant｜>@$", "<｜hy_Assistant｜>", "@",
               head="bos_token"),
        ("<｜hy_User｜>", "<｜hy_Assistant｜>"),
    ),
    "llama 2": Shape(LLAMA2),
    "llama 3": Shape(
        simple(
            "<|start_header_id|>user<|end_header_id|>\n\n@<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n@<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|start_header_id|>system<|end_header_id|>\n\n@<|eot_id|>",
            head="bos_token", content="m.content | trim",
        ),
        LLAMA3, bos="<|begin_of_text|>", eos="<|eot_id|>",
    ),
    "llama 3.1": Shape(LLAMA31, LLAMA3, bos="<|begin_of_text|>", eos="<|eot_id|>"),
    "llama 4": Shape(
        simple(
            "<|header_start|>user<|header_end|>\n\n@<|eot|>",
            "<|header_start|>assistant<|header_end|>\n\n@<|eot|>",
            "<|header_start|>assistant<|header_end|>\n\n",
            "<|header_start|>system<|header_end|>\n\n@<|eot|>", head="bos_token",
        ),
        ("<|header_start|>", "<|header_end|>", "<|eot|>"),
    ),
    "mistral 1": Shape(MISTRAL1),
    "mistral 1, plain markers": Shape(MISTRAL1, (), INST[:2]),
    "mistral 3": Shape(MISTRAL3, INST[:2], refuses=("su",)),
    "mistral small": Shape(MISTRAL_SMALL, INST),
    "gemma 2": Shape(GEMMA2, TURNS, bos="<bos>", eos="<eos>"),
    "gemma 3": Shape(GEMMA3, TURNS, bos="<bos>", eos="<eos>"),
    "gemma 4": Shape(
        simple("<|turn>user\n@<turn|>\n", "<|turn>model\n@<turn|>\n", "<|turn>model\n",
               "<|turn>system\n@<turn|>\n", head="bos_token", content="m.content | trim"),
        ("<|turn>", "<turn|>"), bos="<bos>", eos="<eos>",
    ),
    "command r": Shape(COMMAND_R, COMMAND[:5], bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>"),
    "command r7b": Shape(
        COMMAND_R.replace("<|CHATBOT_TOKEN|>", "<|CHATBOT_TOKEN|><|START_RESPONSE|>"),
        COMMAND, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>",
    ),
    "granite 2": Shape(
        simple("Question:\n@\n\n", "Answer:\n@\n\n", "Answer:\n", "System:\n@\n\n")
    ),
    "granite 3": Shape(
        GRANITE3, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        bos="<|end_of_text|>", eos="<|end_of_text|>",
    ),
    "gpt-oss": Shape(
        HARMONY, ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
        eos="<|return|>", last_apart=True,
    ),
    "chatglm 2": Shape(CHATGLM2),
    "glm 4": Shape(GLM4, ("[gMASK]", "<sop>", *PIPES[:3]), bos="", eos="<|user|>"),
    "glm 4.5": Shape(
        GLM45, ("[gMASK]", "<sop>", *PIPES[:3]), ("<think>", "</think>"), bos="",
        last_apart=True,
    ),
    "baichuan 2": Shape(
        simple("<reserved_106>@", "<reserved_107>@", "<reserved_107>", "@"),
        (), ("<reserved_106>", "<reserved_107>"),
    ),
    "minicpm": Shape(
        simple("<用户>@", "<AI>@", "<AI>", "@", content="m.content | trim"), (), ("<用户>", "<AI>")
    ),
    "minitron": Shape(
        simple("<extra_id_1>User\n@\n", "<extra_id_1>Assistant\n@\n", "<extra_id_1>Assistant\n",
               "<extra_id_0>System\n@\n\n"),
        ("<extra_id_0>", "<extra_id_1>"),
    ),
    "exaone": Shape(
        simple("[|user|]@\n", "[|assistant|]@[|endofturn|]\n", "[|assistant|]",
               "[|system|]@[|endofturn|]\n"),
        ("[|user|]", "[|assistant|]", "[|system|]"), ("[|endofturn|]",),
    ),
    "orion": Shape(
        simple("Human: @\n\nAssistant: $", "@$", "", head="bos_token")
    ),
    "xverse": Shape(simple("Human: @\n\n", "Assistant: @$", "Assistant: ", "@\n")),
    "aquila": Shape(simple("###Human: @", "###Assistant: @$", "###Assistant: ", "@")),
    "redpajama": Shape(simple("<human>: @\n", "<bot>: @\n", "<bot>:")),
    "jamba": Shape(
        simple("<|bom|><|user|> @<|eom|>", "<|bom|><|assistant|> @<|eom|>", "<|bom|><|assistant|>",
               "<|bom|><|system|> @<|eom|>", head="bos_token"),
        ("<|bom|>", "<|eom|>", *PIPES[:3]), bos="<|startoftext|>",
    ),
    "kimi": Shape(
        simple("<|im_user|>user<|im_middle|>@<|im_end|>",
               "<|im_assistant|>assistant<|im_middle|>@<|im_end|>",
               "<|im_assistant|>assistant<|im_middle|>",
               "<|im_system|>system<|im_middle|>@<|im_end|>"),
        ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>"),
    ),
    "ernie": Shape(
        simple("User: @\n", "Assistant: @$", "Assistant: ", "@\n", head="bos_token"),
        bos="<|begin_of_sentence|>", eos="<|end_of_sentence|>",
    ),
    "seed": Shape(
        simple("^user\n@$", "^assistant\n@$", "^assistant\n", "^system\n@$"),
        bos="<seed:bos>", eos="<seed:eos>",
    ),
    "apertus": Shape(
        simple("<|user_start|>@<|user_end|>", "<|assistant_start|>@<|assistant_end|>",
               "<|assistant_start|>", "<|system_start|>@<|system_end|>", head="bos_token"),
        ("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
         "<|system_start|>", "<|system_end|>"),
    ),
    "lines, marked for training": Shape(LINES),
}  # fmt: skip
