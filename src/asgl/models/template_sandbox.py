"""Renders Jinja templates that come with a model, and so from strangers: in a sandbox, with a bound
on work and on memory.

Jinja's own sandbox keeps a template away from Python's objects, but lets it loop for years or build
a string of a terabyte. Here every loop turn, every call, and every value that is built or written
is charged to one budget, so that the bound does not depend on the speed of the machine. The charges
are put into the template's syntax tree, where it cannot reach them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Never

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from asgl.errors import ModelError

MAX_TEMPLATE = 1 << 18
"""Characters of a template."""
MAX_WORK = 1 << 21
"""Units of a rendering, besides those for what is given to it: characters, `_ELEMENT` for each
element, `_TURN` for each turn or call. A few tenths of a second."""
_TURN = 16
_ELEMENT = 4
_MAX_DEPTH = 64

_WITHHELD = frozenset({"random"})
"""Filters that transformers gives and this module does not: what a template writes must not change
from one rendering to the next."""
_LOOKERS = frozenset({"count", "d", "default", "first", "last", "length"})
"""Filters that take constant time. A template may ask for the length of the conversation at each of
its messages."""
_TEXT_METHODS = frozenset(
    {
        "capitalize",
        "casefold",
        "center",
        "count",
        "endswith",
        "expandtabs",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "islower",
        "isnumeric",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "ljust",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rjust",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "zfill",
    }
)
_UNBOUNDED_FORMAT = re.compile(r"\d{4}|\*|\{[^{}]*\{")
"""A format that asks for a wide field, or takes a width from a value."""
_PADDING = frozenset(
    {
        "batch",
        "center",
        "expandtabs",
        "indent",
        "ljust",
        "rjust",
        "slice",
        "wordwrap",
        "zfill",
    }
)
"""Filters and text methods that make a text or list as long as a number says."""
_MAX_INDENT = 16
_MAX_TIME_FORMAT = 100
_MAX_TIME_FORMATS = 16


class TemplateError(Exception):
    """Why a template cannot be rendered."""


class _Generation(Extension):
    """`{% generation %}`: marks what an assistant wrote, for training. Here it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self.charge,
            extensions=[loopcontrols, _Generation],
        )
        self.left = 0
        self.time_formats: set[str] = set()
        """What the template asked `strftime_now` for: its text changes when these do."""
        self._now = now
        filters: dict[str, Callable[..., Any]] = {**self.filters, "tojson": self._to_json}
        self.filters = {
            name: self._charged(name, filter)
            for name, filter in filters.items()
            if name not in _WITHHELD
        }
        given = ("range", "dict", "namespace", "cycler", "joiner")
        self.globals: Any = {name: self.globals[name] for name in given}
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = self._strftime_now

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's safe `str.format`, which pads to any width, without wide fields."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__)
            return self.charge(safe(*args, **kwargs))

        return bounded

    def turn(self) -> str:
        """Charged at each turn of a loop and each call of a macro."""
        self._spend(_TURN)
        return ""

    def charge(self, value: Any) -> Any:
        """Charges the whole size of a value that was built, or is written."""
        self._spend(self._size(value, 0))
        return value

    def concatenate(self, *parts: Any) -> str:
        return "".join([str(self.charge(part)) for part in parts])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateError("the operator ** is not allowed")
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        if operator == "*":
            self._spend(
                max(self._size(left, 0), 1) * max(right, 0)
                if isinstance(right, int) and _is_long(left)
                else max(self._size(right, 0), 1) * max(left, 0)
                if isinstance(left, int) and _is_long(right)
                else 1
            )
        value = super().call_binop(context, operator, left, right)
        if isinstance(value, int) and abs(value) >= 1 << 64:
            raise TemplateError("a number is too large")
        return self.charge(value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._spend(_TURN)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ not in _TEXT_METHODS:
                raise TemplateError(f"the text method {__obj.__name__!r} is not allowed")
            __self.charge(owner)
            __self._charge_growth(__obj.__name__, owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            loop.body.insert(
                0, nodes.ExprStmt(_own_call("turn", [], loop.lineno), lineno=loop.lineno)
            )
        return _Charges().visit(tree)

    def _charged(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, charging what it is given and what it makes. Jinja's marks on it
        (`pass_context`) are kept."""

        def charged(*args: Any, **kwargs: Any) -> Any:
            self._spend(_TURN)
            if name in _LOOKERS:
                return filter(*args, **kwargs)
            given = args[1:] if getattr(filter, "jinja_pass_arg", None) is not None else args
            self.charge([arg for arg in given if isinstance(arg, str | list | tuple | dict)])
            self._charge_growth(name, given[0] if given else "", given[1:], kwargs)
            result = filter(*args, **kwargs)
            if hasattr(result, "__next__"):
                result = list(result)
            return self.charge(result)

        charged.__dict__.update(getattr(filter, "__dict__", {}))
        return charged

    def _charge_growth(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Charges what the filter or text method `name` makes of `value`, before it makes it, where
        that can be much longer than what it is given."""
        given = [*args, *kwargs.values()]
        if name == "replace":
            old, new = (str(text) for text in (*given, "", "")[:2])
            self._spend((str(value).count(old) + 1) * len(new))
        elif name == "join":
            texts, between = (value, given[:1]) if not isinstance(value, str) else (given, [value])
            parts = texts[0] if isinstance(value, str) and texts else texts
            if hasattr(parts, "__len__"):
                self._spend(sum(len(str(text)) for text in between) * len(parts))
        elif name == "format":
            _check_format(str(value))
        elif name == "tojson":
            separators = kwargs.get("separators") or (args[2] if len(args) > 2 else None) or ()
            marks = sum(len(str(mark)) for mark in separators)
            self._spend(marks * self._size(value, 0))
        elif name in _PADDING:
            lines = str(value).count("\n") + str(value).count("\t") + 1
            for width in given:
                if isinstance(width, int):
                    self._spend(max(width, 0) * lines)
                elif isinstance(width, str) and name in ("indent", "wordwrap"):
                    self._spend(len(width) * (len(str(value)) if name == "wordwrap" else lines))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers' own: characters as they are, not for embedding in HTML."""
        if (len(indent) if isinstance(indent, str) else indent or 0) > _MAX_INDENT:
            raise TemplateError(f"an indent of {indent!r:.40} is not allowed")
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def _strftime_now(self, format: str) -> str:
        if len(format) > _MAX_TIME_FORMAT or len(self.time_formats) > _MAX_TIME_FORMATS:
            raise TemplateError("too long a time format, or too many of them")
        self.time_formats.add(format)
        return self._now().strftime(format)

    def _size(self, value: Any, depth: int) -> int:
        if isinstance(value, str):
            return len(value)
        if isinstance(value, list | tuple | Mapping):
            if depth > _MAX_DEPTH:
                raise TemplateError("a value is nested too deep")
            size = 1
            for item in (*value.keys(), *value.values()) if isinstance(value, Mapping) else value:
                size += _ELEMENT + self._size(item, depth + 1)
                if size > self.left:
                    self._spend(size)
            return size
        return 1

    def _spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TemplateError("it takes too much work, or makes too much text")


class _Charges(NodeTransformer):
    """Puts the charges around what builds values: list, tuple and dict literals, and `~`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _own_call("concatenate", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _own_call("charge", [node], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _own_call("charge", [node], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx != "load" else _own_call("charge", [node], node.lineno)


def _own_call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)


def _is_long(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _check_format(text: str) -> None:
    if _UNBOUNDED_FORMAT.search(text):
        raise TemplateError(f"the format {text!r:.40} may make too much text")


def _raise(message: str) -> Never:
    raise TemplateError(f"it says: {message}")


class CompiledTemplate:
    """A template that can be rendered. ModelError, with the reason, if it does not compile.

    `now` is the clock of `strftime_now`. Rendering changes no state but the sandbox's own; do not
    render from two threads at once.
    """

    def __init__(self, source: str, now: Callable[[], datetime] = datetime.now) -> None:
        if len(source) > MAX_TEMPLATE:
            raise ModelError(
                f"the chat template has {len(source)} characters; more than {MAX_TEMPLATE} are not "
                "read"
            )
        self._now, self._sandbox = now, _Sandbox(now)
        try:
            tree = self._sandbox.parse(source)
            self._template = self._sandbox.from_string(tree)
        except _COMPILING as error:
            raise ModelError(f"the chat template does not compile: {error}") from error
        self.literals: frozenset[str] = frozenset(
            [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
            + [node.data for node in tree.find_all(nodes.TemplateData)]
        )
        """The texts that the template has in it: its string constants, and what it writes as is."""
        names = list(tree.find_all(nodes.Name))
        self.names: frozenset[str] = frozenset(one.name for one in names if one.ctx == "load")
        """The variables that it reads."""
        self.own_names: frozenset[str] = frozenset(one.name for one in names if one.ctx != "load")
        """Those that it sets itself."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. ModelError, with the reason, if the template raises or costs too much."""
        self._sandbox.left = 1 << 62
        self._sandbox.left = MAX_WORK + 16 * self._sandbox._size(variables, 0)
        try:
            return self._template.render(variables)
        except _RENDERING as error:
            raise ModelError(f"the chat template cannot be rendered: {error}") from error

    def times(self) -> tuple[str, ...]:
        """What `strftime_now` gives now for all that it was asked for: renderings that are kept are
        out of date once this changes."""
        return tuple(self._now().strftime(form) for form in sorted(self._sandbox.time_formats))


_COMPILING = (
    jinja2.TemplateError,
    TemplateError,
    RecursionError,
    SyntaxError,
    ValueError,
    MemoryError,
)
_RENDERING = (
    jinja2.TemplateError,
    TemplateError,
    RecursionError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)
