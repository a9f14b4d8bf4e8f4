"""Texts drawn from a grammar by chance, and random JSON schemas: what the tests of schemas share.

A text is sampled as a model would, token by token among those that the grammar allows, over a
vocabulary of single bytes and a few words.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
from hypothesis import strategies as st

from asgl.execution.grammar import Compiler, Matcher
from asgl.types import GrammarSource

WORDS = ['": "', '", "', "the", '{"', "null", "true", "12", "00", "99", '"}', "]}", ".5", "é", "-0"]
CLOSING = frozenset(b'"}]')
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


class ByteVocabulary:
    """A token for each byte, some of several bytes, and one control token."""

    vocabulary = 256 + len(WORDS) + 1
    control_tokens = frozenset([256 + len(WORDS)])

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return WORDS[token_id - 256].encode() if token_id < 256 + len(WORDS) else b"<|im_start|>"


def schema_source(schema: Any) -> GrammarSource:
    return GrammarSource("json_schema", json.dumps(schema, ensure_ascii=False))


def allowed(matcher: Matcher) -> list[int]:
    mask = int.from_bytes(matcher.mask(), "little")
    return [token for token in range(mask.bit_length()) if mask >> token & 1]


def sample(compiler: Compiler, source: GrammarSource, seed: int, length: int = 150) -> str | None:
    """A text of the grammar. None if it was not whole after twice so many tokens.

    After `length` tokens the text ends, and strings and brackets are closed, where they may be.
    """
    chance = random.Random(seed)
    vocabulary = ByteVocabulary()
    (end,) = vocabulary.control_tokens
    matcher = compiler.compile(source).matcher((end,))
    text = b""
    for count in range(2 * length):
        if matcher.complete:
            break
        tokens = allowed(matcher)
        closing = [token for token in tokens if token in CLOSING or token == end]
        ascii_ = [token for token in tokens if token < 128]
        if closing and (count > length or chance.random() < 0.15):
            tokens = closing
        elif ascii_ and chance.random() < 0.8:
            tokens = ascii_
        token = chance.choice(tokens)
        if token == end:
            break
        text += vocabulary.token_bytes(token)
        matcher.push(token)
    assert matcher.error is None, (matcher.error, text)
    return text.decode() if matcher.accepting else None


def validate(schema: Any, text: str) -> None:
    """Raises jsonschema's ValidationError if the text is not valid by the schema."""
    jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(json.loads(text))


FORMATS = [
    "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid",
    "json-pointer", "relative-json-pointer", "regex", "uri-template", "iri", "uri-reference",
    "idn-email", "idn-hostname",
]  # fmt: skip
PATTERNS = [
    "^a+$", "b", "^x", "y$", r"^\d{2,4}$", r"\w\s\w", "^[^a-z]*$", r"^(ab|cd)*$", r"^[\w.-]+@x$",
    r"\.", "^$", r"[\"\\]", r"^(?:a|b){1,3}\n?$", "^.{3}$", r"^\S+$", r"^[^\W\d]$", "a|^b|c$",
]  # fmt: skip
_numbers = st.one_of(
    st.integers(-20, 20),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.5, -0.25, 1e-9, 1e21, -1e20, 0.1, 2.0**53, 1 / 3, 1e300, 5e-324, 1e-320]),
    st.floats(-1000, 1000),
)
_names = st.sampled_from(["a", "b", "ab", "x", "xy", "é", '"', "a b", "\\", "kind", "~/"])
_constants = st.one_of(
    st.none(), st.booleans(), _numbers, st.text(max_size=4), st.just([]), st.just({"a": [1]})
)


@st.composite
def _number_schemas(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["integer", "number"]))}
    for key in draw(
        st.sets(
            st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
            max_size=2,
        )
    ):
        schema[key] = draw(_numbers)
    if draw(st.integers(0, 4)) == 0:
        schema["multipleOf"] = draw(st.sampled_from([1, 2, 3, 7, 10, 1000, 12, 0.5, 2.5, 0.01]))
    return schema


@st.composite
def _string_schemas(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if draw(st.booleans()):
        schema["minLength"] = draw(st.integers(0, 5))
    if draw(st.booleans()):
        schema["maxLength"] = draw(st.integers(0, 40))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        schema["pattern"] = draw(st.sampled_from(PATTERNS))
    elif kind == 1:
        schema["format"] = draw(st.sampled_from(FORMATS))
    return schema


@st.composite
def _array_schemas(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if draw(st.booleans()):
        schema["items"] = draw(inner)
    if draw(st.integers(0, 2)) == 0:
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=3))
    if draw(st.booleans()):
        schema["minItems"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["maxItems"] = draw(st.integers(0, 5))
    if draw(st.integers(0, 6)) == 0:
        schema["uniqueItems"] = True
        schema["items"] = {"enum": draw(st.lists(_constants, min_size=1, max_size=4))}
    return schema


@st.composite
def _object_schemas(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if draw(st.integers(0, 4)):
        schema["properties"] = draw(st.dictionaries(_names, inner, max_size=4))
        schema["required"] = draw(
            st.lists(st.sampled_from([*schema["properties"], "a"]), unique=True, max_size=3)
        )
    if draw(st.integers(0, 2)) == 0:
        schema["additionalProperties"] = draw(inner)
    if draw(st.integers(0, 3)) == 0:
        schema["patternProperties"] = draw(
            st.dictionaries(st.sampled_from(PATTERNS), inner, min_size=1, max_size=2)
        )
    if draw(st.integers(0, 6)) == 0:
        schema["propertyNames"] = draw(_string_schemas() | st.just({"enum": ["a", "x"]}))
    if draw(st.integers(0, 4)) == 0:
        schema["maxProperties"] = draw(st.integers(0, 4))
    if draw(st.integers(0, 4)) == 0:
        schema["minProperties"] = draw(st.integers(0, 3))
    return schema


@st.composite
def _unions(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    key = draw(st.sampled_from(["anyOf", "oneOf", "allOf", "discriminated"]))
    if key == "discriminated":
        members = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind, "default": kind}, "x": draw(inner)},
            }
            for kind in draw(st.lists(_constants, min_size=1, max_size=3, unique_by=repr))
        ]
        return {"oneOf": members, "discriminator": {"propertyName": "kind"}}
    schema: dict[str, Any] = {key: draw(st.lists(inner, min_size=1, max_size=3))}
    if draw(st.integers(0, 3)) == 0:
        schema.update(draw(inner))
    return schema


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        _array_schemas(inner),
        _object_schemas(inner),
        _object_schemas(inner),
        _unions(inner),
        st.just({"$ref": "#/$defs/one"}),
    )


_leaves = st.one_of(
    _number_schemas(),
    _string_schemas(),
    st.builds(lambda value: {"const": value}, _constants),
    st.builds(lambda values: {"enum": values}, st.lists(_constants, min_size=1, max_size=4)),
    st.builds(
        lambda kinds: {"type": kinds},
        st.lists(st.sampled_from(["null", "boolean", "integer", "string", "object"]), min_size=1),
    ),
    st.just({}),
)
_schemas = st.recursive(_leaves, _nested, max_leaves=6)


@st.composite
def json_schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Schemas of all keywords that are supported, with a definition that may refer to itself."""
    return {**draw(_schemas), "$defs": {"one": draw(_schemas)}}
