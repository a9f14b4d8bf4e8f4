"""What the keywords of JSON schemas mean, one schema at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import and_
from typing import Any, TypeAlias

from asgl.errors import GrammarError
from asgl.execution.json_numbers import NumberRange, integer_limits
from asgl.execution.json_strings import Pattern, pattern, string_format

Schema: TypeAlias = dict[str, Any]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
SPEAKS_OF = {
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    ),
}
"""The keywords that bound values of a type, and say nothing of others."""
_NUMERIC_FORMATS = {
    **{
        f"{prefix}int{bits}": integer_limits(bits, signed=not prefix)
        for prefix in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "float": NumberRange(low=-3.4028234e38, high=3.4028234e38),
    "float32": NumberRange(low=-3.4028234e38, high=3.4028234e38),
    "double": NumberRange(),
    "float64": NumberRange(),
}
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "propertyNames", "unevaluatedProperties")
"""Where a schema holds others: by name, in a list, or one."""
NO_LIMIT = 2**53 - 1
JSON_TYPES = ("null", "boolean", "number", "string", "array", "object")


def loads(text: str) -> Any:
    """The value of a text in JSON; GrammarError if it is none, or nested too deeply."""
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise GrammarError("nested too deeply") from None
    except ValueError as error:
        raise GrammarError(str(error)) from None


def _number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise GrammarError(f"{text} is no number that a double has")
    return value


DECODER = json.JSONDecoder(parse_float=_number, parse_constant=_number)
"""Reads JSON, without what is no JSON. GrammarError for numbers that are none."""


def places(root: Any) -> Iterator[tuple[int, str]]:
    """The schemas in a schema by their `id`, each with its place as a JSON pointer."""
    todo = [(root, "")]
    while todo:
        schema, path = todo.pop()
        if not isinstance(schema, dict):
            continue
        yield id(schema), path
        for key, part in schema.items():
            if key in _NAMED and isinstance(part, dict):
                todo += ((inner, f"{path}/{key}/{name}") for name, inner in part.items())
            elif key in _LISTED and isinstance(part, list):
                todo += ((inner, f"{path}/{key}/{index}") for index, inner in enumerate(part))
            elif key in _SINGLE:
                todo.append((part, f"{path}/{key}"))


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value) and value <= NO_LIMIT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


_TEXT = ("a string", lambda value: isinstance(value, str))
_COUNT = ("an integer of 0 or more", _is_count)
_NUMBER = ("a number", _is_number)
_NAMES = ("a list of strings", _is_names)
_SCHEMAS = ("a list of schemas, at least one", _is_schemas)
_OBJECT = ("an object", lambda value: isinstance(value, dict))
_LIST = ("a list, not empty", lambda value: isinstance(value, list) and bool(value))
_KEYWORDS: dict[str, tuple[str, Any]] = {
    "$ref": _TEXT,
    "pattern": _TEXT,
    "format": _TEXT,
    "enum": _LIST,
    "required": _NAMES,
    "properties": _OBJECT,
    "patternProperties": _OBJECT,
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "prefixItems": _SCHEMAS,
    "uniqueItems": ("true or false", lambda value: isinstance(value, bool)),
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _COUNT),
    **dict.fromkeys(("minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
    **dict.fromkeys(("x-max-digits", "x-decimal-places"), _COUNT),
}


def check(schema: Schema, where: str) -> None:
    """GrammarError for a keyword with a value that it cannot have."""
    for key, value in schema.items():
        expected, right = _KEYWORDS.get(key, ("", None))
        if right is not None and not right(value):
            raise GrammarError(f"{where}{key} must be {expected}, not {value!r:.100}")
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for kind in kinds:
            if kind not in TYPES:
                raise GrammarError(f"{where}Invalid type: {kind!r:.100}")


def types_asked(leaf: Schema) -> set[str]:
    """The types that a schema asks for. An integer is a number."""
    if "type" not in leaf:
        return set(TYPES)
    kinds = leaf["type"] if isinstance(leaf["type"], list) else [leaf["type"]]
    return {*kinds, "integer"} if "number" in kinds else set(kinds)


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _of_json(kind: str) -> str:
    return "number" if kind == "integer" else kind


def types_of(leaf: Schema) -> frozenset[str]:
    """The types that values of a schema may have, integers as numbers."""
    kinds = frozenset(map(_of_json, types_asked(leaf)))
    for values in ([leaf["const"]] if "const" in leaf else None, leaf.get("enum")):
        if values is not None:
            kinds &= frozenset(_of_json(_type_of(value)) for value in values)
    return kinds


def constants_of(leaf: Schema) -> frozenset[str] | None:
    """The values of a schema as JSON, None if they are not constants."""
    if "const" not in leaf and "enum" not in leaf:
        return None
    values = [leaf["const"]] if "const" in leaf else leaf["enum"]
    return frozenset(map(dumps, values))


def dumps(value: Any) -> str:
    """The value as JSON, the same for equal values."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    try:
        if isinstance(value, dict | list):
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the constant {value!r:.100}: {error}") from None
    return text


