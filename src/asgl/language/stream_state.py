"""What a prompt stream says and has, to read and to wait for: the part of `PromptStream` that
appends nothing."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from asgl.errors import ConfigError, VariableError
from asgl.language.internal_ops import SetVariable
from asgl.language.op_info import OpInfo
from asgl.language.op_queue import OpQueue
from asgl.language.pieces import StreamPieces
from asgl.types import Message


class StreamState:
    """A stream as one reads it: see `asgl.PromptStream`."""

    __slots__ = ("__weakref__", "_queue")

    def __init__(self, queue: OpQueue) -> None:
        self._queue = queue
        queue.stream = self

    def __getitem__(self, name: str) -> Any:
        """`s["name"]` is the value of a finished variable. VariableError if there is none of that
        name, or it is not finished."""
        return self._queue.variable(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """`s["name"] = value` sets a variable, in its turn: of ops that were submitted for one name
        the last wins."""
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a variable's name must be a string, not {name!r}")
        self._queue.submit(SetVariable(name, value))

    def __contains__(self, name: object) -> bool:
        """Whether `s["name"]` is there by now."""
        try:
            self._queue.variable(name)  # pyright: ignore[reportArgumentType]
        except VariableError:
            return False
        return True

    async def get(self, name: str) -> Any:
        """The variable's value; waits if an op that sets it was submitted. Cancelling this does not
        cancel the op."""
        return await self._queue.get(name)

    def info(self, name: str) -> OpInfo:
        """How a finished variable was generated: its tokens, log-probabilities, finish reason, the
        prompt's and the cached tokens, times. It is kept as long as the variable is.

        VariableError if there is none of that name, or it was set and not generated. A prompt that
        was saved and loaded has none.
        """
        return self._queue.info(name)

    @property
    def text(self) -> str:
        """What the stream says so far, role headers included; what still runs is not in it."""
        return self._queue.text

    @property
    def token_ids(self) -> list[int]:
        """The tokens of `text`. Those of text that no op has sealed yet may change as text is
        appended."""
        return self._queue.token_ids

    @property
    def variables(self) -> Mapping[str, Any]:
        """The finished variables, as they are now."""
        return MappingProxyType(dict(self._queue.variables))

    @property
    def name(self) -> str | None:
        """What `Runtime.prompt(name=...)` called it; forks have the name of their parent."""
        return self._queue.context.options.name

    @property
    def cache_salt(self) -> str | None:
        """The streams that this one shares cached prefixes with are those of the same salt."""
        return self._queue.context.options.cache_salt

    @property
    def error(self) -> BaseException | None:
        """Of a branch of `fork(on_error="keep")`: the failure that nobody awaited, or None."""
        return self._queue.error

    def pieces(self) -> AsyncIterator[str]:
        """All text of the stream from its beginning, as it comes, until nothing that was submitted
        is left, and no program of another task runs on the stream.

        Raises the error of an op that fails, unless a program was there to see it. Text that a
        failed op had shown is taken back from the stream, not from here.
        """
        return StreamPieces(self._queue.executor("pieces"))

    async def sync(self) -> None:
        """Waits for all that is submitted. Raises the failure that nobody has seen yet. Cancelling
        it only stops waiting."""
        await self._queue.sync()

    async def prefetch(self) -> list[int]:
        """Computes the KV of all that is submitted by now; the tokens. It only reads the stream:
        seeds do not depend on it."""
        return list((await self._queue.executor("prefetch").prefetch()).tokens)

    def messages(self) -> list[Message]:
        """The whole messages so far, in the shape of the OpenAI API, calls of tools included. A
        system message that the template adds by itself is not among them."""
        return copy.deepcopy(list(self._queue.messages))
