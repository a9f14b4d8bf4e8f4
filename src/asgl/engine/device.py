"""The one thread on which a Runtime touches tensors: loading, every step, freeing.

On the CPU this is measured, not taste: once a second thread has run an OpenMP region in the process, every later region
costs ten times as much. On CUDA the thread owns the stream.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from asgl.errors import EngineClosedError

T = TypeVar("T")


class DeviceThread:
    """Runs functions one at a time, in order. A function that has started is not cancelled: its caller waits for it.

    The thread ends with `close`, or when it has a result for an event loop that was closed meanwhile.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], bool] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="asgl-device", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job():
                return

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of the function, or what it raised. If the caller is cancelled, it hears so once the function is done."""
        if self._closed:
            raise EngineClosedError("the Runtime's device thread has ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> bool:
            try:
                result = function(*args)
            except BaseException as error:
                return _post(loop, _set_exception, future, error)
            return _post(loop, _set_result, future, result)

        self._jobs.put(job)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError as error:
                cancelled = error
            except GeneratorExit:  # the loop was closed: nothing can be waited for any more
                raise
            except BaseException:
                break
        if cancelled is not None:
            if not future.cancelled():
                future.exception()  # seen: the cancellation is what the caller hears
            raise cancelled
        return future.result()

    async def close(self) -> None:
        """Ends the thread after what was given to it. Idempotent."""
        self._closed = True
        self._jobs.put(None)
        while self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> bool:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop was closed: nobody waits any more
        return False
    return True


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
