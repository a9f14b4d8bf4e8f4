"""JSON schemas as rules: every text that fits the rules is valid by the schema.

What is allowed may be less than what is valid: white space is as json.dumps writes it, properties
come in the order of the schema, an object has no properties but those that its schema speaks of,
and a character has one spelling. What cannot be done exactly is refused with GrammarError, which
names the place.

    expand       a schema, its references and the members of its `allOf`: all of them must fit
    unions       of `anyOf` and `oneOf`, one member is chosen at a time
    write        what then is left, type by type
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any
from urllib.parse import unquote

from asgl.errors import GrammarError
from asgl.execution.json_keywords import (
    JSON_TYPES,
    NO_LIMIT,
    SPEAKS_OF,
    TYPES,
    Schema,
    additional,
    check,
    constants_of,
    count_of,
    dumps,
    fits,
    fits_besides,
    loads,
    names_of,
    numbers_of,
    patterns_of,
    places,
    regex,
    types_asked,
    types_of,
)
from asgl.execution.json_strings import CHARACTER, pattern, spelling
from asgl.execution.rules import Repeat, Rule, Rules, Sentence, Terminal, Text, quoted

_REFUSED = (
    "if",
    "then",
    "else",
    "dependentSchemas",
    "dependentRequired",
    "dependencies",
    "contains",
    "minContains",
    "maxContains",
    "unevaluatedItems",
    "additionalItems",
    "contentSchema",
    "$dynamicRef",
    "$recursiveRef",
)
_CHOICES = 20
"""Unions are looked into so deep, to tell their members apart."""
_UNIQUE = 16
"""The items of an array without duplicates are chosen among so many."""
_COMBINATIONS = 2_000
"""Unions that must fit at once are combined, every member with every other, up to so many."""
_PATTERNS = 20
"""So many patterns of property names can be told apart."""


def json_rules(schema: Any, prefix: str = "") -> str:
    """Rules in Lark's notation, the first of which is what fits the schema.

    schema: as json.loads gives it, or text in JSON.
    prefix: begins the names of the rules.

    GrammarError for a schema that is wrong, that no text fits, or that is not supported.
    """
    return _Writer(loads(schema) if isinstance(schema, str) else schema, prefix).lark()


@dataclass(frozen=True, slots=True, eq=False)
class _Union:
    """Schemas of which one must fit, and no other if it is exclusive."""

    members: tuple[Any, ...]
    exclusive: bool
    discriminator: str | None
    path: str


@dataclass(frozen=True, slots=True)
class _All:
    """What a value must fit, all of it: schemas without unions and references, and unions."""

    leaves: tuple[Schema, ...]
    unions: tuple[_Union, ...]

    @property
    def key(self) -> frozenset[int]:
        return frozenset(map(id, (*self.leaves, *self.unions)))


class _Impossible(Exception):
    """No value fits."""


class _Writer:
    """Writes the rules of one schema. Each set of schemas that a value must fit has one rule."""

    def __init__(self, root: Any, prefix: str) -> None:
        self._root = root
        self._rules = Rules(prefix)
        self._paths: dict[int, str] = dict(places(root))
        self._split: dict[int, tuple[Schema, list[Any], list[_Union]]] = {}
        self._known: dict[frozenset[int], Rule] = {}
        self._todo: deque[tuple[Rule, _All]] = deque()
        self._required: dict[frozenset[str], Schema] = {}
        self._combined = 0
        self._why: str | None = None
        """Why something has no value, the first time."""

    def lark(self) -> str:
        start = self._value([self._root])
        while self._todo:
            rule, all_ = self._todo.popleft()
            try:
                self._rules.define(rule, self._sentences(all_))
            except _Impossible as error:
                self._why = self._why or str(error)
            except GrammarError as error:
                self._refuse(all_, error)
        text = self._rules.lark(start)
        if text is None:
            raise GrammarError(self._why or ": no value of finite length fits it")
        return text

    def _refuse(self, all_: _All, error: GrammarError) -> None:
        """Raises the error again, with the place."""
        message = str(error)
        if message.startswith((" at ", ": ")):
            raise error
        raise GrammarError(self._at(*all_.leaves) + message) from None

    def _at(self, *schemas: Schema) -> str:
        """The beginning of a message: where it is."""
        path = next((self._paths[id(one)] for one in schemas if self._paths.get(id(one))), "")
        return f" at {path}: " if path else ": "

    def _value(self, schemas: Iterable[Any], *more: _Union) -> Rule:
        """The rule of the values that fit all the schemas, and the unions."""
        all_ = self._expand(schemas)
        if all_ is None:
            return self._rules.rule()
        if more:
            unions = dict.fromkeys((*all_.unions, *more))
            all_ = _All(all_.leaves, tuple(unions))
        rule = self._known.get(all_.key)
        if rule is None:
            rule = self._known[all_.key] = self._rules.rule()
            self._todo.append((rule, all_))
        return rule

    def _expand(self, schemas: Iterable[Any]) -> _All | None:
        """What the schemas ask for, with all that they refer to. None if nothing fits."""
        leaves: dict[int, Schema] = {}
        unions: dict[_Union, None] = {}
        todo = [(schema, False) for schema in reversed(list(schemas))]
        open_: dict[int, bool] = {}
        """The schemas seen: whether those that they refer to are still being looked at."""
        while todo:
            schema, left = todo.pop()
            if left:
                open_[id(schema)] = False
                continue
            if schema is True:
                continue
            if schema is False:
                self._why = self._why or ": no value is allowed"
                return None
            if not isinstance(schema, dict):
                raise GrammarError(
                    f": a schema must be an object or a boolean, not {schema!r:.100}"
                )
            seen = open_.get(id(schema))
            if seen:
                raise GrammarError(self._at(schema) + "it refers to itself, with nothing between")
            if seen is not None:
                continue
            leaf, further, alternatives = self._parts(schema)
            if leaf:
                leaves[id(leaf)] = leaf
            unions.update(dict.fromkeys(alternatives))
            open_[id(schema)] = True
            todo.append((schema, True))
            todo += ((part, False) for part in reversed(further))
        return _All(tuple(leaves.values()), tuple(unions))

    def _parts(self, schema: Schema) -> tuple[Schema, list[Any], list[_Union]]:
        """A schema taken apart: what it says itself, what must fit besides, and its unions."""
        parts = self._split.get(id(schema))
        if parts is not None:
            return parts
        where = self._at(schema)
        check(schema, where)
        leaf = {
            key: part
            for key, part in schema.items()
            if key not in ("$ref", "allOf", "anyOf", "oneOf")
        }
        # kept alive with the schema, so that its `id` stays its own
        self._paths[id(leaf)] = self._paths.get(id(schema), "")
        self._split[id(leaf)] = (leaf, [], [])
        further: list[Any] = list(schema.get("allOf", ()))
        if "$ref" in schema:
            further.append(self._target(schema["$ref"], where))
        if "unevaluatedProperties" in schema:
            if len(leaf) < len(schema):
                raise GrammarError(
                    f"{where}unevaluatedProperties beside $ref, allOf, anyOf or oneOf"
                )
            leaf.setdefault("additionalProperties", leaf.pop("unevaluatedProperties"))
        discriminator = schema.get("discriminator")
        name = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
        unions = [
            _Union(
                tuple(schema[key]),
                key == "oneOf",
                name if isinstance(name, str) else None,
                self._paths.get(id(schema), ""),
            )
            for key in ("anyOf", "oneOf")
            if key in schema
        ]
        self._split[id(schema)] = parts = (leaf, further, unions)
        return parts

    def _target(self, reference: str, where: str) -> Any:
        """What a reference refers to, a JSON pointer after #."""
        if not reference.startswith("#"):
            raise GrammarError(
                f"{where}$ref {reference!r}: only places in the schema itself, #/..."
            )
        part, path = self._root, unquote(reference[1:])
        if path and not path.startswith("/"):
            raise GrammarError(f"{where}$ref {reference!r}: anchors are not supported")
        for name in path.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(part, dict) and name in part:
                part = part[name]
            elif isinstance(part, list) and name.isdecimal() and int(name[:9]) < len(part):
                part = part[int(name)]
            else:
                raise GrammarError(f"{where}$ref {reference!r}: there is no such place")
        self._paths.setdefault(id(part), path)
        return part

    def _sentences(self, all_: _All) -> list[Sentence]:
        """The alternatives of the values that fit."""
        if not all_.unions:
            return self._plain(all_.leaves)
        union, *others = all_.unions
        if others:
            self._combined += len(union.members)
            if self._combined > _COMBINATIONS:
                raise GrammarError(f"too large: more than {_COMBINATIONS} combinations of unions")
        members = self._exclusive(union) if union.exclusive else [(one,) for one in union.members]
        return [(self._value((*all_.leaves, *member), *others),) for member in members]

    # unions

    def _exclusive(self, union: _Union) -> list[tuple[Any, ...]]:
        """The members of a `oneOf`, each with what makes it fail where another one fits.

        A property tells two members apart if its constants differ. It must then be there, also if
        the schema does not ask for it.
        """
        members: list[tuple[Any, ...]] = []
        for member in union.members:
            all_ = self._expand([member])
            if all_ is not None:
                members.append((member,))
        traits = [self._traits(member) for (member,) in members]
        needed: list[set[str]] = [set() for _ in members]
        for later, one in enumerate(traits):
            for earlier, other in enumerate(traits[:later]):
                if one.apart(other):
                    continue
                names = [name for name in one.constants if name in other.constants]
                if union.discriminator in names:
                    names.insert(0, union.discriminator)
                telling = next(
                    (n for n in names if one.constants[n].isdisjoint(other.constants[n])), None
                )
                if telling is None:
                    at = f" at {union.path}" if union.path else ""
                    raise GrammarError(
                        f"{at}: members {earlier} and {later} of oneOf may both fit a value: give "
                        "them a property of different constants, or use anyOf"
                    )
                needed[later].add(telling)
                needed[earlier].add(telling)
        return [
            (*member, self._with(names)) if names else member
            for member, names in zip(members, needed, strict=True)
        ]

    def _with(self, names: set[str]) -> Schema:
        """The schema of an object with these properties, the same for the same names."""
        key = frozenset(names)
        return self._required.setdefault(key, {"required": sorted(names)})

    def _traits(self, schema: Any, depth: int = 0) -> _Traits:
        """What all values of a schema have in common."""
        all_ = self._expand([schema]) if depth < _CHOICES else _All((), ())
        if all_ is None:
            return _Traits(frozenset(), frozenset(), {})
        traits = _Traits(frozenset(JSON_TYPES), None, {})
        for leaf in all_.leaves:
            constants: dict[str, frozenset[str]] = {}
            for name, inner in leaf.get("properties", {}).items():
                if inner is not True and (values := self._traits(inner, depth + 1).values):
                    constants[name] = values
            traits &= _Traits(types_of(leaf), constants_of(leaf), constants)
        for union in all_.unions:
            members = [self._traits(member, depth + 1) for member in union.members]
            traits &= reduce(_Traits.__or__, members)
        return traits

    # one type at a time

    def _plain(self, leaves: Sequence[Schema], apart: bool = False) -> list[Sentence]:
        """The alternatives of the values that fit schemas without unions, constants each on its own
        if they are to be kept `apart`."""
        for leaf in leaves:
            for key in _REFUSED:
                if key in leaf:
                    raise GrammarError(f"{self._at(leaf)}{key} is not supported")
            if "not" in leaf:
                if leaf["not"] in (True, {}):
                    raise _Impossible(f"{self._at(leaf)}no value is allowed")
                if leaf["not"] is not False:
                    raise GrammarError(f"{self._at(leaf)}not is not supported")
        if any("const" in leaf or "enum" in leaf for leaf in leaves):
            texts = self._constant(leaves)
            if apart or len(texts) == 1:
                return [(Text(text),) for text in texts]
            return [(self._rules.terminal(" | ".join(map(quoted, texts))),)]
        types = set(TYPES)
        for leaf in leaves:
            types &= types_asked(leaf)
        if "number" in types:
            types.discard("integer")
        if not any("type" in leaf for leaf in leaves):
            # a schema that speaks of some types only most likely means them
            meant = {
                kind
                for kind, keys in SPEAKS_OF.items()
                if any(key in leaf for key in keys for leaf in leaves)
            }
            types = meant or types
        sentences: list[Sentence] = []
        reasons: list[str] = []
        for kind in (kind for kind in TYPES if kind in types):
            try:
                sentences += self._of_type(kind, leaves)
            except _Impossible as error:
                reasons.append(str(error))
        if not sentences:
            why = reasons[0] if reasons else f"{self._at(*leaves)}no value fits"
            raise GrammarError(why) if len(leaves) == 1 else _Impossible(why)
        return sentences

    def _of_type(self, kind: str, leaves: Sequence[Schema]) -> list[Sentence]:
        if kind == "null":
            return [(Text("null"),)]
        if kind == "boolean":
            return [(Text("true"),), (Text("false"),)]
        if kind == "array":
            return self._array(leaves)
        if kind == "object":
            return self._object(leaves)
        found: list[Terminal] = []
        if kind == "string":
            found.append(self._string(leaves, '"'))
        else:
            found += numbers_of(leaves, kind == "integer").terminals(self._rules.terminal)
        if not found:
            raise _Impossible(f"{self._at(*leaves)}no number is within the bounds")
        return [(terminal,) for terminal in found]

    def _constant(self, leaves: Sequence[Schema]) -> list[str]:
        """The constants that fit, as JSON."""
        candidates = next(
            [leaf["const"]] if "const" in leaf else leaf["enum"]
            for leaf in leaves
            if "const" in leaf or "enum" in leaf
        )
        known = [values for leaf in leaves if (values := constants_of(leaf)) is not None]
        texts = dict.fromkeys(
            text
            for value in candidates
            if all(fits_besides(value, leaf) for leaf in leaves)
            and all((text := dumps(value)) in values for values in known)
        )
        if not texts:
            why = f"{self._at(*leaves)}no constant fits all that is asked for"
            raise GrammarError(why) if len(leaves) == 1 else _Impossible(why)
        return list(texts)

    def _string(self, leaves: Sequence[Schema], after: str, *without: str) -> Terminal:
        """A string with its opening quote, and what comes `after` its text.

        without: names of terminals that its spelling must not fit.
        """
        least = max((count_of(leaf, "minLength", 0) for leaf in leaves), default=0)
        most = min((count_of(leaf, "maxLength", NO_LIMIT) for leaf in leaves), default=NO_LIMIT)
        if least > most:
            raise _Impossible(f"{self._at(*leaves)}minLength is more than maxLength")
        parts = [
            self._rules.terminal(regex(part.spelling)).name
            for part in dict.fromkeys(part for leaf in leaves for part in patterns_of(leaf))
        ]
        if least or most < NO_LIMIT or not parts or without:
            count = f"{{{least},{'' if most == NO_LIMIT else most}}}"
            parts.append(self._rules.terminal(regex(CHARACTER + count)).name)
        parts += (f"~{name}" for name in without)
        terminal = self._rules.terminal(f'"\\"" ({" & ".join(parts)}) {quoted(after)}')
        if len(parts) > 1 and not self._rules.possible(terminal):
            raise _Impossible(f"{self._at(*leaves)}no string fits all that is asked for")
        return terminal

    def _array(self, leaves: Sequence[Schema]) -> list[Sentence]:
        least = max(count_of(leaf, "minItems", 0) for leaf in leaves) if leaves else 0
        most = min(count_of(leaf, "maxItems", NO_LIMIT) for leaf in leaves) if leaves else NO_LIMIT
        if least > most:
            raise _Impossible(f"{self._at(*leaves)}minItems is more than maxItems")
        if most > 1 and any(leaf.get("uniqueItems") for leaf in leaves):
            return self._unique(leaves, least, most)
        given = max((len(leaf.get("prefixItems", ())) for leaf in leaves), default=0)
        sentences: list[Sentence] = [(Text("[]"),)] if least == 0 else []
        so_far: Sentence = (Text("["),)
        for index in range(min(given, most)):
            so_far = (*so_far, Text(", " if index else ""), self._item(leaves, index))
            if index + 1 >= least and index + 1 < given:
                sentences.append((*so_far, Text("]")))
        if most <= given:
            if most == given and most > 0:
                sentences.append((*so_far, Text("]")))
            return sentences
        if given:
            further = self._rules.rule()
            self._rules.define(further, [(Text(", "), self._item(leaves, given))])
            count = Repeat(
                further, max(least - given, 0), None if most == NO_LIMIT else most - given
            )
            return [*sentences, (*so_far, count, Text("]"))]
        item, further = self._item(leaves, 0), self._rules.rule()
        self._rules.define(further, [(Text(", "), item)])
        count = Repeat(further, max(least - 1, 0), None if most == NO_LIMIT else most - 1)
        return [*sentences, (Text("["), item, count, Text("]"))]

    def _item(self, leaves: Sequence[Schema], index: int) -> Rule:
        """What the item at the index must be."""
        schemas: list[Any] = []
        for leaf in leaves:
            prefix = leaf.get("prefixItems", ())
            schemas.append(prefix[index] if index < len(prefix) else leaf.get("items", True))
        return self._value(schemas)

    def _unique(self, leaves: Sequence[Schema], least: int, most: int) -> list[Sentence]:
        """Arrays without duplicates, of a few constants: in the order of the schema."""
        all_ = self._expand(
            [leaf.get("items", True) for leaf in leaves if "items" in leaf or "prefixItems" in leaf]
        )
        constants: list[Sentence] = []
        if (
            all_ is not None
            and not all_.unions
            and not any("prefixItems" in leaf for leaf in leaves)
        ):
            finite = any("const" in leaf or "enum" in leaf for leaf in all_.leaves)
            if finite or {"boolean"} == set(TYPES).intersection(*map(types_asked, all_.leaves)):
                constants = self._plain(all_.leaves, apart=True)
        if all_ is not None and not 0 < len(constants) <= _UNIQUE:
            raise GrammarError(
                f"{self._at(*leaves)}uniqueItems is supported for items of at most {_UNIQUE} "
                "constants (enum)"
            )
        return self._chosen(constants, least, most)

    def _chosen(self, constants: list[Sentence], least: int, most: int) -> list[Sentence]:
        """An array of some of the constants, each at most once, in their order."""
        most = min(most, len(constants))
        after: dict[int, Rule] = {}
        for index in range(len(constants), -1, -1):
            before = after
            after = {}
            for count in range(min(index, most) + 1):
                rule = after[count] = self._rules.rule()
                options: list[Sentence] = []
                if index == len(constants):
                    options += [(Text("]"),)] if count >= least else []
                else:
                    options.append((before[count],))
                    if count < most:
                        sep = Text(", " if count else "")
                        options.append((sep, *constants[index], before[count + 1]))
                self._rules.define(rule, options)
        return [(Text("["), after[0])]

    # objects

    def _object(self, leaves: Sequence[Schema]) -> list[Sentence]:
        required = list(dict.fromkeys(name for leaf in leaves for name in leaf.get("required", ())))
        names = dict.fromkeys(name for leaf in leaves for name in leaf.get("properties", ()))
        finite = names_of(self._named_by(leaves))
        names.update(dict.fromkeys((*required, *(finite or ()))))
        least = max((count_of(leaf, "minProperties", 0) for leaf in leaves), default=0)
        most = min((count_of(leaf, "maxProperties", NO_LIMIT) for leaf in leaves), default=NO_LIMIT)
        members: list[tuple[Sentence, bool]] = []
        for name in names:
            try:
                value = self._property(name, leaves)
            except _Impossible as error:
                if name in required:
                    raise
                self._why = self._why or str(error)
                continue
            members.append(((Text(dumps(name) + ": "), value), name in required))
        others = self._others(leaves, list(names)) if finite is None else []
        if others and least > len(required) + 1:
            raise GrammarError(
                f"{self._at(*leaves)}minProperties is supported up to one more than is required: "
                "names that are made up may be the same"
            )
        return self._members(members, others, least, most)

    def _property(self, name: str, leaves: Sequence[Schema]) -> Rule:
        """The values of a property that has this name. _Impossible if there can be none."""
        schemas: list[Any] = []
        for leaf in leaves:
            sure = name in leaf.get("properties", ())
            own = [leaf["properties"][name]] if sure else []
            for source, schema in leaf.get("patternProperties", {}).items():
                if pattern(source, wide=True).fits(name):
                    own.append(schema)
                    sure |= pattern(source).fits(name)
            schemas += own
            if not sure:
                schemas.append(additional(leaf))
        for named in self._named_by(leaves):
            if not (fits(name, named) and "string" in types_asked(named)):
                raise _Impossible(f"{self._at(*leaves)}no property may be named {name!r}")
        all_ = self._expand(schemas)
        if all_ is None:
            raise _Impossible(f"{self._at(*leaves)}the property {name!r} is not allowed")
        return self._value(schemas)

    def _named_by(self, leaves: Sequence[Schema]) -> Sequence[Schema]:
        """The schemas that the names of properties must fit."""
        all_ = self._expand(leaf["propertyNames"] for leaf in leaves if "propertyNames" in leaf)
        if all_ is None:
            return ({"enum": []},)
        if all_.unions:
            raise GrammarError(f"{self._at(*leaves)}propertyNames with unions is not supported")
        return all_.leaves

    def _others(self, leaves: Sequence[Schema], names: list[str]) -> list[Sentence]:
        """Names and values of properties that the schemas do not name."""
        patterns = list(
            dict.fromkeys(source for leaf in leaves for source in leaf.get("patternProperties", ()))
        )
        if len(patterns) > _PATTERNS:
            raise GrammarError(f"{self._at(*leaves)}more than {_PATTERNS} patterns of names")
        says = any("additionalProperties" in leaf for leaf in leaves)
        free = says or (not any("properties" in leaf for leaf in leaves) and not patterns)
        terminals = [
            self._rules.terminal(regex(pattern(one, wide=True).spelling)).name for one in patterns
        ]
        known = (
            [self._rules.terminal(regex("|".join(map(spelling, names) or "[^\\s\\S]"))).name]
            if names
            else []
        )
        found: list[Sentence] = []
        for chosen in (*range(len(patterns)), *((None,) if free else ())):
            source = None if chosen is None else patterns[chosen]
            schemas = [
                leaf["patternProperties"][source]
                if source in leaf.get("patternProperties", ())
                else additional(leaf)
                for leaf in leaves
            ]
            if self._expand(schemas) is None:
                continue
            without = [name for index, name in enumerate(terminals) if index != chosen]
            named = [*self._named_by(leaves)]
            if source is not None:
                named.append({"pattern": source})
            with contextlib.suppress(_Impossible):  # every such name has another pattern as well
                name = self._string(named, '": ', *without, *known)
                found.append((name, self._value(schemas)))
        return found

    def _members(
        self, members: list[tuple[Sentence, bool]], others: list[Sentence], least: int, most: int
    ) -> list[Sentence]:
        """An object of these properties, in this order, those that are not required left out or
        not; then of any of the others. What may follow depends on how many there were."""
        limited = most < len(members) or (bool(others) and most < NO_LIMIT)
        cap = len(members) if limited else min(max(1, least), len(members))
        further = self._rules.rule()
        self._rules.define(further, [(Text(", "), *other) for other in others])
        after = [
            self._one_of(self._rest(count, others, further, least, most))
            for count in range(cap + 1)
        ]
        for member, required in reversed(members):
            before, after = after, []
            for count in range(cap + 1):
                options: list[Sentence] = []
                if not limited or count < most:
                    comma = Text(", " if count else "")
                    options.append((comma, *member, *before[min(count + 1, cap)]))
                if not required:
                    options.append(before[count])
                after.append(self._one_of(options))
        return [(Text("{"), *after[0])]

    def _rest(
        self, count: int, others: list[Sentence], further: Rule, least: int, most: int
    ) -> list[Sentence]:
        """The end of an object after so many properties, others before it."""
        missing = max(least - count, 0)
        room = None if most == NO_LIMIT else most - count
        options: list[Sentence] = []
        if not missing and (room is None or room >= 0):
            options.append((Text("}"),))
        if others and (room is None or room > 0):
            if count:
                options.append((Repeat(further, max(missing, 1), room), Text("}")))
            else:
                more = Repeat(further, max(missing - 1, 0), None if room is None else room - 1)
                options += ((*other, more, Text("}")) for other in others)
        return options

    def _one_of(self, options: list[Sentence]) -> Sentence:
        """A sentence that is any of the options."""
        if len(options) == 1:
            return options[0]
        rule = self._rules.rule()
        self._rules.define(rule, options)
        return (rule,)


@dataclass(frozen=True, slots=True)
class _Traits:
    """What is known of all values of a schema."""

    types: frozenset[str]
    values: frozenset[str] | None
    """All there are, as JSON; None if they are not constants."""
    constants: Mapping[str, frozenset[str]]
    """Of an object: the values of properties, where those are constants."""

    def __and__(self, other: _Traits) -> _Traits:
        if self.values is None or other.values is None:
            values = other.values if self.values is None else self.values
        else:
            values = self.values & other.values
        return _Traits(self.types & other.types, values, {**self.constants, **other.constants})

    def __or__(self, other: _Traits) -> _Traits:
        values = None
        if self.values is not None and other.values is not None:
            values = self.values | other.values
        constants = {
            name: found | other.constants[name]
            for name, found in self.constants.items()
            if name in other.constants
        }
        return _Traits(self.types | other.types, values, constants)

    def apart(self, other: _Traits) -> bool:
        """Whether no value has the traits of both."""
        if self.types.isdisjoint(other.types):
            return True
        return (
            self.values is not None
            and other.values is not None
            and self.values.isdisjoint(other.values)
        )
