"""Text as it comes: of a whole stream, and of one variable of it."""

from __future__ import annotations

import asyncio

from asgl.errors import VariableError
from asgl.language.executor_state import ExecutorState
from asgl.language.operation import Operation


class StreamPieces:
    """Iterates over the text of a stream until nothing is submitted and no program runs on it."""

    def __init__(self, executor: ExecutorState, *, raises: bool = True) -> None:
        """`raises`: whether it raises the failure that nobody has seen; else that is somebody
        else's."""
        self._executor = executor
        self._raises = raises
        self._given = 0

    def __aiter__(self) -> StreamPieces:
        return self

    async def __anext__(self) -> str:
        executor = self._executor
        executor.check_loop()
        waited = False
        while not (piece := self._new()) and executor.goes_on:
            waited = True
            await executor.changed.wait()
            # an op that failed has taken its text back
            length = executor.transcript.text_length + len(executor.live_text)
            self._given = min(self._given, length)
        if not waited:
            await asyncio.sleep(0)
        failure = executor.failure
        if not piece and self._raises and failure is not None and not failure.seen:
            failure.see()
            raise failure.error
        if not piece:
            raise StopAsyncIteration
        self._given += len(piece)
        return piece

    def _new(self) -> str:
        """All text from where the last piece ended, that of the running op included."""
        transcript, live = self._executor.transcript, self._executor.live_text
        if self._given >= transcript.text_length:
            return live[self._given - transcript.text_length :]
        return transcript.text[self._given :] + live


class VariablePieces:
    """Iterates over the text of a variable, also before anything was submitted for it: of the op
    that was submitted last for that name by now, else of the first to come.

    VariableError if no program runs on the stream any more, nothing is submitted, and there is no
    such variable.
    """

    def __init__(self, executor: ExecutorState, name: str) -> None:
        self._executor = executor
        self._name = name
        self._op: Operation | None = None
        self._given = 0

    def __aiter__(self) -> VariablePieces:
        return self

    async def __anext__(self) -> str:
        executor, name = self._executor, self._name
        executor.check_loop()
        await asyncio.sleep(0)
        await submitted(executor, name)
        while True:
            text, whole = self._text()
            if len(text) > self._given:
                piece, self._given = text[self._given :], len(text)
                return piece
            if whole:
                raise StopAsyncIteration
            await executor.changed.wait()

    def _text(self) -> tuple[str, bool]:
        """The text so far, and whether it is all."""
        executor, name = self._executor, self._name
        op = self._op = self._op or executor.submitted(name)
        if op is None:
            value, infos = executor.variable(name), executor.transcript.infos
        else:
            if op.settled:
                op.result()  # raises its error
            value, infos = op.values.get(name), op.infos
        if name in infos:
            return infos[name].text, op is None or op.settled
        if op is None or op.settled:
            return self._written(value), True
        return op.live.text if op.live is not None and op.live_name == name else "", False

    def _written(self, value: object) -> str:
        if isinstance(value, str):
            return value
        raise VariableError(
            f"the variable {self._name!r} was set to what is no text: {value!r}",
            stream=self._executor.stream,
            name=self._name,
        )


async def submitted(executor: ExecutorState, name: str) -> None:
    """Waits until an op was submitted for the variable, or it was set, or nothing more will be
    submitted."""
    while executor.submitted(name) is None and name not in executor.variables and executor.goes_on:
        await executor.changed.wait()
