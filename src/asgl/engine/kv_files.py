"""Files of keys and values: the prefix cache, and single prompts, saved by one process and loaded
by another.

A file is in the safetensors format. Its metadata has two strings. "asgl" is a JSON object, the
header: what kind of file it is, for which model, what goes with the tensors, and the CRC-32 of each
tensor. "crc32" is that of the header itself. Both are checked when they are read: damaged keys and
values would not fail, but change what is generated.

    cache     tokens [n] int32, nodes [m, 4] int64, kv [layers, 2, n, kv_heads, head_dim]
              nodes: the radix tree, parents first. Of each: index of the parent (-1: a root),
              index of the namespace, how many of the tokens (those of node 0 come first), and
              when it was last used
    prompt    kv as above, of the first n tokens; or nothing

Keys and values are read and written by the device thread, between two steps. A file appears whole
or not at all.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asgl.engine.device import DeviceThread
from asgl.errors import ConfigError, ModelError
from asgl.execution.runner import Runner
from asgl.plan import INT
from asgl.scheduling.kv_cache import KVCache
from asgl.scheduling.radix_cache import Node

FORMAT = 2
_MOST_HEADER = 256 * 2**20


class _Part(NamedTuple):
    """Tokens of a saved cache that are to be loaded: the last ones of `path`."""

    path: array[int]
    namespace: str | None
    first: int
    """Of their places in the file."""
    size: int


class SavedState:
    """Saves and loads for one engine. Belongs to its event loop. `spare` says how many free slots
    may be filled; `on_change` is called when slots came free or were filled.

    Errors: ConfigError for a file that cannot be written, ModelError for one that cannot be read,
    or is not for this model.
    """

    def __init__(
        self,
        kv_cache: KVCache,
        device: DeviceThread,
        runner: Runner,
        fingerprint: str,
        *,
        spare: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        self._kv_cache, self._device, self._runner = kv_cache, device, runner
        self._fingerprint = fingerprint
        self._spare, self._on_change = spare, on_change

    # --- the whole cache --------------------------------------------------------------------------

    async def save_cache(self, path: Path) -> int:
        """Writes all that is cached; how many tokens that was."""
        nodes = list(self._kv_cache.cache.nodes())
        places = {node: index for index, node in enumerate(nodes)}
        namespaces = list(dict.fromkeys(node.namespace for node in nodes))
        order = {namespace: index for index, namespace in enumerate(namespaces)}
        table = [
            [_place_of(node.parent, places), order[node.namespace], len(node.key), node.last_used]
            for node in nodes
        ]
        tokens, slots = array(INT), array(INT)
        for node in nodes:
            tokens.extend(node.key)
            slots.extend(node.slots)
        # from the look at the tree to the job in the device's queue nothing else runs: no later
        # step can come between
        kv = await self._device.run(self._runner.read_kv, slots)
        tensors = {
            "tokens": torch.tensor(tokens.tolist(), dtype=torch.int32),
            "nodes": torch.tensor(table, dtype=torch.int64).view(-1, 4),
            "kv": kv,
        }
        await anyio.to_thread.run_sync(
            write_file, path, self._header("cache", {"namespaces": namespaces}), tensors
        )
        return len(tokens)

    async def load_cache(self, path: Path) -> int:
        """Adds what a file has to the cache, as far as slots are free, what was used last first;
        how many tokens that was."""
        header = await anyio.to_thread.run_sync(read_header, path)
        self._check(path, header, "cache")
        tensors = await anyio.to_thread.run_sync(
            _read_tensors, path, header, ("tokens", "nodes", "kv")
        )
        kv = await self._checked_kv(path, tensors["kv"], len(tensors["tokens"]))
        parts = self._wanted(_parts_of(path, header, tensors), self._spare())
        slots = self._kv_cache.reserve(sum(part.size for part in parts))
        columns = [column for part in parts for column in range(part.first, part.first + part.size)]
        await self._fill(slots, kv, columns)
        loaded = 0
        for part in parts:
            mine, slots = slots[: part.size], slots[part.size :]
            loaded += self._kv_cache.adopt(part.path, mine, part.namespace)
        self._on_change()
        return loaded

    def _wanted(self, parts: list[_Part], room: int) -> list[_Part]:
        """The parts that are not cached, as many as there is room for; the last of them maybe cut
        short."""
        wanted: list[_Part] = []
        for part in parts:
            cached = self._kv_cache.cache.peek(part.path, part.namespace)
            known = max(0, cached - (len(part.path) - part.size))
            count = min(part.size - known, room)
            if count > 0:
                end = len(part.path) - (part.size - known - count)
                wanted.append(_Part(part.path[:end], part.namespace, part.first + known, count))
                room -= count
            if not room:
                break
        return wanted

    # --- one prompt -------------------------------------------------------------------------------

    async def save_prompt(
        self, path: Path, state: Mapping[str, Any], tokens: array[int] | None, namespace: str | None
    ) -> None:
        """Writes the state of a prompt; with `tokens`, their keys and values too, as far as they
        are cached."""
        tensors: dict[str, Tensor] = {}
        if tokens is not None:
            slots = self._kv_cache.cache.match(tokens, namespace, len(tokens)).slots
            tensors["kv"] = await self._device.run(self._runner.read_kv, slots)
        header = self._header("prompt", {"state": dict(state), "kv": len(tensors)})
        await anyio.to_thread.run_sync(write_file, path, header, tensors)

    def read_prompt(self, path: Path, kv: bool) -> tuple[dict[str, Any], bool]:
        """The state of a saved prompt, and whether there are keys and values, if they are wanted.
        Reads no tensors: quick."""
        header = read_header(path)
        has_kv = kv and bool(header.get("kv"))
        self._check(path, header, "prompt", kv=has_kv)
        state = header.get("state")
        if not isinstance(state, dict):
            raise ModelError(f"{path}: the file of a prompt has no state")
        vocabulary, tokens = self._runner.info.vocabulary, state.get("tokens")
        if not isinstance(tokens, list) or not all(
            isinstance(token, int) and 0 <= token < vocabulary for token in tokens
        ):
            raise ModelError(f"{path}: its tokens are not of a vocabulary of {vocabulary}")
        return state, has_kv

    async def load_prompt(self, path: Path, tokens: array[int], namespace: str | None) -> int:
        """Caches the keys and values of a saved prompt, as far as slots are free; how many tokens
        that was."""
        header = await anyio.to_thread.run_sync(read_header, path)
        tensors = await anyio.to_thread.run_sync(_read_tensors, path, header, ("kv",))
        count = tensors["kv"].shape[2] if tensors["kv"].dim() == 5 else 0
        if count > len(tokens):
            raise ModelError(
                f"{path}: keys and values of {count} tokens, and the prompt has {len(tokens)}"
            )
        kv = await self._checked_kv(path, tensors["kv"], count)
        parts = self._wanted(
            [_Part(tokens[:count], namespace, 0, count)] if count else [], self._spare()
        )
        if not parts:
            return 0
        part = parts[0]
        slots = self._kv_cache.reserve(part.size)
        await self._fill(slots, kv, range(part.first, part.first + part.size))
        loaded = self._kv_cache.adopt(part.path, slots, namespace)
        self._on_change()
        return loaded

    # --- inside -----------------------------------------------------------------------------------

    async def _fill(self, slots: array[int], kv: Tensor, columns: Sequence[int]) -> None:
        """Writes columns of `kv` to reserved slots, which are freed if that fails."""

        def write() -> None:
            self._runner.write_kv(slots, kv[:, :, list(columns)])

        try:
            await self._device.run(write)
        except BaseException:
            self._kv_cache.give_back(slots)
            self._on_change()
            raise

    def _header(self, kind: str, more: Mapping[str, Any]) -> dict[str, Any]:
        info = self._runner.info
        return {
            "format": FORMAT,
            "kind": kind,
            "model": {
                "name": info.name,
                "fingerprint": self._fingerprint,
                "dtype": info.dtype,
                "weights": info.weights,
                "activations": info.activations,
            },
            **more,
        }

    def _check(self, path: Path, header: Mapping[str, Any], kind: str, *, kv: bool = True) -> None:
        """ModelError if the file is of another kind, or for another model; with `kv`, for other
        formats."""
        if header.get("format") != FORMAT or header.get("kind") != kind:
            raise ModelError(
                f"{path}: not a saved {kind} of format {FORMAT}, but {header.get('kind')!r} of "
                f"format {header.get('format')!r}"
            )
        here, there = self._header(kind, {})["model"], header.get("model") or {}
        if there.get("fingerprint") != here["fingerprint"]:
            raise ModelError(
                f"{path}: saved by the model {there.get('name')!r} ({there.get('fingerprint')}), "
                f"and this is {here['name']!r} ({here['fingerprint']}): open the Runtime with the "
                "model it was saved by"
            )
        for name in ("dtype", "weights", "activations") if kv else ():
            if there.get(name) != here[name]:
                raise ModelError(
                    f"{path}: its keys and values were computed with {name}={there.get(name)!r}, "
                    f"and this Runtime has {name}={here[name]!r}: open it with the same"
                )

    async def _checked_kv(self, path: Path, kv: Tensor, count: int) -> Tensor:
        like = await self._device.run(self._runner.read_kv, [])
        if kv.dtype != like.dtype or kv.shape != (*like.shape[:2], count, *like.shape[3:]):
            raise ModelError(
                f"{path}: keys and values are {kv.dtype} {list(kv.shape)}, and not {like.dtype} of "
                f"{count} tokens in the shape {list(like.shape)}"
            )
        return kv


def _place_of(parent: Node | None, places: Mapping[Node, int]) -> int:
    return -1 if parent is None or parent.parent is None else places[parent]


def _parts_of(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[_Part]:
    """The nodes of a saved cache, those used last first, parents always before their children."""
    namespaces, table = header.get("namespaces"), tensors["nodes"].tolist()
    tokens = array(INT, tensors["tokens"].tolist())
    parts: list[_Part] = []
    used: list[int] = []
    first = 0
    try:
        assert isinstance(namespaces, list)
        for index, (parent, namespace, count, last_used) in enumerate(table):
            if (
                not -1 <= parent < index
                or namespace < 0
                or count < 1
                or first + count > len(tokens)
            ):
                raise ValueError(f"node {index} is no node of a tree")
            above = parts[parent].path if parent >= 0 else array(INT)
            parts.append(
                _Part(above + tokens[first : first + count], namespaces[namespace], first, count)
            )
            used.append(min(last_used, used[parent]) if parent >= 0 else last_used)
            first += count
        if first != len(tokens):
            raise ValueError(f"{len(tokens)} tokens, of which its nodes have {first}")
    except (ValueError, TypeError, IndexError, AssertionError) as error:
        raise ModelError(f"{path}: the saved cache is damaged: {error}") from error
    return [
        parts[index] for index in sorted(range(len(parts)), key=lambda index: (-used[index], index))
    ]


def write_file(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file under another name, and renames it once it is on the disk. ConfigError if that
    cannot be done."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    try:
        os.close(handle)
        sums = {tensor: _checksum(values) for tensor, values in tensors.items()}
        save_file(dict(tensors), name, metadata=sealed({**header, "tensors": sums}))
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def sealed(header: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file with this header, as `read_header` takes it."""
    text = json.dumps(header)
    return {"asgl": text, "crc32": _crc32(text)}


