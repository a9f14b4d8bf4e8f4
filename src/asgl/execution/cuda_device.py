"""A GPU as the runner uses it: one stream, copies through pinned memory, one event a step, graphs.

    host    pack ─┐                                                     ┌─ read
    stream        └─ copy in ── launches or a replay ── copy out ── event┘

All of it is on one stream of its own, so that order needs no other events, and nothing waits for the whole device: the device
thread waits once a step, for the event after the last copy. `cuda` is torch.cuda, or what a test puts in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16
"""Bytes: every tensor in a buffer starts at a multiple, which is what the widest load of a kernel wants."""


class Buffer:
    """Bytes on the host, pinned, and as many on the device; tensors are packed into both at the same places."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.host = _pinned(size, device)
        self.device = torch.empty(size, dtype=torch.uint8, device=device)


def _pinned(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


class CudaDevice:
    """The stream and the staging memory of a Runtime on a GPU. Made and used on its device thread only."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device = device
        self.cuda = cuda
        self.stream: Any = cuda.Stream(device)
        self._event: Any = cuda.Event()
        self._in = Buffer(1 << 20, device)
        self._out = _pinned(1 << 20, device)
        self._used = 0
        self._pool: Any = None

    def on_stream(self) -> Any:
        """`with device.on_stream():` makes the stream the current one: of torch's operations and of Triton's launches."""
        return self.cuda.stream(self.stream)

    def upload(self, tensors: Sequence[Tensor], into: Buffer | None = None) -> list[Tensor]:
        """Copies host tensors to the device in one asynchronous copy; the results are valid on the stream, until the next upload
        into the same buffer, which must not be packed again before `finish`. Without a buffer of the caller's, there is one that
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
            _view(into.host, place, tensor).copy_(tensor)
        into.device[:size].copy_(into.host[:size], non_blocking=True)
        return [_view(into.device, place, tensor) for place, tensor in zip(places, tensors, strict=True)]

    def download(self, tensor: Tensor) -> Tensor:
        """Starts to copy a device tensor to the host; the result is valid after `finish`, until the step after."""
        tensor = tensor.contiguous()
        size = -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        if self._used + size > len(self._out):
            # what was handed out keeps its memory until it is read
            self._out, self._used = _pinned(2 * (len(self._out) + size), self.device), 0
        host = _view(self._out, self._used, tensor)
        self._used += size
        host.copy_(tensor, non_blocking=True)
        return host

    def finish(self) -> None:
        """Waits, on the host, until the stream has done all that was asked of it: the one wait of a step."""
        self._event.record(self.stream)
        self._event.synchronize()
        self._used = 0

    def capture(self, launch: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """A graph of what `launch` puts on the stream, and the tensor that each replay writes. Everything `launch` uses must have
        run before: compiling while capturing fails."""
        graph = self.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = self.cuda.graph_pool_handle()
        # the program that asgl is a part of may use the GPU in other threads meanwhile: that is no error of this one
        with self.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            result = launch()
        return graph, result

    def free_memory(self) -> int:
        """Bytes that the device has left, what torch's allocator holds for nothing included."""
        self.cuda.empty_cache()
        return self.cuda.mem_get_info(self.device)[0]


def _view(buffer: Tensor, place: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return buffer[place : place + size].view(like.dtype).view(like.shape)
