"""Functions over a prompt stream as programs: `asgl.function`.

@asgl.function
async def tips(s, topic, n=3): ...

s = await tips(rt, "health")                    # on a Runtime: a fresh stream, finished
tip = await tips(s, "health")                   # on a stream: inside it, the function's value
run = tips.start(rt, "health")                  # a handle of the run
outcomes = await tips.batch(rt, ["health", "sleep"])
graph = tips.graph(topic=asgl.arg)              # compiled
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from asgl.compile.graph import Graph
from asgl.compile.tracer import trace
from asgl.errors import ConfigError
from asgl.language.budget import Budget
from asgl.language.program import Program, Source
from asgl.language.run import ProgramStream, Run
from asgl.language.stream import PromptStream
from asgl.sampling import SamplingParams

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
SelfT = TypeVar("SelfT", contravariant=True)


class Function(Program[T_co], Generic[P, T_co]):
    """A program: made by `asgl.function`."""

    def __init__(self, fn: Callable[..., Coroutine[Any, Any, T_co]]) -> None:
        written: Any = fn.__func__ if isinstance(fn, classmethod | staticmethod) else fn
        if not inspect.iscoroutinefunction(written):
            raise ConfigError(
                "asgl.function takes an `async def` function whose first parameter is the stream, "
                f"not {fn!r}"
            )
        self.fn: Callable[..., Coroutine[Any, Any, T_co]] = written
        self._descriptor: Any = fn
        self._parameters = inspect.signature(written)
        if not self._parameters.parameters:
            raise ConfigError(
                f"{written.__name__} has no parameters: the first is the stream that it runs on"
            )
        update_wrapper(self, written)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """A program that was written as a method, of an instance: `await agent.answer(rt, ...)`."""
        bound = self._descriptor.__get__(instance, owner)
        return self if bound is self.fn else Function[Any, T_co](bound)

    @overload
    async def __call__(self, where: PromptStream, /, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: P.args, **kwargs: P.kwargs
    ) -> ProgramStream[T_co]: ...
    # with an option or more; PEP 612 has no way to say this of P
    @overload
    async def __call__(
        self, where: Source, /, *args: Any, sampling: SamplingParams | None, **more: Any
    ) -> ProgramStream[T_co]: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: Any, budget: Budget | None, **more: Any
    ) -> ProgramStream[T_co]: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: Any, priority: int, **more: Any
    ) -> ProgramStream[T_co]: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: Any, deadline: float | None, **more: Any
    ) -> ProgramStream[T_co]: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: Any, name: str | None, **more: Any
    ) -> ProgramStream[T_co]: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: Any, cache_salt: str | None, **more: Any
    ) -> ProgramStream[T_co]: ...
    async def __call__(
        self, where: PromptStream | Source, /, *args: Any, **kwargs: Any
    ) -> T_co | ProgramStream[T_co]:
        """Runs the program. On a stream: as a part of it; returns what the function returns. On a
        Runtime: on a fresh stream that carries the program's name, which is returned once all that
        was submitted is done, with the function's value as `returned`. If the program fails or is
        cancelled, what it submitted to that stream is cancelled.

        On a Runtime, `sampling`, `budget`, `priority`, `deadline`, `name` and `cache_salt` are
        those of the fresh stream (see `Runtime.prompt`), but for those that the function has
        parameters of its own for.
        """
        return await self._run_on(where, args, kwargs)

    @overload
    def start(self, rt: Source, /, *args: P.args, **kwargs: P.kwargs) -> Run[T_co]: ...
    @overload
    def start(
        self, rt: Source, /, *args: Any, sampling: SamplingParams | None, **more: Any
    ) -> Run[T_co]: ...
    @overload
    def start(self, rt: Source, /, *args: Any, budget: Budget | None, **more: Any) -> Run[T_co]: ...
    @overload
    def start(self, rt: Source, /, *args: Any, priority: int, **more: Any) -> Run[T_co]: ...
    @overload
    def start(
        self, rt: Source, /, *args: Any, deadline: float | None, **more: Any
    ) -> Run[T_co]: ...
    @overload
    def start(self, rt: Source, /, *args: Any, name: str | None, **more: Any) -> Run[T_co]: ...
    @overload
    def start(
        self, rt: Source, /, *args: Any, cache_salt: str | None, **more: Any
    ) -> Run[T_co]: ...
    def start(self, rt: Source, /, *args: Any, **kwargs: Any) -> Run[T_co]:
        """Starts the program on a fresh stream of the Runtime, as a task, and gives a handle of the
        run at once: to await, to cancel, to read as it comes. The options are those of a call.

        The task sees the context variables, an open `asgl.budget` among them, that are set here.
        Raises ConfigError if the arguments do not fit.
        """
        return self._start(rt, args, kwargs)

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

    async def _body(self, stream: PromptStream, /, *args: Any, **kwargs: Any) -> T_co:
        return await self.fn(stream, *args, **kwargs)


class MethodFunction(Protocol[SelfT, P, T_co]):
    """A program in the body of a class: to be called on instances."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self, instance: SelfT, owner: type | None = None, /) -> Function[P, T_co]: ...


@overload
def function(
    fn: Callable[Concatenate[PromptStream, P], Coroutine[Any, Any, T]], /
) -> Function[P, T]: ...
@overload
def function(
    fn: Callable[Concatenate[SelfT, PromptStream, P], Coroutine[Any, Any, T]], /
) -> MethodFunction[SelfT, P, T]: ...
@overload
def function() -> Decorator: ...
def function(fn: Callable[..., Coroutine[Any, Any, Any]] | None = None, /) -> Any:
    """Makes an `async def` function whose first parameter is a prompt stream a program: see
    `Function`. `@asgl.function()` is the same as `@asgl.function`.

    In a class it may be a method, whose second parameter is the stream.
    """
    return function if fn is None else Function[..., Any](fn)


class Decorator(Protocol):
    """`asgl.function` without its argument."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[PromptStream, P], Coroutine[Any, Any, T]], /
    ) -> Function[P, T]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[SelfT, PromptStream, P], Coroutine[Any, Any, T]], /
    ) -> MethodFunction[SelfT, P, T]: ...
