"""Reads GGUF files (versions 2 and 3, little-endian): metadata at once, tensors when asked for.

A file is not trusted: every count is compared with the bytes that remain before anything is
allocated or looped over, so that a damaged or hostile file ends in a ModelError, after a time that
the file's true size bounds.

    "GGUF" | version u32 | tensors u64 | pairs u64
    pairs:    key string | type u32 | value                              string: length u64 | bytes
    tensors:  name string | dims u32 | dim u64 ... | type u32 | offset u64
    padding to `general.alignment`, then the data; offsets count from here

The format is described in the GGUF specification of the ggml project. `gguf_blocks` has the types
of tensors.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asgl.errors import ModelError
from asgl.kernels.quantized import QuantizedTensor
from asgl.models.gguf_blocks import TYPES, BlockType, DenseType, type_name

if TYPE_CHECKING:
    from torch import Tensor

MAX_ITEMS = 1 << 23
"""Metadata values of a file, elements of arrays included. The largest vocabularies have about 2**20
tokens and merges."""
MAX_NESTING = 4
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in {
        0: "u1",
        1: "i1",
        2: "<u2",
        3: "<i2",
        4: "<u4",
        5: "<i4",
        6: "<f4",
        7: "?",
        10: "<u8",
        11: "<i8",
        12: "<f8",
    }.items()
}
_PAIR_BYTES = 8 + 4 + 1
_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` has the row-major order of numpy and torch, the reverse of the
    file's."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    """From the start of the file."""


class GgufFile:
    """An open GGUF file. `metadata` maps keys to ints, floats, bools, strings and lists of them;
    `tensors` names to infos.

    ModelError if the file cannot be opened, is damaged, or is of a version that is not known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 24:
                    raise ModelError(
                        f"{self.path}: {size} bytes are too few for a GGUF file; fetch it again"
                    )
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path}: cannot be opened: {error}") from error
        try:
            header = _Header(self.path, self._data)
            self.metadata = header.metadata
            self.tensors = header.tensors
        except BaseException:
            self._data.close()
            raise

    def close(self) -> None:
        """Unmaps the file. Tensors given out stay valid: they are copies."""
        self._data.close()

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """A copy of the tensor: dense in the dtype of the file, or quantized. ModelError if it is
        of another type, or has scales that are no numbers."""
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.path}: there is no tensor {name!r}")
        block = self.block_type(name)
        if self._data.closed:
            raise ModelError(
                f"{self.path}: tensor {name!r} was asked for after the file was closed"
            )
        tensor = block.read(self._raw(info, block), info.shape)
        if isinstance(tensor, QuantizedTensor) and not tensor.is_finite():
            raise ModelError(
                f"{self.path}: tensor {name!r} at offset {info.offset} has scales that are NaN or "
                "infinite; the file is damaged, fetch it again"
            )
        return tensor

    def block_type(self, name: str) -> DenseType | BlockType:
        """The type of that tensor of the file. ModelError if tensors of it cannot be read."""
        info = self.tensors[name]
        block = TYPES.get(info.type)
        if block is None:
            known = ", ".join(kind.name for kind in TYPES.values())
            raise ModelError(
                f"{self.path}: tensor {name!r} at offset {info.offset} has type "
                f"{type_name(info.type)}, which cannot be read; take a file of other types, or "
                f"convert it to one of {known}"
            )
        return block

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes as they lie in the file, no copy; none of a type that cannot be read.

        The file cannot be closed before the view is released.
        """
        info = self.tensors[name]
        return self._raw(info, TYPES.get(info.type))

    def _raw(self, info: TensorInfo, block: DenseType | BlockType | None) -> memoryview:
        size = math.prod(info.shape) // block.elements * block.bytes if block is not None else 0
        return memoryview(self._data)[info.offset : info.offset + size]


class _Header:
    """Parses everything before the data. Attributes: `metadata`, `tensors`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._end = path, data, len(data)
        self._items = 0
        self._at = 0
        if self._take(4) != b"GGUF":
            raise self._error("the file does not begin with 'GGUF', so it is no GGUF file", 0)
        version = self._u32()
        if version not in (2, 3):
            raise self._error(f"version {version} cannot be read, only 2 and 3 (little-endian)", 4)
        tensors, pairs = self._u64(), self._u64()
        self._fits(tensors, _TENSOR_BYTES, "tensors")
        self._fits(pairs, _PAIR_BYTES, "metadata pairs")
        self.metadata = self._read_metadata(pairs)
        self.tensors = self._read_tensors(tensors)

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            at = self._at
            key = self._string("a metadata key")
            if key in metadata:
                raise self._error(f"metadata key {key!r} occurs twice", at)
            metadata[key] = self._value(self._u32(), key, 0)
        return metadata

    def _read_tensors(self, count: int) -> dict[str, TensorInfo]:
        found: list[tuple[str, tuple[int, ...], int, int, int]] = []
        for _ in range(count):
            self._count(1)
            at = self._at
            name = self._string("a tensor's name")
            dims = self._u32()
            if not 1 <= dims <= MAX_DIMS:
                raise self._error(f"tensor {name!r} has {dims} dimensions, not 1 to {MAX_DIMS}", at)
            shape = struct.unpack(f"<{dims}Q", self._take(8 * dims))[::-1]
            found.append((name, shape, self._u32(), self._u64(), at))
        alignment = self.metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or not 8 <= alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._error(
                f"general.alignment is {alignment!r}, not a power of two from 8 to {MAX_ALIGNMENT}"
            )
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset, at in found:
            if name in tensors:
                raise self._error(f"tensor {name!r} occurs twice", at)
            if offset % alignment:
                raise self._error(
                    f"tensor {name!r} has offset {offset}, not a multiple of {alignment}", at
                )
            self._check_extent(name, shape, kind, start + offset, at)
            tensors[name] = TensorInfo(name, shape, kind, start + offset)
        return tensors

    def _check_extent(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, at: int
    ) -> None:
        elements = math.prod(shape)  # Python's integers do not overflow
        if not elements:
            raise self._error(f"tensor {name!r} of shape {list(shape)} is empty", at)
        block = TYPES.get(kind)
        if block is not None and shape[-1] % block.elements:
            raise self._error(
                f"tensor {name!r} has rows of {shape[-1]} elements, not a multiple of the "
                f"{block.elements} of a {block.name} block",
                at,
            )
        size = elements // block.elements * block.bytes if block is not None else 0
        if offset + size > self._end:
            raise self._error(
                f"tensor {name!r} of shape {list(shape)} would end at byte {offset + size} of a "
                f"file of {self._end}; the file is cut short or damaged, fetch it again",
                at,
            )

    def _value(self, kind: int, key: str, depth: int) -> Any:
        self._count(1)
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self._error(f"metadata {key!r} has the unknown type {kind}")
        return np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth > MAX_NESTING:
            raise self._error(f"metadata {key!r} is an array nested more than {MAX_NESTING} deep")
        kind, count = self._u32(), self._u64()
        if kind == _STRING:
            self._fits(count, 8, f"strings in {key!r}")
            self._count(count)
            return self._strings(count, key)
        if kind == _ARRAY:
            self._fits(count, 12, f"arrays in {key!r}")
            return [self._value(kind, key, depth) for _ in range(count)]
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self._error(f"metadata {key!r} is an array of the unknown type {kind}")
        self._fits(count, dtype.itemsize, f"numbers in {key!r}")
        self._count(count)
        return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()

    def _strings(self, count: int, key: str) -> list[str]:
        """`_string`, a hundred thousand times: the loop that opening a file spends its time in."""
        data, at, end = self._data, self._at, self._end
        length_at = struct.Struct("<Q").unpack_from
        strings: list[str] = []
        for _ in range(count):
            if at + 8 > end:
                raise self._error(
                    f"{key!r}: the file ends after {len(strings)} of {count} strings", at
                )
            (length,) = length_at(data, at)
            at += 8
            if length > end - at:
                raise self._error(
                    f"{key!r}: a string of {length} bytes, with {end - at} left in the file", at - 8
                )
            try:
                strings.append(str(data[at : at + length], "utf-8"))
            except UnicodeDecodeError as error:
                raise self._error(f"{key!r}: a string is not valid UTF-8: {error}", at) from error
            at += length
        self._at = at
        return strings

    def _string(self, what: str) -> str:
        return self._strings(1, what)[0]

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _take(self, count: int) -> bytes:
        if count > self._end - self._at:
            raise self._error(
                f"{count} bytes are needed, {self._end - self._at} are left: the file is cut short "
                "or damaged, fetch it again"
            )
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def _fits(self, count: int, each: int, what: str) -> None:
        if count > (self._end - self._at) // each:
            raise self._error(
                f"the file claims {count} {what}, more than its {self._end - self._at} remaining "
                "bytes can hold"
            )

    def _count(self, items: int) -> None:
        self._items += items
        if self._items > MAX_ITEMS:
            raise self._error(f"more than {MAX_ITEMS} metadata values: the file is damaged")

    def _error(self, message: str, at: int | None = None) -> ModelError:
        return ModelError(f"{self._path}: at byte {self._at if at is None else at}: {message}")
