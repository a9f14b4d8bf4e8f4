"""A short run of the fuzzer; `make soak` runs it for longer."""

from __future__ import annotations

import json

import pytest
from fuzz_grammars import Bytes, fuzz

from asgl.errors import GrammarError
from asgl.execution.grammar import Compiler
from asgl.types import GrammarSource


def test_no_source_ends_the_process():
    assert list(fuzz(0, 200)) == []


@pytest.mark.parametrize(
    "source",
    [
        GrammarSource("json_schema", '{"const": -9223372036854775808}'),
        GrammarSource("json_schema", '{"enum": [-9223372036854775808, 1e999]}'),
        GrammarSource("json_schema", '{"type": "number", "minimum": -1e20}'),
        GrammarSource("json_schema", '{"minimum": -1e308, "maximum": 1e308}'),
        GrammarSource("json_schema", '{"const": ' + "9" * 5000 + "}"),
        GrammarSource("json_schema", '{"maxLength": 1e300, "minItems": 1e18}'),
        GrammarSource("json_schema", json.dumps({"pattern": "(a|" * 3000 + ")" * 3000})),
        GrammarSource("regex", "(a|" * 3000 + ")" * 3000),
        GrammarSource("regex", r"\p{L}{1,1000}[\p{Han}--a]{1000}"),
        GrammarSource("regex", "a{2000000000}"),
        GrammarSource("regex", "|".join(f"a{i}.*b" for i in range(5000))),
        GrammarSource("grammar", 'start: r{1,100000000}\nr: "a"'),
        GrammarSource("grammar", "start: " + "(" * 3000 + '"a"' + ")" * 3000),
        GrammarSource("grammar", "start: " + "~" * 3000 + '"a"'),
    ],
    ids=lambda source: source.text[:40],
)
def test_extremes_compile_or_are_refused(source):
    try:
        matcher = Compiler(Bytes()).compile(source).matcher(())
    except GrammarError:
        return
    assert matcher.complete or any(matcher.mask())
