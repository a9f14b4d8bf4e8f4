"""Symbols: strings that stand for values which a traced program does not have yet.

A symbol's characters are a marker, so that it survives being added to text and put into f-strings.
A marker cannot be forged: it is made of characters drawn at random for each trace. And it is
fragile on purpose: it has blanks at both ends, quotes, a backslash, an ampersand, capitals and
small letters, so that whatever would have changed the value itself, `.strip()`, `.upper()`,
`.split()`, `json.dumps`, `html.escape`, breaks the marker, which is noticed. Only what the traced
program wrote is searched for markers, never a value that is put in.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NoReturn, TypeAlias, cast

from asgl.compile.lines import line_of
from asgl.errors import CompileError, ConfigError
from asgl.language.operation import Operation
from asgl.language.ops import Content, Text

_END, _MIDDLE = "\x1f", "\x1e"
"""A blank to `strip` and `split`, and a line's end to `splitlines`; nothing that a prompt has."""


class Arg:
    """The type of `asgl.arg`, which is given to `Function.graph` as an argument whose value comes
    when the graph runs."""

    def __repr__(self) -> str:
        return "asgl.arg"

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError(
            "asgl.arg is no text: it stands for an argument that stays open, in "
            "program.graph(name=asgl.arg)"
        )

    __str__ = cast(Any, lambda self: format(self))


arg: Any = Arg()
"""Given to `Function.graph` as an argument: its value comes when the graph runs."""


@dataclass(frozen=True)
class Use:
    """One way in which a value is used: as it is, its text, formatted, or as its repr."""

    source: str | Operation
    """The name of an argument, or the op whose value it is."""
    form: Literal["value", "text", "format", "repr"] = "value"
    spec: str = ""
    """How to format it."""
    name: str | None = None
    """The variable that is meant, if the op is a message, which may set several."""

    def of(self, value: Any) -> Any:
        if self.form == "format":
            return format(value, self.spec)
        return repr(value) if self.form == "repr" else value


def label_of(use: Use, place: str = "") -> str:
    """How a use is written for readers: {topic}, {price:.2f}; `place` says more of its source."""
    names = (
        (use.source,)
        if isinstance(use.source, str)
        else (use.name, *use.source.names, "what the model said")
    )
    name = next(name for name in names if name is not None)
    return (
        f"{{{name}{place}{'!r' if use.form == 'repr' else ''}{':' + use.spec if use.spec else ''}}}"
    )


Fill: TypeAlias = Callable[[Use], Any]
"""Gives what is to be put in the place of a use."""
Pieces: TypeAlias = tuple[str | Use, ...]


