"""Tracing: a program runs once, against streams that only write down what is submitted.

The streams are `PromptStream`s, so all that the language can do works as it does in a run. What
stands below them differs: their cores keep a list instead of carrying anything out, and what would
need more than the list, the text of a stream, say, is not there, which raises CompileError.
Awaiting an op gives a symbol for its value at once. So the program's coroutine never waits, and is
driven by hand, with something in the place of an event loop that refuses everything.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, NoReturn, TypeVar, cast

from asgl.compile.graph import Graph
from asgl.compile.lines import line_of, line_of_error, line_of_program
from asgl.compile.nodes import Call, Node, parts_of
from asgl.compile.symbols import Symbols, Use, arg
from asgl.compile.traced import TracedQueue
from asgl.errors import CompileError, ConfigError
from asgl.language.budget import opened
from asgl.language.internal_ops import CloseMessage, SetVariable
from asgl.language.operation import Operation
from asgl.language.ops import Gen, Role, Select
from asgl.language.stream import PromptStream

T = TypeVar("T")
_PLAIN = (type(None), bool, int, float, complex, bytes, Enum, type)


def trace(
    fn: Callable[..., Coroutine[Any, Any, T]],
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Graph[T]:
    """The graph of the program, open in the arguments that are given as `asgl.arg`: see
    `Function.graph`."""
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"the arguments do not fit {name}{signature}: {error}; one that is to stay open is "
            "given as "
            "asgl.arg"
        ) from None
    symbols = Symbols()
    opened = {parameter for parameter, value in bound.arguments.items() if value is arg}
    for parameter, value in bound.arguments.items():
        if parameter in opened:
            bound.arguments[parameter] = symbols.symbol(Use(parameter))
        elif _holds_arg(value):
            raise ConfigError(
                f"asgl.arg was given inside of {parameter!r}: only a named parameter of {name} can "
                "stay open"
            )
    stream, *rest = signature.parameters.values()
    tracing = Trace(name, symbols, line_of_program(fn))
    bound.arguments[stream.name] = PromptStream(TracedQueue(tracing))
    returned = tracing.run(lambda: fn(*bound.args, **bound.kwargs))
    parameters = [stream, *(one for one in rest if one.name in opened)]
    return Graph(
        name, signature.replace(parameters=parameters), tuple(tracing.nodes), symbols, returned
    )


def _holds_arg(value: Any) -> bool:
    inner = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple)
        else ()
    )
    return any(one is arg for one in cast("list[Any]", inner))


class Trace:
    """What is written down, and the program that is driven for it."""

    def __init__(self, name: str, symbols: Symbols, begins: str) -> None:
        self.name, self.symbols, self._begins = name, symbols, begins
        self.nodes: list[Node] = []
        self.where: dict[Operation, tuple[TracedQueue, int]] = {}
        """For each op the queue that it was submitted to, and its place among all nodes."""
        self.streams = 0
        """How many streams there are."""
        self._budgets = opened()

    def new_stream(self) -> int:
        self.streams += 1
        return self.streams - 1

    def record(self, queue: TracedQueue, op: Operation) -> None:
        """Writes down the op, and what is open in it."""
        spec: Any = op.spec
        if opened() != self._budgets:
            self.symbols.refuse(
                "the program opens a budget, which a graph has no place for: open it around the "
                "run of the graph"
            )
        if isinstance(spec, Role | CloseMessage):
            role = spec.role if isinstance(spec, Role) else spec.message.role
            if self.symbols.uses(role):
                self.symbols.refuse(
                    "the role of a message cannot be open: give the value that goes into it to "
                    ".graph(...)"
                )
        if isinstance(spec, SetVariable) and any(
            isinstance(use.source, Operation) for use in self.symbols.uses(spec.name)
        ):
            self.symbols.refuse(
                "the name of a variable depends on what the model says, which is not known when it "
                "is set"
            )
        if isinstance(spec, SetVariable):
            self._check_plain(
                spec.value, f"the variable {self.symbols.shown(spec.name)!r} is set to", "set it to"
            )
        uses: list[Use] = []
        for part in parts_of(spec):
            found = self.symbols.uses(part)
            if isinstance(part, Gen | Select | Call) and any(
                isinstance(use.source, Operation) for use in found
            ):
                self.symbols.refuse(
                    "a parameter of a gen or select depends on what the model says, which is not "
                    "known when the "
                    "op is submitted: what the model says can go into text only"
                )
            if isinstance(part, Gen | Call):
                self._check_validator(
                    part.validate if isinstance(part, Gen) else part.options.get("validate")
                )
            uses += found
        self.where[op] = queue, len(self.nodes)
        line = line_of(sys._getframe())
        self.nodes.append(Node(queue.number, spec, op, op.message, line, tuple(uses)))

    # --- running the program

    def run(self, program: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the program returns. CompileError if it fails, or cannot be traced."""
        outside = asyncio._get_running_loop()
        asyncio._set_running_loop(cast(Any, _NoLoop(self.symbols)))
        try:
            returned = self._drive(program())
            self._check_plain(returned, "it returns", "return", self._begins)
            self._check_unchanged()
        except Exception as error:
            if self.symbols.error is not None:
                raise self.symbols.error from None
            raise self._raised(error) from error
        finally:
            asyncio._set_running_loop(outside)
        if self.symbols.error is not None:  # the program has caught it
            raise self.symbols.error
        return returned

    def _drive(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns that must not wait."""
        where: str | None = None
        try:
            coroutine.send(None)
            coroutine.throw(_Waits())
        except StopIteration as stop:
            return stop.value
        except _Waits as error:
            where = line_of_error(error)
        finally:
            coroutine.close()
        return self.symbols.refuse(
            "the program waits for something that is no op of its streams, which a graph has no "
            "place "
            "for: do it before the graph runs, or run the program directly",
            where,
        )

    def _raised(self, error: Exception) -> CompileError:
        """For an error of the program's own."""
        said = f"{type(error).__name__}: {error}"
        shown = self.symbols.shown(said)
        hint = (
            " (what stands in braces is not known yet: give its value instead of asgl.arg)"
            if shown != said
            else ""
        )
        return CompileError(
            f"{line_of_error(error) or self._begins}: while it was traced, the program raised "
            f"{shown}{hint}"
        )

    def _check_validator(self, validate: Any) -> None:
        """A function is called as it is, with whatever it has from around it."""
        for cell in getattr(validate, "__closure__", None) or ():
            try:
                held = cell.cell_contents
            except ValueError:  # nothing is there yet
                continue
            if self.symbols.uses(held):
                self.symbols.refuse(
                    "the validator uses an open value of the program around it, and would get a "
                    "marker for it: "
                    "give the value to .graph(...), or run the program directly"
                )

    def _check_unchanged(self) -> None:
        """A list that a variable was set to may have grown, but by nothing open, of which its node
        would not know."""
        for node in self.nodes:
            if isinstance(node.spec, SetVariable) and self.symbols.uses(node.spec) != list(
                node.uses
            ):
                self.symbols.refuse(
                    "open values were put into what the variable "
                    f"{self.symbols.shown(node.spec.name)!r} was set "
                    "to, or taken out of it, after that: set it when it is complete",
                    node.line,
                )

    def _check_plain(self, value: Any, which: str, instead: str, where: str | None = None) -> None:
        """The value must be made of what symbols are found in."""
        if is_dataclass(value) and not isinstance(value, type):
            parts = [getattr(value, field.name) for field in fields(value)]
        elif isinstance(value, dict):
            parts = [part for pair in cast("dict[Any, Any]", value).items() for part in pair]
        elif isinstance(value, list | tuple):
            parts = list(cast("list[Any]", value))
        elif isinstance(value, str):
            parts = []
            self.symbols.pieces(value)
        elif isinstance(value, _PLAIN):
            parts = []
        else:
            kind = type(value).__name__.removeprefix("Traced")
            self.symbols.refuse(
                f"{which} a {kind}, in which open values are not found: {instead} values, or "
                "lists, tuples, "
                "dicts and dataclasses of them",
                where,
            )
        for part in parts:
            self._check_plain(part, which, instead, where)


class _Waits(BaseException):
    """Thrown into a coroutine to learn where it waits. No Exception, so that no program catches
    it."""


class _NoLoop:
    """Stands in the place of the event loop while a program is traced, wherever that is done."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols

    def create_task(self, coroutine: Coroutine[Any, Any, Any], **_: Any) -> NoReturn:
        coroutine.close()
        self._symbols.refuse(
            "the program starts a task, which a graph has no place for: await the ops themselves, "
            "which run "
            "side by side if they are on different branches"
        )

    def __getattr__(self, name: str) -> NoReturn:
        self._symbols.refuse(
            "the program waits, or uses the event loop, which a graph has no place for: do it "
            "around the run of "
            "the graph, or run the program directly"
        )
