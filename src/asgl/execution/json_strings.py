"""Regular expressions of JSON strings: patterns, formats and lengths.

A character has one spelling: itself, or the short escape that JSON has for it. Control characters
without a short escape do not come. So a language of texts and the language of their spellings are
the same thing, and complements and lengths are exact.

A pattern means what Python's `re`, Rust's `regex` and ECMAScript have in common: shorthands like
\\w speak of ASCII only, and $ is the very end. Where a text must *not* match, it means what any of
them would match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from asgl.errors import GrammarError

_ESCAPES = {0x22: '"', 0x5C: "\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}
"""The characters with a short escape in JSON."""
_LAST = 0x10FFFF
_DEPTH = 50
"""Groups nested deeper are refused."""
_REPEATS = 10_000

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Characters, as ordered ranges that do not touch; both ends belong to them."""


def _ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def _complement(ranges: Ranges) -> Ranges:
    found, start = list[tuple[int, int]](), 0
    for low, high in ranges:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    if start <= _LAST:
        found.append((start, _LAST))
    return tuple(found)


def _common(one: Ranges, other: Ranges) -> Ranges:
    return _complement(_ranges((*_complement(one), *_complement(other))))


def _signs(text: str) -> Ranges:
    return _ranges((ord(sign), ord(sign)) for sign in text)


