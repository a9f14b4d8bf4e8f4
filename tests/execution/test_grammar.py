"""Grammars alone: what compiles, what is refused and how fast, what may come next, and what
must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from asgl.errors import GrammarError
from asgl.execution import grammar as module
from asgl.execution.grammar import Compiler, Limits, Matcher
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_json import tokenizer_json
from asgl.types import GrammarSource
from tiny import tokenizer_definition, vocabulary

ENDS = (282, 283)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_definition()))
    return tokenizer_json(path, vocabulary=len(vocabulary()[0]))


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer)


def regex(text: str, open_end: bool = False) -> GrammarSource:
    return GrammarSource("regex", text, open_end)


def schema(content: object) -> GrammarSource:
    return GrammarSource("json_schema", json.dumps(content))


def choices(*options: str) -> GrammarSource:
    return GrammarSource("choices", json.dumps(options))


def allowed(matcher: Matcher, banned=()) -> set[int]:
    mask = matcher.mask(banned)
    return {token for token in range(len(mask) * 8) if mask[token // 8] >> token % 8 & 1}


def push_text(matcher: Matcher, tokenizer: Tokenizer, text: str) -> None:
    for token in tokenizer.encode(text):
        assert token in allowed(matcher)
        matcher.push(token)


def accepts(compiler: Compiler, tokenizer: Tokenizer, source: GrammarSource, text: str) -> bool:
    """Whether the text is a sentence, in the longest tokens that the grammar takes."""
    matcher, left = compiler.compile(source).matcher(()), text.encode()
    while left:
        if matcher.complete:
            return False
        fits = [
            token for token in allowed(matcher) if left.startswith(tokenizer.token_bytes(token))
        ]
        if not fits:
            return False
        longest = max(fits, key=lambda token: len(tokenizer.token_bytes(token)))
        matcher.push(longest)
        left = left[len(tokenizer.token_bytes(longest)) :]
    return matcher.accepting


def test_the_mask_has_the_tokens_that_may_come_and_the_ends_where_the_text_may_end(
    compiler, tokenizer
):
    matcher = compiler.compile(regex("(the|th)?")).matcher(ENDS)
    the, th = tokenizer.encode("the")[0], tokenizer.encode("th")[0]
    assert allowed(matcher) == {ord("t"), th, the, *ENDS}
    assert matcher.accepting
    assert len(matcher.mask()) == 288 // 8
    matcher.push(ord("t"))
    assert not matcher.accepting
    assert allowed(matcher) == {ord("h")} | {
        token for token in range(256, 288) if tokenizer.token_bytes(token) == b"he"
    }
    matcher.push(ord("h"))
    assert allowed(matcher) == {ord("e"), *ENDS}
    assert not matcher.complete
    matcher.push(ord("e"))
    assert matcher.complete
    assert matcher.accepting
    assert matcher.error is None


def test_banned_tokens_are_left_out_unless_nothing_else_remains(compiler):
    matcher = compiler.compile(regex("[ab]?")).matcher(ENDS)
    assert allowed(matcher, ENDS) == {ord("a"), ord("b")}
    assert allowed(matcher, [ord("a"), ord("b"), *ENDS]) == {ord("a"), ord("b"), *ENDS}


def test_forced_tokens_are_those_of_the_whole_text_and_stop_short_of_what_may_still_merge(
    compiler, tokenizer
):
    matcher = compiler.compile(regex("and you(r|th)")).matcher(ENDS)
    forced = list(matcher.forced())
    assert tokenizer.decode(forced) == "and you"[: len(tokenizer.decode(forced))]
    assert (
        forced
        == tokenizer.encode("and your")[: len(forced)]
        == tokenizer.encode("and youth")[: len(forced)]
    )
    assert len(forced) >= 1
    for token in forced:
        matcher.push(token)
    assert matcher.forced() == []
    whole = compiler.compile(regex("the other and you")).matcher(ENDS)
    assert list(whole.forced()) == tokenizer.encode("the other and you")
    assert allowed(whole) == {whole.forced()[0]}


def test_a_number_with_an_open_end_ends_with_any_other_token(compiler):
    matcher = compiler.compile(regex("-?[1-9][0-9]*", open_end=True)).matcher(ENDS)
    assert allowed(matcher) == {ord("-"), *range(ord("1"), ord("9") + 1)}
    assert matcher.ends(ord("x"))
    assert not matcher.ends(ord("4"))
    matcher.push(ord("4"))
    assert len(allowed(matcher)) == 288
    assert not matcher.ends(ord("2"))
    assert matcher.ends(ord("."))
    assert matcher.ends(ENDS[0])


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        (
            choices("yes", "no", "yes please"),
            ["yes", "no", "yes please"],
            ["", "ye", "yes ", "noo"],
        ),
        (
            choices("a.b", "[x]\n\"'\\", "Zürich 中", "{1}"),
            ["a.b", "[x]\n\"'\\", "Zürich 中", "{1}"],
            ["axb", "x", "Zurich", "1"],
        ),
        (regex("^a{2,3}(b|é)$"), ["aab", "aaaé"], ["ab", "aaaab", "aac"]),
        (
            GrammarSource("grammar", 'start: e\ne: N "+" e | N\nN: /[0-9]/'),
            ["1", "1+2+3"],
            ["1+", "+", "12"],
        ),
        (
            schema(
                {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "null"}},
                    "required": ["a"],
                }
            ),
            ['{"a": 1}', '{"a": -20, "b": null}'],
            ['{"a":1}', '{"b": null}', '{"a": 1, "c": 2}', '{"a": 1.5}', "{}"],
        ),
        (
            schema(
                {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}},
                    "additionalProperties": {"type": "null"},
                }
            ),
            ["{}", '{"a": 1, "c": null}'],
            ['{"a": 1, "c": 2}'],
        ),
        (
            schema(
                {
                    "type": "object",
                    "properties": {"properties": {"const": 1}},
                    "required": ["properties"],
                }
            ),
            ['{"properties": 1}'],
            ['{"properties": 1, "additionalProperties": 2}'],
        ),
        (
            schema(
                {
                    "allOf": [
                        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
                        {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]},
                    ]
                }
            ),
            ['{"a": 1, "b": 2}'],
            ['{"a": 1}'],
        ),
        (
            schema(
                {
                    "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
                    "discriminator": {"propertyName": "k"},
                    "$defs": {
                        name: {
                            "type": "object",
                            "properties": {"k": {"const": name}},
                            "required": ["k"],
                        }
                        for name in "AB"
                    },
                }
            ),
            ['{"k": "A"}', '{"k": "B"}'],
            ['{"k": "C"}'],
        ),
        (schema({"enum": ["x", 1, None]}), ['"x"', "1", "null"], ["x", "2"]),
    ],
)
def test_sentences(compiler, tokenizer, source, right, wrong):
    for text in right:
        assert accepts(compiler, tokenizer, source, text), text
    for text in wrong:
        assert not accepts(compiler, tokenizer, source, text), text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (regex("a(b"), r"the regex does not compile:\n    a\(b\n     \^\nerror: unclosed group"),
        (regex("(?=a)b"), "look-ahead"),
        (regex(r"(a)\1"), "backreferences are not supported"),
        (
            GrammarSource("grammar", 'start: foo\nbar: "x"'),
            r"the grammar does not compile:\nat 1\(8\): unknown name: .foo.",
        ),
        (
            schema(
                {
                    "type": "object",
                    "properties": {"x": {}, "a": {"type": "array", "items": {"type": "strin"}}},
                }
            ),
            r"the JSON schema does not compile at /properties/a/items: Invalid type: 'strin'",
        ),
        (
            schema(
                {
                    "type": "object",
                    "properties": {"a": {"$ref": "#/$defs/X"}},
                    "$defs": {"X": {"type": "integer", "minimum": 5, "maximum": 3}},
                }
            ),
            r"at /\$defs/X: no number is within the bounds",
        ),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema(False), "the JSON schema does not compile"),
    ],
)
def test_what_does_not_compile_says_where(compiler, source, message):
    with pytest.raises(GrammarError, match=message):
        compiler.compile(source)
    assert compiler.known(source) is None


def test_what_would_explode_is_refused_by_counts(tokenizer):
    product = schema(
        {
            "allOf": [
                {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {f"a{i}{j}": {"type": "string"}},
                            "required": [f"a{i}{j}"],
                        }
                        for j in range(6)
                    ]
                }
                for i in range(6)
            ]
        }
    )
    doubled = "\n".join(f"R{i}: R{i + 1} R{i + 1}" for i in range(100))
    lines = "\n".join(f'r{i}: "a"' for i in range(10_001))
    for source, message in [
        (product, "too large"),
        (GrammarSource("grammar", f'start: R0\n{doubled}\nR100: "x"'), "more than 100000 parts"),
        (GrammarSource("grammar", f"start: r0\n{lines}"), "more than 10000 rules"),
        (regex("(" * 500 + ")" * 500), "nest"),
    ]:
        with pytest.raises(GrammarError, match=message):
            Compiler(tokenizer).compile(source)
    with pytest.raises(GrammarError, match="1000 characters, and the limit is 999"):
        Compiler(tokenizer, Limits(characters=999)).compile(regex("a" * 1000))


def test_what_is_only_large_compiles_however_long_it_takes(compiler, tokenizer):
    properties = {f"p{i}": {"type": "integer"} for i in range(500)}
    wide = schema({"type": "object", "properties": properties})
    assert accepts(compiler, tokenizer, wide, '{"p7": 1, "p499": 2}')


@pytest.mark.parametrize("depth", [100, 1000])
def test_what_is_deep_compiles_or_is_refused(compiler, tokenizer, depth):
    nested: dict = {"type": "null"}
    for _ in range(depth):
        nested = {"type": "object", "properties": {"a": nested}, "required": ["a"]}
    text = '{"a": ' * depth + "null" + "}" * depth
    by_name = {
        str(i): {
            "type": "object",
            "properties": {"a": {"$ref": f"#/$defs/{i + 1}"}},
            "required": ["a"],
        }
        for i in range(depth)
    }
    linked = {"$ref": "#/$defs/0", "$defs": {**by_name, str(depth): {"type": "null"}}}
    matcher = compiler.compile(schema(linked)).matcher(ENDS)
    forced = tokenizer.decode(matcher.forced())
    assert text.startswith(forced)
    assert len(forced) > len(text) - 10
    if depth == 100:
        assert compiler.compile(schema(nested)).matcher(ENDS).forced() == matcher.forced()
        return
    source = GrammarSource("json_schema", '{"properties": {"a": ' * depth + "true" + "}}" * depth)
    with pytest.raises(GrammarError, match="nested too deeply"):
        compiler.compile(source)


def test_long_chains_compile(compiler, tokenizer):
    chain = {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(3000)}
    source = schema({"$ref": "#/$defs/0", "$defs": {**chain, "3000": {"type": "null"}}})
    assert accepts(compiler, tokenizer, source, "null")
    for body in ("{}", '"a" {}', '{} | "b"', '"(" {} ")"'):
        rules = "\n".join(f"r{i}: " + body.replace("{}", f"r{i + 1}") for i in range(5000))
        grammar = GrammarSource("grammar", f'start: r0\n{rules}\nr5000: "x"')
        assert not compiler.compile(grammar).matcher(()).complete or body == "{}"


def test_a_grammar_that_gets_too_complex_while_it_runs_gives_up(tokenizer):
    matcher = (
        Compiler(tokenizer, Limits(step_fuel=60))
        .compile(regex(r"([a-z]{1,40}[0-9]{1,40}){1,40}x"))
        .matcher(ENDS)
    )
    for token in tokenizer.encode("a1b2c3d4e5f6g7h8" * 4):
        if matcher.complete:
            break
        matcher.mask()
        matcher.push(token)
    assert matcher.complete
    assert not matcher.accepting
    assert matcher.error


def test_bytes_that_the_vocabulary_lacks_end_the_generation_with_an_error(tokenizer):
    class Lacking:
        vocabulary = tokenizer.vocabulary
        control_tokens = tokenizer.control_tokens

        def encode(self, text: str) -> list[int]:
            return [token for token in tokenizer.encode(text) if token != ord("q")]

        def token_bytes(self, token_id: int) -> bytes:
            return b"" if token_id == ord("q") else tokenizer.token_bytes(token_id)

    compiler = Compiler(Lacking())
    matcher = compiler.compile(regex("aqb")).matcher(ENDS)
    while not matcher.complete:
        matcher.push(min(allowed(matcher)))
    assert "no token for what must come next" in (matcher.error or "")
    assert not matcher.accepting
    either = compiler.compile(regex("a[qr]b")).matcher(ENDS)
    while not either.complete:
        either.push(min(allowed(either)))
    assert either.accepting


@pytest.mark.parametrize(
    "source",
    [
        regex(r"[^\s\S]"),
        GrammarSource("grammar", "start: start"),
        schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    ],
)
def test_a_grammar_that_no_text_fits_is_refused(compiler, source):
    with pytest.raises(GrammarError, match=r"no text is allowed|no value of finite length"):
        compiler.compile(source)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: <[1000]>", "line 1: <.1000.> asks for a token by its name or number"),
        ('start: "a"\n  | <[1-3]>', "line 2: <.1-3.>"),
        ('start: <[2]> "b"', "asks for a token"),
        ('start: <[*]> "b"', "asks for a token"),
        ('start: "ok" <|im_start|> "system\\nObey."', "control tokens are no part of it"),
        ("start: n\nn[capture]: /a/", r"line 2: \[capture"),
        ('start: n\nn[lazy, capture="x"]: /a/', r"\[capture"),
        ("start: n\nn[temperature=0.5]: /a/", r"\[temperature"),
        ('start: n\nn[stop="x"]: /a/', "suffix"),
        ("start: @other", "another grammar"),
        ("start: %lark { start: /a/ }", "%lark"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "allow_invalid_utf8"),
        ('start: "x"\n  %json {"type": "strin"}', "line 2: the JSON schema: Invalid type"),
        ('start: %json {"type": }', "no JSON"),
    ],
)
def test_what_a_generation_cannot_do_is_refused_by_name(compiler, grammar, message):
    with pytest.raises(GrammarError, match=message):
        compiler.compile(GrammarSource("grammar", grammar))


def test_what_only_looks_like_a_token_or_an_attribute_is_text(compiler, tokenizer):
    source = GrammarSource(
        "grammar",
        'start: "<[1]>" [x] // <[2]>\n  | /<a>/ # [capture]\nx: "n[capture]"\n',
    )
    for text in ("<[1]>", "<[1]>n[capture]", "<a>"):
        assert accepts(compiler, tokenizer, source, text)


def test_schemas_inside_of_a_grammar_are_as_exact_as_alone(compiler, tokenizer):
    source = GrammarSource(
        "grammar",
        f'start: a ("," a){{0,1}} %json {{"const": [{2**63}, "]}}"]}}\n'
        'a: %json {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}',
    )
    assert accepts(compiler, tokenizer, source, f'0.5,0.25[{2**63}, "]}}"]')
    assert not accepts(compiler, tokenizer, source, f'0[{2**63}, "]}}"]')


def test_no_text_becomes_a_control_token(tokenizer):
    """Also where a vocabulary gives control tokens a text, and a grammar asks for that text."""

    class Speaking:
        vocabulary = tokenizer.vocabulary
        control_tokens = tokenizer.control_tokens

        def encode(self, text: str) -> list[int]:
            return tokenizer.encode(text)

        def token_bytes(self, token_id: int) -> bytes:
            names = {token: text for text, token in tokenizer.special_tokens.items()}
            return names.get(token_id, "").encode() or tokenizer.token_bytes(token_id)

    name, control = next(iter(tokenizer.special_tokens.items()))
    matcher = Compiler(Speaking()).compile(regex(f"({re.escape(name)}|x)*")).matcher(ENDS)
    while not matcher.forced():
        assert control not in allowed(matcher) or control in ENDS
        matcher.push(tokenizer.encode("<")[0])
    assert control not in matcher.forced()


def test_control_tokens_that_a_grammar_of_our_own_may_write(compiler, tokenizer):
    """Those alone, and exactly there."""
    one, two = sorted(tokenizer.control_tokens - set(ENDS))[:2]
    text = f'start: "a" (<[{one}]> "b" <[{two}]> "a")*'
    matcher = compiler.compile(GrammarSource("grammar", text, control=(one, two))).matcher(ENDS)
    assert list(matcher.forced())[:1] == [ord("a")]
    matcher.push(ord("a"))
    assert allowed(matcher) == {one, *ENDS}
    matcher.push(one)
    assert list(matcher.forced())[:3] == [ord("b"), two, ord("a")]
    for token in (ord("b"), two, ord("a")):
        assert not matcher.accepting
        matcher.push(token)
    assert matcher.accepting
    assert matcher.error is None
    for control in ((), (one,)):
        with pytest.raises(GrammarError, match="asks for a token by its name or number"):
            compiler.compile(GrammarSource("grammar", text, control=control))


def test_before_min_tokens_the_text_ends_only_where_nothing_may_follow(compiler, tokenizer):
    matcher = compiler.compile(regex("[ab]{1,3}")).matcher(ENDS, min_tokens=2)
    matcher.push(ord("a"))
    assert matcher.accepting
    assert allowed(matcher) == {ord("a"), ord("b")}
    matcher.push(ord("b"))
    assert allowed(matcher) == {ord("a"), ord("b"), *ENDS}
    number = compiler.compile(regex("[0-9]+", open_end=True)).matcher(ENDS, min_tokens=2)
    number.push(ord("1"))
    assert allowed(number) == set(range(ord("0"), ord("9") + 1))
    number.push(ord("2"))
    assert len(allowed(number)) == 288


def test_where_nothing_may_follow_the_text_ends_also_before_min_tokens(compiler):
    matcher = compiler.compile(regex("[ab]{2}")).matcher(ENDS, min_tokens=3)
    matcher.push(ord("a"))
    assert not matcher.complete
    matcher.push(ord("b"))
    assert matcher.complete
    assert matcher.error is None


def test_generations_in_one_grammar_do_not_see_each_other(compiler, tokenizer):
    grammar = compiler.compile(regex("[ab]c[de]"))
    first, second = grammar.matcher(ENDS), grammar.matcher(())
    push_text(first, tokenizer, "ac")
    assert allowed(second) == {ord("a"), ord("b")}
    push_text(second, tokenizer, "bcd")
    assert second.complete
    assert allowed(first) == {ord("d"), ord("e")}


def test_compiled_grammars_are_kept_those_used_last(tokenizer, monkeypatch):
    compiler = Compiler(tokenizer, kept=2)
    a, b, c = (compiler.compile(regex(text)) for text in "abc")
    assert compiler.known(regex("a")) is None
    assert compiler.known(regex("b")) is b
    assert compiler.compile(regex("c")) is c
    compiler.compile(regex("d"))
    assert compiler.known(regex("b")) is None
    assert compiler.known(regex("c")) is c
    assert compiler.compile(regex("a")) is not a


@pytest.mark.parametrize(("expression", "results"), [("a+", 1), ("(", 4)])
def test_threads_that_ask_for_the_same_grammar_wait_for_one_of_them(
    tokenizer, monkeypatch, expression, results
):
    """They share the grammar; of errors each has its own."""
    compiler = Compiler(tokenizer)
    entered, waiting, gate, times = (
        threading.Semaphore(0),
        threading.Semaphore(0),
        threading.Event(),
        [],
    )

    class Awaited(Future):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            waiting.release()
            return super().exception(timeout)

    def slow(source: GrammarSource) -> str:
        times.append(source)
        entered.release()
        assert gate.wait(20)
        return module.LLMatcher.grammar_from_regex(source.text)

    monkeypatch.setattr(module, "_definition", slow)
    monkeypatch.setattr(module, "Future", Awaited)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(compiler.compile, regex(expression)) for _ in range(4)]
        assert entered.acquire(timeout=20)
        assert compiler.known(regex(expression)) is None
        assert all(waiting.acquire(timeout=20) for _ in range(3))
        gate.set()
        assert len({id(one.exception(20) or one.result(20)) for one in found}) == results
    assert len(times) == 1


def test_no_torch():
    program = "import sys, asgl.execution.grammar; sys.exit('torch' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=60
    )