def fits(value: Any, leaf: Schema) -> bool:
    """Whether a constant fits a schema without unions."""
    constants = constants_of(leaf)
    return fits_besides(value, leaf) and (constants is None or dumps(value) in constants)


def fits_besides(value: Any, leaf: Schema) -> bool:
    """Whether a constant fits a schema without unions, but for its constants."""
    kind = _type_of(value)
    if kind not in types_asked(leaf):
        return False
    if kind in ("integer", "number"):
        return numbers_of([leaf], integer=False).fits(value)
    if kind == "string":
        return count_of(leaf, "minLength", 0) <= len(value) <= count_of(
            leaf, "maxLength", NO_LIMIT
        ) and all(part.fits(value) for part in patterns_of(leaf))
    for key in SPEAKS_OF.get(kind, ()):
        if key in leaf:
            raise GrammarError(f": {key} beside constants that are objects or arrays")
    return True


def count_of(leaf: Schema, key: str, default: int) -> int:
    return int(leaf.get(key, default))


def patterns_of(leaf: Schema) -> list[Pattern]:
    """What the text of a string must match."""
    found = [pattern(leaf["pattern"])] if "pattern" in leaf else []
    name = leaf.get("format")
    numeric = name in _NUMERIC_FORMATS and "number" in map(_of_json, types_asked(leaf))
    if name is not None and not numeric and (known := string_format(name)) is not None:
        found.append(known)
    if "format" not in leaf and str(leaf.get("contentEncoding")).lower() in ("base64", "base64url"):
        encoded = string_format(leaf["contentEncoding"].lower())
        assert encoded is not None
        found.append(encoded)
    return found


def numbers_of(leaves: Iterable[Schema], integer: bool) -> NumberRange:
    """The numbers that fit schemas without constants."""
    limits = [NumberRange(integer)]
    for leaf in leaves:
        limits.append(
            NumberRange(
                low=leaf.get("minimum"),
                above=leaf.get("exclusiveMinimum"),
                high=leaf.get("maximum"),
                below=leaf.get("exclusiveMaximum"),
                multiple_of=(leaf["multipleOf"],) if "multipleOf" in leaf else (),
                digits=leaf.get("x-max-digits"),
                places=leaf.get("x-decimal-places"),
            )
        )
        limits.append(_NUMERIC_FORMATS.get(leaf.get("format", ""), NumberRange()))
    return reduce(and_, limits)


def names_of(leaves: Sequence[Schema]) -> list[str] | None:
    """The names that schemas of names allow, None if they are not constants."""
    if all(constants_of(leaf) is None for leaf in leaves):
        return None
    values = next(
        [leaf["const"]] if "const" in leaf else leaf["enum"]
        for leaf in leaves
        if constants_of(leaf) is not None
    )
    return [
        value
        for value in values
        if isinstance(value, str) and all(fits(value, leaf) for leaf in leaves)
    ]


def additional(leaf: Schema) -> Any:
    """The schema of properties that a schema does not name."""
    return leaf.get("additionalProperties", True)


def regex(expression: str) -> str:
    """The expression as a terminal of Lark, whose expressions end with a slash."""
    return "/" + expression.replace("/", r"\x2f") + "/"