class Symbols:
    """All symbols of one trace."""

    def __init__(self) -> None:
        self._secret = "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(16))
        self._letters = "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(12))
        """Are left as they are by what escapes the others."""
        self._marker = re.compile(re.escape(self._written(0)).replace("0", "([0-9]+)"))
        self._broken = re.compile(f"[{_END}{_MIDDLE}{self._secret}]|{self._letters}", re.IGNORECASE)
        """What is left of a marker that was cut or changed."""
        self._uses: list[Use] = []
        self._numbers: dict[Use, int] = {}
        """Where in the list each is: the same use is the same text, so that it can be part of a
        variable's name."""
        self._known: dict[str, Pieces] = {}
        self.error: CompileError | None = None
        """The first that was raised: the program may have caught it."""

    def symbol(self, use: Use) -> Symbol:
        if use not in self._numbers:
            self._numbers[use] = len(self._uses)
            self._uses.append(use)
        return Symbol(self._written(self._numbers[use]), self, use)

    def _written(self, number: int) -> str:
        first, second = self._secret[:8], self._secret[8:]
        return f"{_END}{first}{self._letters}{number}'\"\\&<{_MIDDLE}sS {second}{_END}"

    def refuse(self, message: str, where: str | None = None) -> NoReturn:
        """Raises a CompileError that names the line of the program, and keeps it."""
        error = CompileError(f"{where or line_of(sys._getframe())}: {message}")
        self.error = self.error or error
        raise error

    # --- texts

    def pieces(self, text: str) -> Pieces:
        """The text, cut where values go. CompileError if a marker in it was cut or changed."""
        plain = str.__str__(text)
        if plain not in self._known:
            parts = self._marker.split(plain)
            if any(self._broken.search(part) for part in parts[::2]):
                self.refuse(
                    "a text with an open value in it was cut, changed or encoded before it was "
                    "used, and the value is "
                    f"not known yet (or the text has a character {_END!r} or {_MIDDLE!r}): change "
                    "the constant parts "
                    "only, or do it to the argument before the graph runs"
                )
            found = [
                part if index % 2 == 0 else self._uses[int(part)]
                for index, part in enumerate(parts)
            ]
            self._known[plain] = tuple(part for part in found if part != "")
        return self._known[plain]

    def text(self, text: str, fill: Fill) -> str:
        """The text with its values. ConfigError if one of them is no text."""
        return "".join(
            piece if isinstance(piece, str) else _as_text(piece, fill(piece))
            for piece in self.pieces(text)
        )

    # --- anything

    def filled(self, value: Any, fill: Fill) -> Any:
        """The value with its symbols replaced, also inside lists, tuples, dicts and dataclasses.
        Lists and dicts are new ones, so that no run has those of another, or of the program; all
        else is itself if nothing in it changes."""
        if isinstance(value, str):
            pieces = self.pieces(value)
            if len(pieces) == 1 and isinstance(pieces[0], Use):
                return fill(pieces[0])
            return (
                self.text(value, fill) if any(isinstance(piece, Use) for piece in pieces) else value
            )
        if isinstance(value, Text):
            text = self.text(value.text, fill)
            return value if text == str.__str__(value.text) else Text(text)
        if isinstance(value, list):
            copied = copy(cast("list[Any]", value))
            copied[:] = [self.filled(part, fill) for part in copied]
            return copied
        if isinstance(value, tuple):
            old = list(cast("tuple[Any, ...]", value))
            new = [self.filled(part, fill) for part in old]
            if all(a is b for a, b in zip(old, new, strict=True)):
                return value
            return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, Mapping):
            before = dict(cast("Mapping[Any, Any]", value))
            after = {
                self.filled(key, fill): self.filled(part, fill) for key, part in before.items()
            }
            if isinstance(value, dict):
                kept = copy(cast("dict[Any, Any]", value))
                kept.clear()
                kept.update(after)
                return kept
            same = all(
                a is b
                for pair in zip(before.items(), after.items(), strict=True)
                for a, b in zip(*pair, strict=True)
            )
            return value if same else after
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {
                field.name: getattr(value, field.name)
                for field in dataclasses.fields(value)
                if field.init
            }
            changed = {
                name: new
                for name, part in fields.items()
                if (new := self.filled(part, fill)) is not part
            }
            return replace(value, **changed) if changed else value
        return value

    def uses(self, value: Any) -> list[Use]:
        """The uses of open values in it, in order."""
        if isinstance(value, str):
            return [piece for piece in self.pieces(value) if isinstance(piece, Use)]
        parts: Iterable[Any] = ()
        if isinstance(value, list | tuple):
            parts = cast("list[Any]", value)
        elif isinstance(value, Mapping):
            parts = chain.from_iterable(cast("Mapping[Any, Any]", value).items())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = [
                getattr(value, field.name) for field in dataclasses.fields(value) if field.init
            ]
        return [use for part in parts for use in self.uses(part)]

    def shown(self, text: str, label: Callable[[Use], str] = label_of) -> str:
        """For readers: the text with {labels} in the place of values."""
        return self._marker.sub(
            lambda match: self.shown(label(self._uses[int(match[1])]), label), str.__str__(text)
        )


