"""Counts the functions that one `s.gen()` runs, as `python -m bench.walk` on the small model.

Two counts of the calls into asgl's own source: until `s.gen()` has returned its handle, and until
`await` has returned the text, on all threads. Compiled kernels are not Python and do not count.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import asgl

SOURCE = str(Path(asgl.__file__).parent)


class Walk:
    """The functions of asgl that run inside the block."""

    def __init__(self) -> None:
        self.calls = 0
        self.functions: dict[tuple[str, str], int] = {}

    def _hear(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCE):
            self.calls += 1
            key = code.co_filename[len(SOURCE) + 1 :], code.co_qualname
            self.functions[key] = self.functions.get(key, 0) + 1

    def __enter__(self) -> Walk:
        sys.setprofile(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def __str__(self) -> str:
        files = {file for file, _ in self.functions}
        return f"{self.calls} calls of {len(self.functions)} functions in {len(files)} files"


async def main(show: Callable[[str], object] = print) -> None:
    """Walks through a second gen of the same kind, so that what is done once is not counted."""
    walk, whole = Walk(), Walk()
    threading.setprofile(whole._hear)  # the device thread starts with the Runtime
    async with asgl.Runtime("smollm2-135m") as rt:
        for measured in (False, True):
            s = rt.prompt("The capital of France is")
            whole.functions.clear()
            whole.calls = 0
            if measured:
                with walk:
                    handle = s.gen("city", max_tokens=8)
                with whole:
                    await handle
            else:
                await s.gen("city", max_tokens=8)
    threading.setprofile(None)
    for file, function in walk.functions:
        whole.functions[file, function] = whole.functions.get((file, function), 0) + 1
    show(f"until s.gen() returns: {walk}")
    show(
        f"the whole way: {len(whole.functions)} functions in "
        f"{len({file for file, _ in whole.functions})} files"
    )
    if "-v" in sys.argv:
        for file, function in sorted(whole.functions):
            show(f"  {'*' if (file, function) in walk.functions else ' '} {file}: {function}")


if __name__ == "__main__":
    asyncio.run(main())
