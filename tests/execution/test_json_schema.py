"""JSON schemas: every text that comes is valid by jsonschema, and by pydantic where there is a
type; or the schema is refused before there is a token."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
from grammar_models import TYPES
from grammar_oracle import ByteVocabulary, allowed, json_schemas, sample, schema_source, validate
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from asgl.errors import GrammarError
from asgl.execution.grammar import Compiler

COMPILER = Compiler(ByteVocabulary())
SOAK = settings.default.max_examples // 100


def accepts(schema: Any, text: str) -> bool:
    """Whether the text is allowed, byte by byte."""
    matcher = COMPILER.compile(schema_source(schema)).matcher(())
    for byte in text.encode():
        if matcher.complete or byte not in allowed(matcher):
            return False
        matcher.push(byte)
    return matcher.accepting


@settings(max_examples=150 * SOAK)
@given(json_schemas(), st.integers(0, 2**32))
def test_texts_of_random_schemas_are_valid(schema, seed):
    try:
        texts = [sample(COMPILER, schema_source(schema), seed + i, length=80) for i in range(2)]
    except GrammarError:
        return
    for text in texts:
        if text is not None:
            try:
                validate(schema, text)
            except RecursionError:  # of jsonschema, over a union that is a member of itself
                return


@pytest.mark.parametrize(("type_", "text"), TYPES, ids=[text for _, text in TYPES])
def test_texts_of_pydantic_types_are_valid(type_, text):
    adapter = TypeAdapter(type_)
    schema = adapter.json_schema()
    adapter.validate_json(text)
    assert accepts(schema, text)
    for seed in range(6 * SOAK):
        found = sample(COMPILER, schema_source(schema), seed, length=80)
        if found is not None:
            validate(schema, found)
            adapter.validate_json(found)


_bounds = st.one_of(
    st.integers(-1000, 1000),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-2, 2),
    st.sampled_from([2.0**53, -(2.0**63), 1e21, 0.1, 5e-324]),
)


@settings(max_examples=200 * SOAK)
@given(
    st.sampled_from(["integer", "number"]),
    st.dictionaries(
        st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
        _bounds,
        min_size=1,
        max_size=2,
    ),
    st.lists(st.integers(-3, 3), max_size=3),
    st.integers(0, 2**32),
)
def test_numbers_are_within_their_bounds(kind, bounds, steps, seed):
    """Integers are allowed exactly if they are; of other numbers, none that is not."""
    schema = {"type": kind, **bounds}
    candidates = [math.floor(Fraction(bound)) + step for bound in bounds.values() for step in steps]
    right = {
        number: all(
            {
                "minimum": Fraction(number) >= Fraction(bound),
                "maximum": Fraction(number) <= Fraction(bound),
                "exclusiveMinimum": Fraction(number) > Fraction(bound),
                "exclusiveMaximum": Fraction(number) < Fraction(bound),
            }[key]
            for key, bound in bounds.items()
        )
        for number in candidates
    }
    try:
        COMPILER.compile(schema_source(schema))
    except GrammarError:
        assert kind == "number" or not any(
            fits for number, fits in right.items() if abs(number) < 10**100
        )
        return
    for number, fits in right.items():
        if (kind == "integer" and abs(number) < 10**100) or not fits:
            assert accepts(schema, str(number)) == fits
    text = sample(COMPILER, schema_source(schema), seed, length=400)
    assert text is not None
    validate(schema, text)
    assert not text.startswith("-0") or float(text) < 0


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"const": 2**53 + 1}, [str(2**53 + 1)], [str(2**53)]),
        ({"const": -(2**63)}, [str(-(2**63))], []),
        ({"const": 1e21}, ["1" + "0" * 21], []),
        ({"enum": [10**30, 0.1, -0.0]}, ["1" + "0" * 30, "0.1", "0"], ["-0"]),
        ({"type": "integer"}, ["0", "-7"], ["-0", "00", "1.0", "1e3"]),
        ({"type": "number"}, ["1e21", "-2.5E-3", "0"], ["01", ".5", "1.", "NaN"]),
        (
            {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
            ["0.5", "0.50", "0.1", "0.000000001"],
            ["0", "0.0", "-0", "-0.0", "0.51", "5e-1"],
        ),
        ({"type": "number", "maximum": 0}, ["0", "-1", "-0.5"], ["-0", "-0.0", "0.1"]),
        ({"type": "number", "minimum": 0.1}, ["0.1", "0.10", "3"], ["0.09", "0"]),
        ({"type": "integer", "maximum": 1e23}, ["9" * 22], ["1" + "0" * 23]),
        ({"type": "integer", "multipleOf": 7, "minimum": -20}, ["-14", "0", "770"], ["-21", "8"]),
        ({"multipleOf": 0.25, "minimum": 1, "maximum": 2}, ["1.25", "2.00"], ["1.3", "0.75"]),
        ({"type": "integer", "format": "int64"}, [str(2**63 - 1), str(-(2**63))], [str(2**63)]),
        ({"type": "integer", "format": "uint8"}, ["0", "255"], ["-1", "256"]),
        ({"type": "number", "format": "float"}, ["1.5", "3" + "0" * 38], ["4" + "0" * 38]),
        (
            {"type": "number", "x-decimal-places": 2, "x-max-digits": 4},
            ["12.34"],
            ["123.4", "1.234"],
        ),
        ({"type": "string"}, ['"é\\n"', '"\\""'], ['"\\u0041"', '"\\/"', '"\n"', '"\\ud800"']),
        ({"type": "string", "pattern": r"^a|b$"}, ['"ax"', '"xb"'], ['"xa"', '"bx"']),
        ({"type": "string", "pattern": r'^"\\?$'}, ['"\\""', '"\\"\\\\"'], ['"\\\\"']),
        ({"type": "string", "pattern": r"^\w$"}, ['"a"', '"_"'], ['"é"', '"-"']),
        ({"type": "string", "pattern": r"^[^\w]$"}, ['"-"'], ['"é"', '"a"']),
        ({"type": "string", "pattern": "^a*$", "minLength": 2, "maxLength": 3}, ['"aa"'], ['"a"']),
        (
            {"type": "string", "format": "date"},
            ['"2024-02-29"', '"2000-02-29"', '"2023-12-31"'],
            ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"', '"0000-01-01"', '"2023-13-01"'],
        ),
        ({"type": "string", "format": "uuid4"}, [], ['"9b2cf1a0-1c2d-1e3f-8a9b-0c1d2e3f4a5b"']),
        (
            {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {"type": "null"}}}]},
            ['{"a": 1, "b": null}', "{}"],
            ['{"a": 1, "c": 2}'],
        ),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "null"}}},
            ['{"xa": null}', "{}"],
            ['{"a": null}', '{"xa": 1}'],
        ),
        (
            {
                "properties": {"xa": {"minimum": 5}},
                "patternProperties": {"^x": {"type": "integer"}, "z$": {"type": "null"}},
                "required": ["xa"],
            },
            ['{"xa": 5, "xb": 1, "z": null}'],
            ['{"xa": 4}', '{"xa": 5.5}', '{"xa": 5, "xz": 1}', '{"xa": 5, "xz": null}'],
        ),
        (
            {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {}},
            ['{"x": 1, "y": 2}', "{}"],
            ['{"z": 1}'],
        ),
        (
            {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 1},
            ["{}", '{"q": null}'],
            ['{"q": null, "r": null}'],
        ),
        (
            {"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 1, "maxProperties": 2},
            ['{"b": 1}', '{"a": 1, "c": 2}'],
            ["{}", '{"a": 1, "b": 1, "c": 1}'],
        ),
        (
            {
                "oneOf": [
                    {"properties": {"k": {"const": "a", "default": "a"}, "x": {"type": "null"}}},
                    {"properties": {"k": {"enum": ["b", "c"]}}},
                ]
            },
            ['{"k": "a", "x": null}', '{"k": "c"}'],
            ["{}", '{"x": null}', '{"k": "b", "x": null}'],
        ),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ['"a"', "1"], ["1.5"]),
        (
            {"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 1},
            ["[1]", "[1, 2]", "[1, 2, 3, 3]"],
            ["[]", "[2]", "[1, 3]"],
        ),
        (
            {"items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 1, "maxItems": 2},
            ['["a"]', '["a", "c"]'],
            ["[]", '["a", "a"]', '["a", "b", "c"]'],
        ),
        ({"properties": {"a": {"not": {}}, "b": {"const": 1}}}, ["{}", '{"b": 1}'], ['{"a": 1}']),
    ],
)
def test_what_is_allowed(schema, right, wrong):
    for text in right:
        validate(schema, text)
        assert accepts(schema, text), text
    for text in wrong:
        assert not accepts(schema, text), text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "members 0 and 1 of oneOf may both"),
        ({"not": {"type": "string"}}, "not is not supported"),
        ({"items": {"if": {}}}, "at /items: if is not supported"),
        ({"multipleOf": 0.01, "type": "number"}, "multipleOf 0.01"),
        ({"type": "string", "format": "phone"}, "'phone' is not supported"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
        ({"type": "string", "pattern": "a(^b)"}, "anchor inside"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "no string fits"),
        ({"type": "string", "minLength": -1}, "minLength must be an integer of 0 or more"),
        ({"minimum": True}, "minimum must be a number"),
        ({"properties": []}, "properties must be an object"),
        ({"properties": {"a": 5}, "required": ["a"]}, "a schema must be an object or a boolean"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.org/x"}, "only places in the schema itself"),
        ({"$ref": "#/$defs/x"}, "there is no such place"),
        ({"enum": ["a"], "type": "integer"}, "no constant fits"),
        ({"const": "\ud800"}, "surrogates"),
        ({"exclusiveMinimum": 3, "maximum": 3}, "no number is within the bounds"),
        ({"type": "integer", "minimum": 10**500}, "more than 400 digits"),
        ({"required": ["a"], "properties": {"a": False}}, "'a' is not allowed"),
        ({"minProperties": 3, "type": "object"}, "minProperties"),
        ({"properties": {"a": {}}, "unevaluatedProperties": False, "allOf": [{}]}, "unevaluated"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(schema, message):
    source = schema_source(schema)._replace(text=json.dumps(schema))
    with pytest.raises(GrammarError, match=message):
        COMPILER.compile(source)
