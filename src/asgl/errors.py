"""Every error that asgl raises. The drawing is the truth: a test compares it with the classes.

    AsglError
      ConfigError(ValueError)     a bad argument, raised at the call, before anything is queued
      ModelError                  a model that cannot be loaded: which file, and what to do
      StreamError                 .stream; what the stream cannot do
        StreamClosedError         used after close, or before an earlier failure was seen (chained)
        OpCancelledError          cancelled by somebody else, or queued behind an op that failed
        VariableError(KeyError)   .name; no such variable, or not finished yet
      RequestError                .request_id
        ContextLengthError        .tokens .limit
        CapacityError             can never fit the KV cache: .needed .capacity
        GrammarError              a constraint that does not compile, or compiles past its limits
        OutputError               .text .finish_reason .partial; a value cut short, or not valid
        BudgetError               .spent .limit
        QueueFullError            .waiting .limit
        NumericalError            the model computed NaN or infinity for the request; others go on
      ToolError                   .tool .arguments; a tool raised or timed out (chained)
      CompileError                a program that cannot be compiled: the line, and what to write
      TraceError                  a trace on disk that cannot be read: which file, which line
      EngineError
        EngineClosedError
        EngineCrashedError        the step raised; every waiter gets it, with the cause
    InternalError(Exception)      our bug, please report; `except AsglError` does not hide it

An error reaches the one who awaits, with its cause; it is never logged and dropped. The failures of
branches arrive as an `ExceptionGroup`. `asyncio.CancelledError` is never wrapped.
"""

from __future__ import annotations

from typing import Any


class AsglError(Exception):
    """The root of all errors that asgl raises on purpose."""


class ConfigError(AsglError, ValueError):
    """A bad argument. Raised at the call, before anything is queued."""


class ModelError(AsglError):
    """A model that cannot be loaded: which file, what was wrong, what to do."""


class StreamError(AsglError):
    """Something that a prompt stream cannot do. `stream` is the stream."""

    def __init__(self, message: str, *, stream: Any = None) -> None:
        super().__init__(message)
        self.stream = stream


class StreamClosedError(StreamError):
    """The stream is closed, or an earlier failure on it was not seen yet (it is the cause of this
    error)."""


class OpCancelledError(StreamError):
    """The op was cancelled by somebody else, or was queued behind one that failed (its cause says
    which)."""


class VariableError(StreamError, KeyError):
    """`name` is no variable of the stream, or is not finished yet."""

    def __init__(self, message: str, *, stream: Any = None, name: str = "") -> None:
        super().__init__(message, stream=stream)
        self.name = name

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class RequestError(AsglError):
    """A request that the engine could not serve. `request_id` is None if it never got one."""

    def __init__(self, message: str, *, request_id: int | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class ContextLengthError(RequestError):
    """The prompt has `tokens` tokens, which leaves no room in the model's context of `limit`."""

    def __init__(
        self, message: str, *, tokens: int, limit: int, request_id: int | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.tokens, self.limit = tokens, limit


class CapacityError(RequestError):
    """The request needs `needed` slots of a KV cache that has `capacity`: it could never run."""

    def __init__(
        self, message: str, *, needed: int, capacity: int, request_id: int | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.needed, self.capacity = needed, capacity


class GrammarError(RequestError):
    """A regex, schema or grammar that does not compile, or that compiles past its limits."""


class OutputError(RequestError):
    """A typed value that was cut short, or that no retry made valid. `text` is what was generated,
    `partial` the JSON value that it has so far; None if it has none, or was not to be JSON."""

    def __init__(
        self,
        message: str,
        *,
        text: str,
        finish_reason: str,
        partial: object = None,
        request_id: int | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.text, self.finish_reason, self.partial = text, finish_reason, partial


class BudgetError(RequestError):
    """A budget or a deadline was passed: `spent` of `limit`, tokens or seconds as the message
    says."""

    def __init__(
        self, message: str, *, spent: float, limit: float, request_id: int | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.spent, self.limit = spent, limit


class QueueFullError(RequestError):
    """`waiting` requests wait already, of at most `limit`."""

    def __init__(
        self, message: str, *, waiting: int, limit: int, request_id: int | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.waiting, self.limit = waiting, limit


class NumericalError(RequestError):
    """The model computed NaN or infinity for the request, so that there is nothing to sample from.
    Other requests go on."""


class ToolError(AsglError):
    """The tool named `tool` raised or timed out when called with `arguments`; the cause is
    chained."""

    def __init__(self, message: str, *, tool: str, arguments: dict[str, Any]) -> None:
        super().__init__(message)
        self.tool, self.arguments = tool, arguments


class CompileError(AsglError):
    """A program that cannot be compiled: the line, and what to write instead."""


class TraceError(AsglError):
    """A trace on disk that cannot be read: which file and line, and what is wrong with it."""


class EngineError(AsglError):
    """The engine cannot go on."""


class EngineClosedError(EngineError):
    """The Runtime was left, or its event loop cancelled the engine."""


class EngineCrashedError(EngineError):
    """A step raised. Every waiter gets this error, with what the step raised as its cause."""


class InternalError(Exception):
    """A bug of asgl's own: please report it. Not an AsglError, so that `except AsglError` does not
    hide it."""
