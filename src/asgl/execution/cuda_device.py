"""A GPU as the runner uses it: one stream, copies through pinned memory, one event a step, graphs.

    host    pack ─┐                                                     ┌─ read
    stream        └─ copy in ── launches or a replay ── copy out ── event┘

All of it is on one stream of its own, so that order needs no other events, and nothing waits for
the whole device: the device thread waits once a step, for the event after the last copy. Two steps
may be in flight, so there are two of what the host packs and reads, its *lanes*, used in turn; what
is on the device there is once, for there steps never overlap. `cuda` is torch.cuda, or what a test
puts in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16
"""Bytes: every tensor in a buffer starts at a multiple, which is what the widest load of a kernel
wants."""


class Buffer:
    """Bytes on the host, pinned, for each lane, and as many on the device; tensors are packed into
    both at the same places."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.hosts = (_pinned(size, device), _pinned(size, device))
        self.device = torch.empty(size, dtype=torch.uint8, device=device)


def _pinned(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


class Landing:
    """Where the results of a lane's step come down, and the event after the last of them."""

    def __init__(self, device: torch.device, event: Any) -> None:
        self.event = event
        self.host = _pinned(1 << 20, device)
        self.used = 0


class CudaDevice:
    """The stream and the staging memory of a Runtime on a GPU. Made and used on its device thread
    only."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device = device
        self.cuda = cuda
        self.stream: Any = cuda.Stream(device)
        self._in = Buffer(1 << 20, device)
        self._landings = (Landing(device, cuda.Event()), Landing(device, cuda.Event()))
        self._lane = 0
        self._pool: Any = None

    @property
    def pinned(self) -> list[Tensor]:
        """Its host memory, for checks."""
        return [*self._in.hosts, *(landing.host for landing in self._landings)]

    def on_stream(self) -> Any:
        """`with device.on_stream():` makes the stream the current one: of torch's operations and of
        Triton's launches."""
        return self.cuda.stream(self.stream)

    def upload(self, tensors: Sequence[Tensor], into: Buffer | None = None) -> list[Tensor]:
        """Copies host tensors to the device in one asynchronous copy; the results are valid on the
        stream, until the next upload into the same buffer, which must not be packed again in the
        same lane before `wait` or `finish`. Without a buffer of the caller's, there is one that
        grows."""
        places, size = [], 0
        for tensor in tensors:
            places.append(size)
            size += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        if into is None:
            if size > self._in.size:
                self._in = Buffer(2 * size, self.device)
            into = self._in
        for place, tensor in zip(places, tensors, strict=True):
            _view(into.hosts[self._lane], place, tensor).copy_(tensor)
        into.device[:size].copy_(into.hosts[self._lane][:size], non_blocking=True)
        return [
            _view(into.device, place, tensor) for place, tensor in zip(places, tensors, strict=True)
        ]

    def download(self, tensor: Tensor) -> Tensor:
        """Starts to copy a device tensor to the host; the result is valid after `wait`, until the
        lane's next step."""
        landing = self._landings[self._lane]
        tensor = tensor.contiguous()
        size = -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        if landing.used + size > len(landing.host):
            # what was handed out keeps its memory until it is read
            landing.host, landing.used = _pinned(2 * (len(landing.host) + size), self.device), 0
        host = _view(landing.host, landing.used, tensor)
        landing.used += size
        host.copy_(tensor, non_blocking=True)
        return host

    def begin_step(self) -> None:
        """What follows is in the other lane, whose step before must have been waited for."""
        self._lane = 1 - self._lane

    def drop_step(self) -> None:
        """The step failed: its lane is the next one's again, once the stream has done what was
        asked of it."""
        try:
            self.finish()
        finally:
            self._lane = 1 - self._lane

    def end_step(self) -> Landing:
        """All of the step is on the stream: what to `wait` for."""
        landing = self._landings[self._lane]
        landing.event.record(self.stream)
        return landing

    def wait(self, landing: Landing) -> None:
        """Waits, on the host, until a step is done: the one wait of a step."""
        landing.event.synchronize()
        landing.used = 0

    def finish(self) -> None:
        """Waits, on the host, until the stream has done all that was asked of it."""
        self.wait(self.end_step())

    def capture(self, launch: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """A graph of what `launch` puts on the stream, and the tensor that each replay writes.
        Everything `launch` uses must have run before: compiling while capturing fails."""
        graph = self.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = self.cuda.graph_pool_handle()
        # the program that asgl is a part of may use the GPU in other threads meanwhile: that is no
        # error of this one
        with self.cuda.graph(
            graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            result = launch()
        return graph, result

    def free_memory(self) -> int:
        """Bytes that the device has left, what torch's allocator holds for nothing included."""
        self.cuda.empty_cache()
        return self.cuda.mem_get_info(self.device)[0]


def _view(buffer: Tensor, place: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return buffer[place : place + size].view(like.dtype).view(like.shape)
