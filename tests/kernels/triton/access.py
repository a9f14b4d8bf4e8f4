"""Watches what kernels read and write in Triton's interpreter.

The interpreter reads through raw addresses: a read that is slightly out of bounds finds some memory
and passes. Here every access is checked against the tensors of the launch, every write against the
accesses of other programs of the launch (on a GPU programs run in no order), and bytes are counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from triton.runtime.interpreter import (
    GridExecutor,
    InterpreterBuilder,
    TensorHandle,
    interpreter_builder,
)


class AccessError(AssertionError):
    """A kernel touched memory that it must not touch."""


@dataclass
class _Range:
    name: str
    begin: int
    end: int


@dataclass
class Launch:
    """Bytes that all programs of a launch read and wrote, by the name of the kernel's argument,
    each time that they did."""

    kernel: str
    programs: int
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)


class Monitor:
    """While entered, checks all launches; `launches` are those so far."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self._ranges: list[_Range] = []
        self._reads: list[tuple[int, np.ndarray]] = []
        self._writes: list[tuple[int, np.ndarray]] = []

    def __enter__(self) -> Self:
        self._originals = (
            GridExecutor.__call__,
            InterpreterBuilder.create_masked_load,
            InterpreterBuilder.create_masked_store,
        )
        call, load, store = self._originals

        def watched_call(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
            self._begin(executor, args, kwargs)
            call(executor, *args, **kwargs)
            self._end()

        def watched_load(
            builder: Any, pointers: TensorHandle, mask: TensorHandle, *rest: Any
        ) -> TensorHandle:
            self._access(pointers, mask, write=False)
            return load(builder, pointers, mask, *rest)

        def watched_store(
            builder: Any,
            pointers: TensorHandle,
            value: TensorHandle,
            mask: TensorHandle,
            *rest: Any,
        ) -> Any:
            self._access(pointers, mask, write=True)
            return store(builder, pointers, value, mask, *rest)

        GridExecutor.__call__ = watched_call  # type: ignore[method-assign]
        InterpreterBuilder.create_masked_load = watched_load
        InterpreterBuilder.create_masked_store = watched_store
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        call, InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = (
            self._originals
        )
        GridExecutor.__call__ = call  # type: ignore[method-assign]

    def _begin(self, executor: GridExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {**dict(zip(executor.arg_names, args, strict=False)), **kwargs}
        self._ranges = [
            _Range(
                name, tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
            )
            for name, tensor in named.items()
            if isinstance(tensor, torch.Tensor)
        ]
        programs = 1
        for extent in executor.grid:
            programs *= extent
        self.launches.append(Launch(executor.fn.__name__, programs))
        self._reads, self._writes = [], []

    def _access(self, pointers: TensorHandle, mask: TensorHandle, *, write: bool) -> None:
        addresses, wanted = np.broadcast_arrays(pointers.data, mask.data)
        touched = addresses[wanted.astype(bool)].astype(np.int64)
        if not touched.size:
            return
        size = pointers.get_element_ty().primitive_bitwidth // 8
        what, launch = "writes" if write else "reads", self.launches[-1]
        low, high = int(touched.min()), int(touched.max()) + size
        holder = next((r for r in self._ranges if r.begin <= low and high <= r.end), None)
        if holder is None:
            near = min(self._ranges, key=lambda r: min(abs(low - r.begin), abs(high - r.end)))
            raise AccessError(
                f"{launch.kernel} {what} bytes {low - near.begin}:{high - near.begin} of "
                f"{near.name}, which has "
                f"{near.end - near.begin}"
            )
        x, y, z = interpreter_builder.grid_idx
        program = (x * 2**20 + y) * 2**20 + z
        (launch.written if write else launch.read)[holder.name] += touched.size * size
        if write:
            if len(np.unique(touched)) < touched.size:
                raise AccessError(
                    f"{launch.kernel} writes an element of {holder.name} twice in one store"
                )
            self._writes.append((program, touched))
        else:
            self._reads.append((program, np.unique(touched)))

    def _end(self) -> None:
        """Programs run in no order: what one writes no other may write or read."""
        launch = self.launches[-1]
        owner: dict[int, int] = {}
        for program, touched in self._writes:
            for address in touched.tolist():
                if owner.setdefault(address, program) != program:
                    raise AccessError(
                        f"two programs of {launch.kernel} write one element of "
                        f"{self._name(address)}"
                    )
        if not owner:
            return
        written = np.fromiter(owner, np.int64, len(owner))
        for program, touched in self._reads:
            for address in touched[np.isin(touched, written)].tolist():
                if owner[address] != program:
                    raise AccessError(
                        f"a program of {launch.kernel} reads an element of {self._name(address)} "
                        "that another "
                        "writes"
                    )

    def _name(self, address: int) -> str:
        return next(r.name for r in self._ranges if r.begin <= address < r.end)
