"""Renders Jinja templates that come with a model, and so from strangers: in a sandbox, with a bound
on work and on memory.

Jinja's own sandbox keeps a template away from Python's objects, but lets it loop for years or build
a string of a terabyte. Here every loop turn, every call, and every value that is built or written
is charged to one budget, so that the bound does not depend on the speed of the machine. The charges
are put into the template's syntax tree, where it cannot reach them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

_FILTERS = (
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "string",
    "sum",
    "title",
    "trim",
    "unique",
    "upper",
)
_LOOKERS = frozenset({"count", "d", "default", "first", "last", "length"})
"""Filters that take constant time. A template may ask for the length of the conversation at each of
its messages."""
_TEXT_METHODS = frozenset(
    {
        "capitalize",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isdigit",
        "islower",
        "isspace",
        "isupper",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "title",
        "upper",
    }
)
"""The others can make a long text of a short one: "".ljust(10**12)."""


class TemplateError(Exception):
    """Why a template cannot be rendered."""


class _Generation(Extension):
    """`{% generation %}`: marks what an assistant wrote, for training. Here it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self.charge,
            extensions=[loopcontrols, _Generation],
        )
        self.left = 0
        filters: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in _FILTERS} | {
            "tojson": _to_json
        }
        self.filters = {name: self._charged(name, filter) for name, filter in filters.items()}
        self.globals: Any = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals["raise_exception"] = _raise

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's safe `str.format` still pads to any width."""
        if super().wrap_str_format(value) is not None:
            raise TemplateError("the text method 'format' is not allowed")
        return None

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
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TemplateError(f"the operator {operator} is not allowed")
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
            if __obj.__name__ == "replace":
                __self._replaces(owner, *args)
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
            values: list[Any] = [arg for arg in args if isinstance(arg, str | list | tuple | dict)]
            self.charge(values)
            if name == "replace":
                self._replaces(*map(str, values))
            if name == "join" and len(values) > 1:
                self._spend(len(values[0]) * len(values[1]))
            result = filter(*args, **kwargs)
            if hasattr(result, "__next__"):
                result = list(result)
            return self.charge(result)

        charged.__dict__.update(getattr(filter, "__dict__", {}))
        return charged

    def _replaces(self, text: str, old: str = "", new: str = "", *_: Any) -> None:
        self._spend((text.count(old) + 1) * len(new))

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


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As Hugging Face templates expect it: characters as they are, not for embedding in HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateError(f"an indent of {indent} is not allowed")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> Never:
    raise TemplateError(f"it says: {message}")


def compile_template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that renders the template with variables. Both raise ModelError, with the reason.

    Rendering changes no state but the sandbox's own budget; do not call it from two threads at
    once.
    """
    if len(source) > MAX_TEMPLATE:
        raise ModelError(
            f"the chat template has {len(source)} characters; more than {MAX_TEMPLATE} are not read"
        )
    sandbox = _Sandbox()
    try:
        template = sandbox.from_string(source)
    except (
        jinja2.TemplateError,
        TemplateError,
        RecursionError,
        SyntaxError,
        ValueError,
        MemoryError,
    ) as error:
        raise ModelError(f"the chat template does not compile: {error}") from error

    def render(variables: Mapping[str, Any]) -> str:
        sandbox.left = 1 << 62
        sandbox.left = MAX_WORK + 16 * sandbox._size(variables, 0)
        try:
            return template.render(variables)
        except (
            jinja2.TemplateError,
            TemplateError,
            RecursionError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise ModelError(f"the chat template cannot be rendered: {error}") from error

    return render