_ALL: Ranges = ((0, _LAST),)
_ASCII: Ranges = ((0, 0x7F),)
_BEYOND: Ranges = ((0x80, _LAST),)
_DIGIT: Ranges = ((0x30, 0x39),)
_WORD = _ranges(((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
_SPACE = _signs("\t\n\v\f\r ")
_ANY = _complement(_signs("\n\r\u2028\u2029"))
_SHORTHANDS = {
    "d": _DIGIT,
    "w": _WORD,
    "s": _SPACE,
    "D": _common(_ASCII, _complement(_DIGIT)),
    "W": _common(_ASCII, _complement(_WORD)),
    "S": _common(_ASCII, _complement(_SPACE)),
}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7}
_PLAIN = _complement(_ranges(((0, 0x1F), (0x7F, 0x7F), (0xD800, 0xDFFF), *_signs('"\\'))))
"""The characters that stand for themselves."""


@dataclass(frozen=True, slots=True)
class _Characters:
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class _Anchor:
    start: bool


@dataclass(frozen=True, slots=True)
class _Repeat:
    body: _Node
    count: str
    """As it is written after the body."""


@dataclass(frozen=True, slots=True)
class _Either:
    options: tuple[tuple[_Node, ...], ...]


_Node: TypeAlias = _Characters | _Anchor | _Repeat | _Either


class _Parser:
    """Reads a pattern. GrammarError for what readers of a schema do not understand.

    wide: a character belongs to a class if any reader says so, else if all of them do.
    """

    def __init__(self, pattern: str, wide: bool) -> None:
        self._pattern = pattern
        self._wide = wide
        self._at = 0

    def parse(self) -> _Either:
        either = self._either(0)
        if self._at < len(self._pattern):
            raise self._wrong("unbalanced parenthesis")
        return either

    def _wrong(self, what: str) -> GrammarError:
        return GrammarError(f"the pattern {self._pattern[:200]!r} has {what}, at {self._at}")

    def _peek(self, count: int = 1) -> str:
        return self._pattern[self._at : self._at + count]

    def _next(self) -> str:
        sign = self._peek()
        if not sign:
            raise self._wrong("no end")
        self._at += 1
        return sign

    def _either(self, depth: int) -> _Either:
        if depth > _DEPTH:
            raise self._wrong(f"groups nested more than {_DEPTH} deep")
        options: list[tuple[_Node, ...]] = []
        nodes: list[_Node] = []
        while (sign := self._peek()) and sign != ")":
            self._at += 1
            if sign == "|":
                options.append(tuple(nodes))
                nodes = []
            else:
                nodes.append(self._counted(self._node(sign, depth)))
        return _Either((*options, tuple(nodes)))

    def _node(self, sign: str, depth: int) -> _Node:
        if sign == "(":
            return self._group(depth)
        if sign == "[":
            return _Characters(self._class())
        if sign in "^$":
            return _Anchor(sign == "^")
        if sign == ".":
            return _Characters(_ALL if self._wide else _ANY)
        if sign in "*+?":
            raise self._wrong("nothing to repeat")
        if sign in "{}]":
            raise self._wrong(f"a {sign!r} without a backslash")
        if sign != "\\":
            return _Characters(_signs(sign))
        if (escaped := self._peek()) in ("A", "Z", "z") and escaped:
            self._at += 1
            return _Anchor(escaped == "A")
        found = self._escape()
        return _Characters(found if isinstance(found, tuple) else ((found, found),))

    def _group(self, depth: int) -> _Node:
        if self._peek() == "?":
            opening = re.compile(r"\?(:|P?<[A-Za-z_]\w*>)").match(self._pattern, self._at)
            if opening is None:
                kind = "look-around" if self._peek(2) in ("?=", "?!", "?<") else "a special group"
                raise self._wrong(f"{kind}, which is not supported")
            self._at = opening.end()
        body = self._either(depth + 1)
        if self._peek() != ")":
            raise self._wrong("an unclosed group")
        self._at += 1
        return body

    def _counted(self, node: _Node) -> _Node:
        found = re.compile(r"[*+?]|\{(\d+)(,(\d*))?\}").match(self._pattern, self._at)
        if found is None:
            return node
        if isinstance(node, _Anchor):
            raise self._wrong("a repeated anchor")
        if found[1] is not None:
            most = int((found[3] or found[1])[:9])
            if most > _REPEATS or int(found[1][:9]) > most:
                raise self._wrong(f"the repetition {found[0]}; the most is {_REPEATS}")
        self._at = found.end()
        if self._peek() == "?":  # as few as possible: the same texts
            self._at += 1
        if self._peek() in ("*", "+", "?") and self._peek():
            raise self._wrong("a repeated repetition")
        return _Repeat(node, found[0])

    def _escape(self) -> int | Ranges:
        """What follows a backslash: one character, or several."""
        sign = self._next()
        if sign in _SHORTHANDS:
            return self._agreed(_SHORTHANDS[sign])
        if sign in _CONTROLS:
            return _CONTROLS[sign]
        if sign in "xu":
            code = re.compile("[0-9a-fA-F]{%d}" % (2 if sign == "x" else 4)).match(  # noqa: UP031
                self._pattern, self._at
            )
            if code is None:
                raise self._wrong(f"an incomplete \\{sign}")
            self._at = code.end()
            return int(code[0], 16)
        if sign.isalnum() or not sign.isascii() or sign in "<>":
            kind = "backreferences are" if sign in "123456789k" else f"\\{sign} is"
            raise self._wrong(f"\\{sign}: {kind} not supported")
        return ord(sign)

    def _agreed(self, ranges: Ranges) -> Ranges:
        """The characters of a shorthand: readers agree on those that are ASCII."""
        return _ranges((*ranges, *_BEYOND)) if self._wide else _common(ranges, _ASCII)

    def _class(self) -> Ranges:
        if negated := self._peek() == "^":
            self._at += 1
        if self._peek() == "]":
            raise self._wrong("an empty class")
        pairs: list[tuple[int, int]] = []
        shorthands = False
        while (sign := self._next()) != "]":
            if sign == "[" or (sign in "&-~|" and self._peek() == sign):
                raise self._wrong("a set operation, or a sign to be escaped, in a class")
            low = self._escape() if sign == "\\" else ord(sign)
            if isinstance(low, tuple):
                pairs += low
                shorthands = True
                if self._peek() == "-" and self._peek(2) != "-]":
                    raise self._wrong("a range that begins with several characters")
                continue
            high = low
            if self._peek() == "-" and self._peek(2) != "-]":
                self._at += 1
                sign = self._next()
                found = self._escape() if sign == "\\" else ord(sign)
                if isinstance(found, tuple) or found < low or sign == "[":
                    raise self._wrong("a range that ends before it begins")
                high = found
            pairs.append((low, high))
        found = _complement(_ranges(pairs)) if negated else _ranges(pairs)
        return self._agreed(found) if shorthands else found


def _class(ranges: Ranges) -> str:
    """A class in a notation that Python and Rust share."""
    if not ranges:
        return r"[^\s\S]"
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _sign(ranges[0][0])
    return "[" + "".join(map(_pair, ranges)) + "]"


def _pair(pair: tuple[int, int]) -> str:
    low, high = pair
    return _sign(low) if low == high else f"{_sign(low)}-{_sign(high)}"


def _sign(code: int) -> str:
    if code < 0x80:
        return chr(code) if chr(code).isalnum() else f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _spelled(ranges: Ranges) -> str:
    """The spellings of the characters in JSON."""
    options = [_class(plain)] if (plain := _common(ranges, _PLAIN)) else []
    options += (
        rf"\x5c{_sign(ord(letter))}"
        for code, letter in _ESCAPES.items()
        if _common(ranges, ((code, code),))
    )
    if not options:
        return _class(())
    return options[0] if len(options) == 1 and plain else f"(?:{'|'.join(options)})"


CHARACTER = _spelled(_ALL)
"""The spelling of any one character of a JSON string."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a text has to match."""

    text: re.Pattern[str]
    """Of the whole text, for Python."""
    spelling: str
    """Of the whole text's spelling between the quotes, for llguidance."""

    def fits(self, text: str) -> bool:
        return self.text.fullmatch(text) is not None


@lru_cache(1024)
def pattern(source: str, wide: bool = False) -> Pattern:
    """A pattern as a schema's author wrote it: a text has to contain a match.

    wide: of all texts in which any reader of the schema finds a match, not of those in which all of
    them do.

    GrammarError if it is none, or not supported.
    """
    tree = _Parser(source, wide).parse()
    line_end = _signs("\n") if wide else None
    try:
        text = re.compile(_whole(tree, source, _class, r"[\s\S]*", line_end))
    except (re.error, RecursionError, OverflowError) as error:
        raise GrammarError(f"the pattern {source[:200]!r}: {error}") from None
    return Pattern(text, _whole(tree, source, _spelled, f"{CHARACTER}*", line_end))


def _whole(
    tree: _Either,
    source: str,
    characters: Callable[[Ranges], str],
    anything: str,
    line_end: Ranges | None,
) -> str:
    """An expression of whole texts: anything comes before and after what has no anchor.

    line_end: what may follow the end that an anchor asks for.
    """
    options: list[str] = []
    for nodes in _options(tree):
        start = next((i for i, node in enumerate(nodes) if node != _Anchor(True)), len(nodes))
        end = next(
            (i for i in range(len(nodes), start, -1) if nodes[i - 1] != _Anchor(False)), start
        )
        text = "" if start else anything
        text += "".join(_written(node, source, characters) for node in nodes[start:end])
        if end == len(nodes):
            text += anything
        elif line_end is not None:
            text += f"(?:{characters(line_end)})?"
        options.append(text)
    return f"(?:{'|'.join(options)})"


def _options(tree: _Either) -> Iterator[tuple[_Node, ...]]:
    for nodes in tree.options:
        if len(nodes) == 1 and isinstance(nodes[0], _Either):
            yield from _options(nodes[0])
        else:
            yield nodes


def _written(node: _Node, source: str, characters: Callable[[Ranges], str]) -> str:
    if isinstance(node, _Characters):
        return characters(node.ranges)
    if isinstance(node, _Repeat):
        return f"(?:{_written(node.body, source, characters)}){node.count}"
    if isinstance(node, _Either):
        options = (
            "".join(_written(inner, source, characters) for inner in nodes)
            for nodes in node.options
        )
        return f"(?:{'|'.join(options)})"
    raise GrammarError(
        f"the pattern {source[:200]!r} has an anchor inside: ^ and $ are supported at its ends"
    )


def spelling(text: str) -> str:
    """An expression of the spelling of this very text."""
    return "".join(_spelled(_signs(sign)) for sign in text)


_D = "[0-9]"
_HEX = "[0-9a-f]"
_LEAP = "(?:[02468][48]|[13579][26]|[2468]0)"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = f"(?:{_D}{{2}}{_LEAP}|(?:[13579][26]|[2468][048]|0[48])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]{_D}|3[01])"
    f"|(?:0[469]|11)-(?:0[1-9]|[12]{_D}|30)|02-(?:0[1-9]|1{_D}|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK = rf"(?:[01]{_D}|2[0-3]):[0-5]{_D}:[0-5]{_D}(?:\.{_D}{{1,6}})?"
_ZONE = rf"(?:Z|[+-](?:[01]{_D}|2[0-3]):[0-5]{_D})"
_OCTET = f"(?:25[0-5]|2[0-4]{_D}|1{_D}{{2}}|[1-9]?{_D})"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_GROUP = f"{_HEX}{{1,4}}"
_IPV6 = (
    "(?:"
    + "|".join(
        [f"(?:{_GROUP}:){{7}}{_GROUP}"]
        + [
            (f"{_GROUP}(?::{_GROUP}){{{left - 1}}}" if left else "")
            + "::"
            + (f"(?:{_GROUP}(?::{_GROUP}){{0,{5 - left}}})?" if left < 6 else "")
            for left in range(7)
        ]
    )
    + ")"
)
_IPV4_NETWORK = (
    rf"(?:{_IPV4}/32|(?:{_OCTET}\.){{3}}0/24|(?:{_OCTET}\.){{2}}0\.0/16|{_OCTET}\.0\.0\.0/8)"
)
_IPV6_NETWORK = f"(?:{_IPV6}/128|(?:{_GROUP}:){{1,3}}:/48|{_GROUP}::/16)"
_IPV4_INTERFACE = f"{_IPV4}(?:/(?:3[0-2]|[12]?{_D}))?"
_IPV6_INTERFACE = f"{_IPV6}(?:/(?:12[0-8]|1[01]{_D}|[1-9]?{_D}))?"
_LABEL = "[a-z0-9]{1,20}(?:-[a-z0-9]{1,20}){0,2}"
_DOMAIN = rf"(?:{_LABEL}\.){{1,3}}(?:com|org|net|edu|info|dev|app|[a-z]{{2}})"
_EMAIL = rf"[a-z0-9]{{1,20}}(?:[._+-][a-z0-9]{{1,20}}){{0,2}}@{_DOMAIN}"
_SEGMENT = r"[A-Za-z0-9._~-]{1,100}"
_URI = (
    rf"https?://{_DOMAIN}(?::[1-9]{_D}{{1,3}})?(?:/(?:{_SEGMENT}(?:/{_SEGMENT}){{0,10}}/?)?)?"
    rf"(?:\?[a-z]{{1,20}}=[A-Za-z0-9._~-]{{0,100}}(?:&[a-z]{{1,20}}=[A-Za-z0-9._~-]{{0,100}}){{0,5}})?"
)
_POINTER = "(?:/[A-Za-z0-9_]{0,100}){0,20}"
_MINUTES = f"(?:{_D}{{1,3}}M(?:{_D}{{1,3}}S)?|{_D}{{1,3}}S)"
_TIME_PART = f"T(?:{_D}{{1,3}}H{_MINUTES}?|{_MINUTES})"
_DURATION = f"P(?:{_D}{{1,4}}D(?:{_TIME_PART})?|{_TIME_PART})"


def _base64(last: str) -> str:
    """Base64 of ASCII texts, which is right for bytes and for text alike."""
    first, second = "[A-Za-f]", "[A-HQ-Xg-nw-z0-3]"
    third, fourth = "[ABEFIJMNQRUVYZcdghklopstwx014589]", f"[A-Za-z0-9{last}]"
    return (
        f"(?:{first}{second}{third}{fourth})*"
        f"(?:{first}[AQgw]==|{first}{second}[AEIMQUYcgkosw048]=)?"
    )


def _uuid(version: str) -> str:
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}"


_FORMATS: dict[str, str | None] = {
    "date": _DATE,
    "time": _CLOCK + _ZONE,
    "date-time": f"{_DATE}T{_CLOCK}{_ZONE}",
    "duration": _DURATION,
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "name-email": _EMAIL,
    "hostname": _DOMAIN,
    "idn-hostname": _DOMAIN,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipv4network": _IPV4_NETWORK,
    "ipv6network": _IPV6_NETWORK,
    "ipvanynetwork": f"(?:{_IPV4_NETWORK}|{_IPV6_NETWORK})",
    "ipv4interface": _IPV4_INTERFACE,
    "ipv6interface": _IPV6_INTERFACE,
    "ipvanyinterface": f"(?:{_IPV4_INTERFACE}|{_IPV6_INTERFACE})",
    "uri": _URI,
    "iri": _URI,
    "uri-reference": _URI,
    "iri-reference": _URI,
    "uri-template": _URI,
    "uuid": _uuid("[1-8]"),
    **{f"uuid{version}": _uuid(str(version)) for version in range(1, 9)},
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9]{_D}{{0,3}})(?:#|{_POINTER})",
    "regex": "[A-Za-z0-9_ ]*",
    "base64": _base64("+/"),
    "base64url": _base64("_-"),
    "byte": _base64("+/"),
    # a length counts bytes, of which an ASCII character has one
    "binary": f"{_spelled(_ASCII)}*",
    # any text has these formats
    "password": None,
    "path": None,
}


@lru_cache(256)
def string_format(name: str) -> Pattern | None:
    """Texts of a format, at least those that all checkers agree on. None if that is any text.

    Dates are real ones, URIs are those of the web, and email addresses and host names are of common
    top level domains. GrammarError for a format that is not known.
    """
    if name not in _FORMATS:
        raise GrammarError(f"the format {name!r} is not supported")
    expression = _FORMATS[name]
    if expression is None:
        return None
    return Pattern(re.compile(r"[\x00-\x7f]*" if name == "binary" else expression), expression)
