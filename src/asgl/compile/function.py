"""Functions over a prompt stream as programs: `asgl.function`.

@asgl.function
async def tips(s, topic, n=3): ...

s = await tips(rt, "health")                    # on a Runtime: a fresh stream, finished
tip = await tips(s, "health")                   # on a stream: inside it, the function's value
outcomes = await tips.batch(rt, ["health", "sleep"])
graph = tips.graph(topic=asgl.arg)              # compiled
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from asgl.compile.graph import Graph
from asgl.compile.tracer import trace
from asgl.errors import ConfigError
from asgl.language.program import Program, ProgramStream, Source
from asgl.language.stream import PromptStream

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Function(Program[T_co], Generic[P, T_co]):
    """A program: made by `asgl.function`."""

    def __init__(
        self, fn: Callable[Concatenate[PromptStream, P], Coroutine[Any, Any, T_co]]
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise ConfigError(
                "asgl.function takes an `async def` function whose first parameter is the stream, "
                f"not {fn!r}"
            )
        self.fn = fn
        self._parameters = inspect.signature(fn)
        if not self._parameters.parameters:
            raise ConfigError(
                f"{fn.__name__} has no parameters: the first is the stream that it runs on"
            )
        update_wrapper(self, fn)

    @overload
    async def __call__(self, where: PromptStream, /, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: P.args, **kwargs: P.kwargs
    ) -> ProgramStream[T_co]: ...
    async def __call__(
        self, where: PromptStream | Source, /, *args: P.args, **kwargs: P.kwargs
    ) -> T_co | ProgramStream[T_co]:
        """Runs the program. On a stream: as a part of it; returns what the function returns. On a
        Runtime: on a fresh stream that carries the program's name, which is returned once all that
        was submitted is done, with the function's value as `returned`. If the program fails or is
        cancelled, what it submitted to that stream is cancelled."""
        return await self._run_on(where, args, kwargs)

    def graph(self, /, *args: P.args, **kwargs: P.kwargs) -> Graph[T_co]:
        """Compiles the program: runs it once without a model, and gives what it submits as a graph,
        whose arguments are those given here as `asgl.arg`. Raises CompileError for what cannot be
        traced, ConfigError if the arguments do not fit."""
        return trace(self.fn, self._name, self._signature, args, kwargs)

    @property
    def _name(self) -> str:
        return getattr(self.fn, "__name__", "program")

    @property
    def _signature(self) -> inspect.Signature:
        return self._parameters

    async def _body(self, stream: PromptStream, /, *args: P.args, **kwargs: P.kwargs) -> T_co:
        return await self.fn(stream, *args, **kwargs)


def function(fn: Callable[Concatenate[PromptStream, P], Coroutine[Any, Any, T]]) -> Function[P, T]:
    """Makes an `async def` function whose first parameter is a prompt stream a program: see
    `Function`."""
    return Function(fn)