class Symbol(str):
    """A string that stands for a value. What would need the value raises CompileError."""

    _symbols: Symbols
    _use: Use | None

    def __new__(cls, text: str, symbols: Symbols, use: Use | None = None) -> Symbol:
        self = super().__new__(cls, text)
        self._symbols, self._use = symbols, use
        return self

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Content):
            return NotImplemented  # which adds it as text
        return (
            Symbol(str.__add__(self, other), self._symbols)
            if isinstance(other, str)
            else self._refuse("+")
        )

    def __radd__(self, other: Any) -> Any:
        return (
            Symbol(str.__add__(other, self), self._symbols)
            if isinstance(other, str)
            else self._refuse("+")
        )

    def __rmod__(self, other: Any) -> Any:
        return (
            Symbol(other % (self,), self._symbols) if isinstance(other, str) else self._refuse("%")
        )

    def __format__(self, spec: str) -> str:
        if self._symbols.uses(spec):
            self._symbols.refuse(
                "how an open value is to be formatted is open too: give the value of what stands "
                "in the format "
                "to .graph(...), or format it before the graph runs"
            )
        if self._use is None or self._use.form != "value":
            return self if not spec else self._refuse("a format")
        return self._symbols.symbol(replace(self._use, form="format", spec=spec))

    def __str__(self) -> str:
        return format(self)

    def __repr__(self) -> str:
        if self._use is None or self._use.form != "value":
            return self._refuse("repr")
        return self._symbols.symbol(replace(self._use, form="repr"))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f".{name}")

    def _refuse(self, what: str) -> NoReturn:
        use = self._use
        if use is None:
            said, instead = (
                "what a text with open values in it says is",
                "do it to the constant parts before they are added",
            )
        elif isinstance(use.source, str):
            said = f"the argument {use.source!r} is"
            instead = (
                f"give its value instead of asgl.arg, .graph({use.source}=...), or do it before "
                "the graph runs; a "
                "parameter of an op can be open in s.gen(...) and s.select(...), and not in "
                "asgl.gen and asgl.select"
            )
        else:
            said = "what the model says is"
            instead = (
                "append it as it is, or run the part of the program that has to look at it "
                "directly, without compiling it"
            )
        self._symbols.refuse(
            f"{said} not known while the program is traced, and {what} needs it: {instead}"
        )


def _refused(name: str) -> Callable[..., NoReturn]:
    shown = f".{name}()" if not name.startswith("__") else _OPERATORS.get(name, name)

    def method(self: Symbol, *_: Any, **__: Any) -> NoReturn:
        self._refuse(shown)

    return method


_OPERATORS: Mapping[str, str] = {
    "__bool__": "its truth",
    "__eq__": "==",
    "__ne__": "!=",
    "__lt__": "<",
    "__le__": "<=",
    "__gt__": ">",
    "__ge__": ">=",
    "__hash__": "a key of a dict or set",
    "__len__": "len",
    "__iter__": "a loop over it",
    "__getitem__": "[...]",
    "__contains__": "in",
    "__index__": "a count",
    "__int__": "int",
    "__float__": "float",
    "__mul__": "*",
    "__rmul__": "*",
    "__mod__": "%",
    "__rmod__": "%",
    "__sub__": "-",
    "__rsub__": "-",
    "__truediv__": "/",
    "__rtruediv__": "/",
    "__floordiv__": "//",
    "__rfloordiv__": "//",
    "__neg__": "-",
    "__abs__": "abs",
    "__round__": "round",
    "__call__": "a call",
}
_KEPT = {
    "__new__",
    "__init__",
    "__class__",
    "__getattribute__",
    "__setattr__",
    "__delattr__",
    "__init_subclass__",
    "__subclasshook__",
    "__doc__",
    "__sizeof__",
    "__dir__",
    *vars(Symbol),
}
for _name in {*dir(str), *_OPERATORS} - _KEPT:
    setattr(Symbol, _name, _refused(_name))


def _as_text(use: Use, value: Any) -> str:
    if isinstance(value, str):
        return value
    of = f"the argument {use.source!r}" if isinstance(use.source, str) else "a generated value"
    raise ConfigError(
        f"{of} is appended as text, so it must be a str, not {value!r}: write an f-string, or "
        "str(...), around it"
    )
