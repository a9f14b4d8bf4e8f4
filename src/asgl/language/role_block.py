"""`with s.role(...)`: a message whose content is what is submitted inside."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from asgl.errors import ConfigError
from asgl.language.item import Block, CloseTurn

if TYPE_CHECKING:
    from asgl.language.stream import PromptStream


class RoleBlock:
    """A `with` block whose content is one message: see `PromptStream.role`."""

    __slots__ = ("_block", "_stream")

    def __init__(self, stream: PromptStream, role: str) -> None:
        self._stream = stream
        self._block = Block(role)

    def __enter__(self) -> PromptStream:
        core = self._stream._core
        if core.block is not None:
            raise ConfigError(
                f"a message of the role {self._block.role!r} cannot begin inside a "
                f"{core.block.role!r} message"
            )
        core.check_accepts(grows=True)
        core.block = self._block
        return self._stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        core = self._stream._core
        core.block = None
        failed = core.closed is not None or (core.failure is not None and not core.failure.seen)
        core.enqueue(CloseTurn(self._block, by_exception=error is not None or failed))
