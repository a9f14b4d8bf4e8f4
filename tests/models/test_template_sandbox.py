from __future__ import annotations

from datetime import datetime

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from asgl.errors import ModelError
from asgl.models.template_sandbox import MAX_TEMPLATE, CompiledTemplate

MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0]['content'] }}", "Hi"),
        ("{%- for m in messages -%}\n  {{ m.role }}: {{ m.content }}\n{%- endfor -%}", "user: Hi"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% "
            "endfor %}{{ ns.n }}",
            "10",
        ),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break "
            "%}{% endif %}"
            "{{ i }}{% endfor %}",
            "013",
        ),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hi"}]'),
        ("{{ {'a': 'é<'} | tojson(indent=1) }}", '{\n "a": "é<"\n}'),
        ("{{ 'a</think>b'.split('</think>')[-1].lstrip('\n') }}", "b"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('y') }}", "<y>"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Hi"),
        ("{{ messages | map(attribute='content') | join(', ') | replace('i', 'o') }}", "Ho"),
        ("{{ 'x' ~ 1 ~ none ~ true }}{{ [1, 2][0] + (3, 4)[1] }}", "x1NoneTrue5"),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}"
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
            "a11",
        ),
        ("{{ 'yes' if strftime_now is defined else 'no' }}", "yes"),
        ("{{ '=' * 5 }}{{ 7 % 4 }}{{ 'ab' * 0 }}", "=====3"),
        ("{% if true %}\n  a\n{% endif %}\nb", "  a\nb"),
    ],
)
def test_what_templates_do(source: str, text: str) -> None:
    render = CompiledTemplate(source).render
    assert render(MESSAGES) == text
    assert render(MESSAGES) == text, "and again"


AS_TRANSFORMERS = [
    "{{ value | tojson }}",
    "{{ value | tojson(indent=2) }}",
    "{{ value | tojson(indent='\t', sort_keys=true) }}",
    "{{ value | tojson(true) }}",
    "{{ value | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "{{ value | tojson(separators=(', ', ' = '), sort_keys=True) }}",
    "{{ 1.0 | tojson }}{{ none | tojson }}{{ [true, 1e30] | tojson }}",
    "{{ strftime_now('%Y-%m') }} {{ strftime_now('%B') | upper }}",
    "{{ ['a', 'b', 'c'] | batch(2, 'x') | list }}{{ [1, 2, 3] | slice(2) | list }}",
    "{{ 'text' | center(20) }}|{{ 'a\nb' | indent(4, true) }}|{{ 'a b c' | wordwrap(1) }}",
    "{{ '%s is %5.2f' | format('x', 2) }}{{ '%s %d' % ('y', 3) }}{{ '{:>8} {}'.format('z', 4) }}",
    "{{ 'a-b'.join(['x', 'y']) }}{{ 'x'.ljust(3) }}|{{ '7'.zfill(3) }}{{ 'a\tb'.expandtabs(2) }}",
    "{{ value.items() | groupby(0) | list | length }}{{ 'a b' | wordcount }}",
    "{{ value | pprint }}{{ 'a b' | urlencode }}{{ 1234567 | filesizeformat }}{{ 'x' | e }}",
    "{{ '<b>x</b>' | striptags }}{{ 'a long text here' | truncate(9, true) }}",
    "{% set a = joiner(', ') %}{% for i in [1, 2] %}{{ a() }}{{ i }}{% endfor %}",
    "{% set c = cycler('x', 'y') %}{% for i in range(3) %}{{ c.next() }}{% endfor %}",
    "{% set ns = namespace(a=1, b='c') %}{% set ns.a = 2 %}{{ ns.a }}{{ ns.b }}",
    "{{ dict(a=1) }}{{ dict.fromkeys(['x'], 1) }}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% generation %}  a\n{% endgeneration %}\n b",
    "{% for x in [1, 2, 3] if x > 1 %}{{ loop.index }}{{ loop.previtem }}{% endfor %}",
    "{{ undefined_thing }}{{ undefined_thing is defined }}{{ value.nothing }}{{ value['né'] }}",
    "{{ 'Ab'.casefold() }}{{ 'ab'.swapcase() }}{{ 'a'.isascii() }}{{ 'abc'.rindex('c') }}",
    "{{ 1 is number }}{{ 'x' is string }}{{ value is mapping }}{{ [1] is iterable }}{{ 3 is odd }}",
    "{%- filter upper -%} text {%- endfilter -%}{% call(x) m() %}{{ x }}{% endcall %}"
    "{% macro m() %}<{{ caller('y') }}>{% endmacro %}",
    "{% with a = 1 %}{{ a }}{% endwith %}{% set b %}x{{ 1 }}{% endset %}{{ b | length }}",
]


@pytest.mark.parametrize("source", AS_TRANSFORMERS)
def test_what_a_template_writes_is_what_it_writes_in_transformers(source: str) -> None:
    variables = {"value": {"b": [1, "é <'\"&>", None], "a": {"c": 0.5}}, "messages": []}
    try:
        expected, _ = render_jinja_template(
            conversations=[[]], chat_template=source, value=variables["value"]
        )
    except jinja2.TemplateError:
        with pytest.raises(ModelError):
            CompiledTemplate(source).render(variables)
        return
    assert CompiledTemplate(source).render(variables) == expected[0]