def read_header(path: Path) -> dict[str, Any]:
    """The JSON object that a file says of itself. ModelError if it cannot be read, was changed
    since it was written, or is no such file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER, path.stat().st_size):
                raise ValueError("not in the safetensors format")
            metadata = json.loads(file.read(length))["__metadata__"]
        header = json.loads(metadata["asgl"])
        if not isinstance(header, dict):
            raise ValueError("its metadata is no object")
        if header.get("format") == FORMAT and metadata.get("crc32") != _crc32(metadata["asgl"]):
            raise ValueError("its header is not what was written; the file is damaged")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: not a file that asgl saved: {error!r}") from error
    return header


def _read_tensors(path: Path, header: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of these names. ModelError if one is missing, or not what was written."""
    try:
        tensors = load_file(path)
        wanted = {name: tensors[name] for name in names}
        sums = {name: header["tensors"][name] for name in names}
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its tensors cannot be read: {error!r}") from error
    for name, tensor in wanted.items():
        if _checksum(tensor) != sums[name]:
            raise ModelError(
                f"{path}: the checksum of {name!r} is wrong: the file is damaged, save it again"
            )
    return wanted


def _crc32(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _checksum(tensor: Tensor) -> int:
    """The CRC-32 of a tensor's type, shape and bytes."""
    start = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, start)
