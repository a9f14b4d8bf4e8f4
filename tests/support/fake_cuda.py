"""A torch.cuda that records what it is asked, in order, and runs it on the CPU at once.

Copies and operations of torch are seen by a dispatch mode, launches of Triton kernels by the one
function that makes them. A captured graph is the list of both; a replay runs them again on the very
tensors of the capture, so that whatever a step does not put into these tensors a replay cannot see,
as on a GPU.

What would be wrong on a GPU and right on a CPU raises: waiting for the device within a step, and
packing a pinned buffer while a copy from it may be under way. A result that comes down is there
once the event was waited for; earlier there is rubbish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = (
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.item",
    "aten.masked_select",
    "aten.unique",
    "aten.equal",
    "aten.is_nonzero",
)


class CudaMisuse(AssertionError):
    """What a real device would make slow, or wrong."""


class FakeCuda:
    """`watch`: operations of torch are seen too, for back ends that never wait for the device.

    `log` holds "stream", "copy in", "copy out", "launch NAME", "capture", "replay", "record",
    "wait" and "empty_cache", in order.
    """

    OutOfMemoryError = torch.OutOfMemoryError

    def __init__(self, free: int = 2**30, *, watch: bool = False) -> None:
        self.log: list[str] = []
        self.free, self.watching = free, watch
        self._stream: object | None = None
        self._hosts: set[int] = set()
        self._in_flight: dict[int, int] = {}
        """Pinned buffers that are copied from, each with the number of its last copy."""
        self._copies = 0
        self._coming: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        """Results on their way to the host, each with the number of copies when it was asked
        for."""
        self._recording: list[Callable[[], None]] | None = None
        self._watch = _Watch(self)
        self._busy = False

    # --- what the runner calls ---

    def Stream(self, device: torch.device) -> object:
        return SimpleNamespace(device=device)

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.log.append("stream")
        before, self._stream = self._stream, stream
        if before is not None or not self.watching:
            yield
        else:
            with self._watch:
                yield
        self._stream = before

    def Event(self) -> object:
        return _Event(self)

    def record(self, stream: object) -> int:
        """How many copies the stream will have done when it comes to the event."""
        if stream is not self._stream:
            raise CudaMisuse("the event is recorded on another stream than the work")
        self.log.append("record")
        return self._copies

    def wait(self, copies: int) -> None:
        self.log.append("wait")
        self._in_flight = {
            buffer: number for buffer, number in self._in_flight.items() if number > copies
        }
        before, self._busy = self._busy, True
        with torch.inference_mode():  # a copy of the device knows nothing of torch's modes
            for number, host, value in self._coming:
                if number <= copies:
                    host.copy_(value)
        self._busy = before
        self._coming = [result for result in self._coming if result[0] > copies]

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(operations=[], replay=None)

    def graph_pool_handle(self) -> object:
        return "pool"

    @contextmanager
    def graph(
        self, graph: Any, pool: object, stream: object, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        if stream is not self._stream:
            raise CudaMisuse("captured on another stream than that of the steps")
        if capture_error_mode != "thread_local":
            raise CudaMisuse("a capture that other threads of the program can break")
        self.log.append("capture")
        self._recording = graph.operations
        yield
        self._recording = None
        graph.replay = lambda: self._replay(graph.operations)

    def _replay(self, operations: list[Callable[[], None]]) -> None:
        self.log.append("replay")
        self._busy = True
        for operation in operations:
            operation()
        self._busy = False

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free, 2 * self.free

    def empty_cache(self) -> None:
        self.log.append("empty_cache")

    def synchronize(self, device: object = None) -> None:
        raise CudaMisuse("the whole device is waited for")

    # --- what tests call ---

    def know(self, *buffers: torch.Tensor) -> None:
        """These are pinned."""
        self._hosts |= {buffer.untyped_storage().data_ptr() for buffer in buffers}

    def launched(self, kernel: Any, grid: tuple[int, ...], run: Callable[[], None]) -> None:
        """A launch of a Triton kernel."""
        if self._stream is None:
            raise CudaMisuse("a kernel is launched on the default stream")
        if not self._busy:
            self.log.append(f"launch {kernel.fn.__name__}")
            if self._recording is not None:
                self._recording.append(run)
        before, self._busy = self._busy, True
        run()
        self._busy = before

    def saw(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation of torch."""
        if self._busy:
            return function(*args, **kwargs)
        name = str(function)
        if name.startswith(_WAITS):
            raise CudaMisuse(f"{name} waits for the device in a step")
        if name.startswith("aten.copy_") and self._copy(args, kwargs):
            host, source = args[:2]
            self._coming.append((self._copies, host, source.clone()))
            return host.fill_(torch.nan if host.is_floating_point() else -(2**31))
        result = function(*args, **kwargs)
        if self._recording is not None:
            self._recording.append(lambda: _again(function, args, kwargs, result))
        return result

    def _copy(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Checks and records a copy; whether it is one to the host that the caller must wait
        for."""
        to, source = (tensor.untyped_storage().data_ptr() for tensor in args[:2])
        asynchronous = (len(args) > 2 and args[2]) or kwargs.get("non_blocking", False)
        if to in self._hosts and not asynchronous and to in self._in_flight:
            raise CudaMisuse("a pinned buffer is packed while a copy from it may be under way")
        if source in self._hosts and asynchronous:
            self.log.append("copy in")
            self._copies += 1
            self._in_flight[source] = self._copies
        elif to in self._hosts and asynchronous:
            self.log.append("copy out")
            return True
        elif asynchronous:
            raise CudaMisuse("an asynchronous copy of memory that is not pinned")
        return False


class _Event:
    """An event: a wait for it is one for what was on the stream when it was recorded."""

    def __init__(self, owner: FakeCuda) -> None:
        self._owner = owner
        self._recorded: int | None = None

    def record(self, stream: object) -> None:
        self._recorded = self._owner.record(stream)

    def synchronize(self) -> None:
        if self._recorded is None:
            raise CudaMisuse("an event is waited for that nobody recorded")
        self._owner.wait(self._recorded)
        self._recorded = None


class _Watch(TorchDispatchMode):
    def __init__(self, owner: FakeCuda) -> None:
        super().__init__()
        self._owner = owner

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._owner.saw(function, args, kwargs or {})


def _again(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Runs an operation on the tensors of the capture, and puts what it gives where it went
    then."""
    made = function(*args, **kwargs)
    for old, new in zip(_tensors(result), _tensors(made), strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return (
        [tensor for part in value for tensor in _tensors(part)]
        if isinstance(value, (tuple, list))
        else []
    )
