"""KeyboardInterrupt at each line of asgl that runs after a first Ctrl-C and sees to the end of
things.

asyncio answers the first Ctrl-C by cancelling the main task, and raises the second one wherever the
program is. Here it is raised inside asgl, from a trace function. (Inside asyncio itself nothing can
be promised: a callback of its loop may be lost.) Prints the lines; raises, or ends with the stacks
of all threads, if a run does not end or leaves its thread.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import asgl
from asgl.trace import Event, StepEvent

SOURCE = Path(asgl.__file__).parent
ENDING = tuple(str(SOURCE / name) for name in ("engine", "runtime.py", "language/function.py"))


@asgl.function
async def program(s: asgl.PromptStream, topic: str) -> None:
    s += f"All about {topic}: "
    await s.gen("first", max_tokens=400)


class Interrupter:
    """Raises SIGINT after the third step, and KeyboardInterrupt when a line runs for the first time
    after that."""

    def __init__(self, line: str | None) -> None:
        self._line = line
        self.seen: dict[str, None] = {}
        """The lines that ran, in order."""

    def event(self, event: Event) -> None:
        if isinstance(event, StepEvent) and event.number == 3:
            signal.raise_signal(signal.SIGINT)
            sys.settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ENDING):
            return None
        if event == "line":
            code = frame.f_code
            file = Path(code.co_filename).relative_to(SOURCE)
            line = f"{file}:{frame.f_lineno} {code.co_name}"
            self.seen[line] = None
            if line == self._line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


async def serve(model: str, interrupter: Interrupter) -> None:
    sampling = asgl.SamplingParams(seed=7, ignore_eos=True)
    async with asgl.Runtime(
        model,
        kernels="reference",
        dtype="float32",
        kv_cache_tokens=2000,
        sampling=sampling,
        tracers=[interrupter],
    ) as rt:
        await program.batch(rt, ["one", "two", "three"])


def lines_run(model: str, interrupt: str | None = None) -> list[str]:
    """Those that ran after the first Ctrl-C, up to the one where the second one came."""
    interrupter = Interrupter(interrupt)
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        asyncio.run(serve(model, interrupter))
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    else:
        raise AssertionError(f"the interrupt at {interrupt} was lost")
    finally:
        sys.settrace(None)
        faulthandler.cancel_dump_traceback_later()
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "asgl-device":
            thread.join(30)
            assert not thread.is_alive(), f"the interrupt at {interrupt} left the device thread"
    return list(interrupter.seen)


if __name__ == "__main__":
    for line in lines_run(sys.argv[1]):
        if lines_run(sys.argv[1], interrupt=line)[-1] == line:
            print(line, flush=True)
