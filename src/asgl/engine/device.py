"""The one thread on which a Runtime touches tensors: loading, every step, freeing.

On the CPU this is measured, not taste: once a second thread has run an OpenMP region in the
process, every later region costs ten times as much. On CUDA the thread owns the stream.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from asgl.errors import EngineClosedError

T = TypeVar("T")


class DeviceThread:
    """Runs functions one at a time, in order. A function that has started is not cancelled: its
    caller waits for it.

    The thread ends with `close`, when nobody refers to this object any more (its owner was
    interrupted while it closed), or when it has a result for an event loop that was closed
    meanwhile.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], bool] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(
            target=_work, args=(self._jobs,), name="asgl-device", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None).atexit = False

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of the function, or what it raised. If the caller is cancelled, it hears so
        once the function is done."""
        if self._closed:
            raise EngineClosedError("the Runtime's device thread has ended")
        loop = asyncio.get_running_loop()
        ended: Future[T] = Future()
        woken: asyncio.Future[None] = loop.create_future()

        def job() -> bool:
            try:
                ended.set_result(function(*args))
            except BaseException as error:
                ended.set_exception(error)
            return _post(loop, woken)

        self._jobs.put(job)
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                await asyncio.shield(woken)
                break
            except asyncio.CancelledError as error:
                cancelled = error
                # a KeyboardInterrupt may have hit what was to wake us: to wait for that would be
                # for ever
                if ended.done():
                    break
        if cancelled is not None:
            raise cancelled
        return ended.result()

    async def close(self) -> None:
        """Ends the thread after what was given to it. Idempotent."""
        self._closed = True
        self._jobs.put(None)
        while self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)


def _work(jobs: queue.SimpleQueue[Callable[[], bool] | None]) -> None:
    while (job := jobs.get()) is not None:
        if not job():
            return
        del job  # while the thread waits it holds nothing that the last function held


def _post(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> bool:
    try:
        loop.call_soon_threadsafe(_wake, woken)
    except RuntimeError:  # the loop was closed: nobody waits any more
        return False
    return True


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
