"""Whether an answer of a script is one that its op lets a model say: the op's own grammar is asked,
byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from asgl.execution.grammar import Grammar
from asgl.types import GrammarSource

_SHOWN = 60
"""So many characters of an answer are in a message, before the place where it goes wrong."""


class ByteVocabulary:
    """A token for each byte, so that every text can be walked through a grammar: what
    `asgl.execution.grammar.Compiler` needs of a tokenizer."""

    vocabulary = 256
    control_tokens: frozenset[int] = frozenset()

    def encode(self, text: str, /) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int, /) -> bytes:
        return bytes([token_id])


class Refused(Exception):
    """The grammar does not allow the text; the message says where the text leaves it."""


def as_said(grammar: Grammar, source: GrammarSource, text: str) -> str:
    """The text as a model says it, or Refused.

    grammar: compiled from `source`, for the vocabulary of bytes. Of JSON only the value counts:
    white space, escapes and the order of properties become those that the grammar asks for.
    """
    refused = _walk(grammar, text)
    if refused is not None and source.kind == "json_schema":
        for layout in _layouts(source.text, text):
            refused = _walk(grammar, text := layout)
            if refused is None:
                break
    if refused is not None:
        raise Refused(refused)
    return text


def _walk(grammar: Grammar, text: str) -> str | None:
    """Where the text leaves the grammar; None if it is a whole one."""
    matcher = grammar.matcher(())
    for index, sign in enumerate(text):
        for byte in sign.encode():
            matcher.push(byte)
        if matcher.error is not None:
            before = text[max(0, index - _SHOWN) : index]
            return f"{sign!r} cannot come " + (f"after {before!r}" if index else "first")
    return None if matcher.accepting else f"it cannot end after {text[-_SHOWN:]!r}"


def _layouts(schema: str, text: str) -> Iterator[str]:
    """The JSON text as a model writes it; once more with properties in the schema's order."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    yield json.dumps(value, ensure_ascii=False)
    names = {name: place for place, name in enumerate(_property_names(json.loads(schema)))}
    yield json.dumps(_ordered(value, names), ensure_ascii=False)


def _property_names(schema: Any) -> Iterator[str]:
    """The names in every `properties`, in order."""
    if isinstance(schema, dict):
        if isinstance(properties := schema.get("properties"), dict):
            yield from properties
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from _property_names(item)


def _ordered(value: Any, places: dict[str, int]) -> Any:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: places.get(name, len(places)))
        return {name: _ordered(value[name], places) for name in names}
    if isinstance(value, list):
        return [_ordered(item, places) for item in value]
    return value
