"""Chat templates that know tools, each in the shape of a family of models: written for these tests,
with names of their own."""

from __future__ import annotations

WRAPPED = r"""
{%- if tools %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- '# Tools\n' }}
{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{% endfor %}{{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant' }}
{{- '\n' + m.content if m.content else '' }}
{%- for c in m.tool_calls %}
{{- '\n<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson }}{{- '}\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
"""As Hermes and Qwen: calls in tags, several in one message, results in a message of the user."""

BARE = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call only') }}{% endif %}<|h|>assistant<|/h|>"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ '
    "m.tool_calls[0].function.arguments | tojson }}}<|e|>"
    "{% elif m.role == 'tool' %}<|h|>ipython<|/h|>{{ m.content }}<|e|>"
    "{% else %}<|h|>{{ m.role }}<|/h|>{% if m.role == 'user' and tools and loop.last %}{{ tools | "
    "tojson }}{% endif %}"
    "{{ m.content }}<|e|>{% endif %}{% endfor %}{% if add_generation_prompt "
    "%}<|h|>assistant<|/h|>{% endif %}"
)
"""One call at a time, as a bare object with "parameters"."""

LLAMA = (
    "{{- bos_token }}{%- if tools_in_user_message is not defined %}{%- set tools_in_user_message = "
    "true %}{%- endif %}"
    "{%- if messages[0].role == 'system' %}{%- set before = messages[0].content | trim %}{%- set "
    "messages = messages[1:] %}"
    "{%- else %}{%- set before = '' %}{%- endif %}"
    "{{- '<|im_start|>system\n\n' }}{%- if tools %}{{- 'Setting: ipython\n' }}{%- endif %}{{- "
    "'Today: 1 May\n\n' }}"
    "{%- if tools and not tools_in_user_message %}{{- 'Functions, to be called by JSON:\n\n' }}"
    "{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\n\n' }}{%- endfor %}{%- endif "
    "%}{{- before }}{{- '<|im_end|>' }}"
    "{%- if tools and tools_in_user_message %}{%- set first = messages[0].content | trim %}{%- set "
    "messages = messages[1:] %}"
    "{{- '<|im_start|>user\n\nFunctions, to be called by JSON:\n\n' }}"
    "{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\n\n' }}{%- endfor %}{{- first + "
    "'<|im_end|>' }}{%- endif %}"
    "{%- for m in messages %}{%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' "
    "in m) %}"
    "{{- '<|im_start|>' + m.role + '\n\n' + (m.content | trim) + '<|im_end|>' }}"
    "{%- elif 'tool_calls' in m %}{%- if m.tool_calls | length != 1 %}{{- raise_exception('one "
    "call at a time') }}{%- endif %}"
    "{%- set call = m.tool_calls[0].function %}{{- '<|im_start|>assistant\n\n' }}"
    '{{- \'{"name": "\' + call.name + \'", "parameters": \' }}{{- call.arguments | tojson }}{{- '
    "'}' }}{{- '<|im_end|>' }}"
    "{%- else %}{{- '<|im_start|>ipython\n\n' }}"
    "{%- if m.content is mapping or m.content is iterable %}{{- m.content | tojson }}{%- else "
    "%}{{- m.content }}{%- endif %}"
    "{{- '<|im_end|>' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- "
    "'<|im_start|>assistant\n\n' }}{%- endif %}"
)
"""As Llama 3: a date before the system message, tools in the user's message unless asked otherwise,
results as JSON texts."""

MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set rules = messages[0].content %}{%- set turns = "
    "messages[1:] %}"
    "{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}"
    "{%- for m in turns %}{%- if m.role == 'user' %}"
    "{%- if tools and m == (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{{- '[TOOLS] ' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}"
    "{%- if loop.last and rules is defined %}{{- '[INST] ' + rules + '\n\n' + m.content + "
    "'[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}"
    "{%- elif m.tool_calls is defined and m.tool_calls %}{{- '[CALLS] [' }}{%- for c in "
    "m.tool_calls %}"
    "{%- if c.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}"
    '{{- \'{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson) '
    "}}CLOSE"
    "{{- ', ' if not loop.last else ']' + eos_token }}{%- endfor %}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}"
    "{%- elif m.role == 'tool' %}{%- if not m.tool_call_id is defined %}{{- "
    "raise_exception('results need ids') }}{%- endif %}"
    "{{- '[RESULT] ' + m.content + '[/RESULT]' }}"
    "{%- else %}{{- raise_exception('no such role: ' + m.role) }}{%- endif %}{%- endfor %}"
)
MISTRAL_WITH_IDS = MISTRAL.replace("CLOSE", "{{- ', \"id\": \"' + c.id + '\"}' }}")
MISTRAL = MISTRAL.replace("CLOSE", "{{- '}' }}")
"""As Mistral: no message of the system of its own, calls as a list, results of the role "tool";
later ones have ids in calls."""