def test_times() -> None:
    now = datetime(2031, 5, 7, 12, 30)
    template = CompiledTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: now)
    assert template.times() == ()
    assert template.render({}) == "07 May 2031"
    assert template.times() == ("07 May 2031",)
    now = datetime(2031, 5, 8)
    assert template.times() == ("08 May 2031",)


def again(start: str, expression: str) -> str:
    """Evaluates the expression 60 times, each time on its last value `ns.s`."""
    loop = "{% for i in range(60) %}{% set ns.s = " + expression + " %}{% endfor %}"
    return "{% set ns = namespace(s=" + start + ") %}" + loop + "{{ ns.s }}"


TOO_MUCH = {
    "a loop in a loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% "
    "endfor %}",
    "a long loop with output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a range that is too long": "{% for i in range(10**9) %}{% endfor %}",
    "a huge text": "{{ 'x' * 1000000000 }}",
    "a huge text, the other way": "{{ 1000000000 * 'x' }}",
    "a huge list": "{{ ([0] * 1000000000) | length }}",
    "a list in a list": "{{ ([[0] * 1000000] * 1000000) | length }}",
    "doubling": again("'x'", "ns.s ~ ns.s"),
    "doubling by adding": again("'x'", "ns.s + ns.s"),
    "doubling without a loop": "{% set s = 'xxxxxxxxxx' %}"
    + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
    "doubling lists": again("[1]", "[ns.s, ns.s]"),
    "doubling tuples": again("(1,)", "(ns.s, ns.s)"),
    "doubling dicts": again("1", "{'a': ns.s, 'b': ns.s}"),
    "doubling by dict()": again("1", "dict(a=ns.s, b=ns.s)") + "{{ ns.s == ns.s }}",
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a number that grows": again("10", "ns.s * ns.s"),
    "formatting": "{{ '%1000000000d' % 1 }}",
    "padding": "{{ 'x'.ljust(1000000000) }}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "join": "{{ (['y' * 10000] * 10000) | join('x' * 10000) | length }}",
    "join by method": "{{ ('x' * 100000).join(['y'] * 100000) | length }}",
    "replace": "{{ ('x' * 10000) | replace('x', 'y' * 100000) | length }}",
    "replace by method": "{{ ('x' * 10000).replace('x', 'y' * 100000) | length }}",
    "replace of nothing": "{{ ('x' * 10000).replace('', 'y' * 100000) | length }}",
    "an indent": "{{ [[1]] | tojson(indent=1000000000) }}",
    "a filter that pads": "{{ 'x' | center(1000000000) }}",
    "a filter that pads, by name": "{{ 'x' | center(width=1000000000) }}",
    "zeros": "{{ 'x'.zfill(1000000000) }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) }}",
    "a filter that fills": "{{ [1] | batch(1000000000, 'x') | list | length }}",
    "a filter that cuts": "{{ [1] | slice(1000000000) | list | length }}",
    "a filter that indents": "{{ 'x\nx' | indent(1000000000) }}",
    "a filter that indents by text": "{{ ('\n' * 100000) | indent('x' * 100000) }}",
    "a filter that breaks lines": "{{ ('x ' * 100000) | wordwrap(1, wrapstring='y' * 100000) }}",
    "a filter that formats": "{{ '%1000000000d' | format(1) }}",
    "a width from a value": "{{ '%*d' % (1000000000, 1) }}",
    "a width from a value, the other way": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "separators": "{{ ([1] * 100000) | tojson(separators=('y' * 100000, ':')) }}",
    "separators by place": "{{ ([1] * 100000) | tojson(false, none, ('y' * 100000, ':')) }}",
    "time formats": "{% for i in range(99) %}{{ strftime_now('%Y' ~ i) }}{% endfor %}",
    "an indent of text": "{{ [[1]] | tojson(indent='x' * 100000) }}",
    "a time format": "{{ strftime_now('%Y' * 100000) }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% "
    "endmacro %}{{ m(60) }}",
    "a recursive loop": "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "calls in a loop": "{% for i in range(90000) %}{{ 'a'.upper() }}{{ 'a' | upper }}{{ 'a' | "
    "lower | upper | lower | upper }}"
    "{% for j in range(100) %}{% endfor %}{% endfor %}",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", TOO_MUCH)
def test_work_and_memory_are_bounded(case: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        CompiledTemplate(TOO_MUCH[case]).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ lipsum() }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ ''.format_map(messages[0]) }}",
        "{{ messages | attr('__class__') }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    try:
        text = CompiledTemplate(source).render(MESSAGES)
    except ModelError:
        text = ""
    assert text == ""
    assert MESSAGES == {"messages": [{"role": "user", "content": "Hi"}]}


def test_a_template_that_is_too_long() -> None:
    with pytest.raises(ModelError, match="characters"):
        CompiledTemplate("x" * (MAX_TEMPLATE + 1))
    nested = "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"
    with pytest.raises(ModelError, match="does not compile"):
        CompiledTemplate(nested)


def test_what_is_given_does_not_count_against_the_template() -> None:
    long = [{"role": "user", "content": "x" * 1000} for _ in range(30_000)]
    render = CompiledTemplate(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    ).render
    assert len(render({"messages": long})) == 30_000_000
