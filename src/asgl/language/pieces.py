"""The text of a stream as it comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asgl.language.core import Core


class StreamPieces:
    """Iterates over the text of a stream."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._given = 0

    def __aiter__(self) -> StreamPieces:
        return self

    async def __anext__(self) -> str:
        core = self._core
        waited = False
        while not (piece := self._new()) and core.queue:
            waited = True
            with core.held():
                await core.changed.wait()
            self._given = min(self._given, core.state.text_length + len(self._live()))
        if not waited:
            await asyncio.sleep(0)
        if not piece and core.failure is not None and not core.failure.seen:
            core.failure.see()
            raise core.failure.error
        if not piece:
            raise StopAsyncIteration
        self._given += len(piece)
        return piece

    def _live(self) -> str:
        """What the running op has generated so far."""
        live = self._core.queue[0].live if self._core.queue else None
        return live.text if live is not None else ""

    def _new(self) -> str:
        """All text from where the last piece ended, that of the running op included."""
        state = self._core.state
        if self._given >= state.text_length:
            return self._live()[self._given - state.text_length :]
        return state.text[self._given :] + self._live()
