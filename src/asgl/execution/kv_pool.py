"""The memory of keys and values: for each layer an array of slots, one slot per token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels.memory import large_pages
from asgl.models.config import ModelConfig

_SHARE = 4
"""By default a pool takes at most a quarter of the memory,"""
_MOST = 4 * 2**30
"""and on CPUs no more than so many bytes."""
_TOUCHED = 512
"""So many slots of a CPU's pool are written at the start."""


class KVPool:
    """Keys and values of `capacity` tokens.

    On a GPU all memory is taken here. On a CPU the addresses are, and the first slots, which are
    given out first: the rest is taken from the system page by page as it is first used, which costs
    a token some microseconds once, while touching gigabytes here would cost every start seconds.

    `layers` holds a pair (keys, values) for each layer, [capacity + 1, kv_heads, head_dim]: the
    last slot is scratch space, for rows that only pad a batch. ConfigError if the capacity is below
    1 or does not fit the device.
    """

    def __init__(
        self, config: ModelConfig, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"a KV cache needs room for 1 token at least, not {capacity}")
        self.capacity = capacity
        self.bytes = (capacity + 1) * slot_bytes(config, dtype)
        room = available_memory(device)
        if self.bytes > room:
            raise ConfigError(
                f"a KV cache for {capacity} tokens takes {self.bytes / 2**30:.1f} GiB, and "
                f"{device} has "
                f"{room / 2**30:.1f} GiB; choose a capacity of at most "
                f"{room // slot_bytes(config, dtype) - 1} tokens"
            )
        shape = (config.layers, 2, capacity + 1, config.kv_heads, config.head_dim)
        if device.type == "cpu":
            memory = large_pages(self.bytes).view(dtype).view(shape)
            memory[:, :, :_TOUCHED].fill_(0.0)
        else:
            memory = torch.zeros(shape, dtype=dtype, device=device)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in memory]
        self._memory = memory

    def read(self, slots: Sequence[int]) -> Tensor:
        """A copy of the keys and values of these slots, on the CPU: [layers, 2, len(slots),
        kv_heads, head_dim]."""
        return self._memory.index_select(2, self._indices(slots)).cpu()

    def write(self, slots: Sequence[int], values: Tensor) -> None:
        """Sets the keys and values of these slots, in the shape that `read` gives them."""
        self._memory.index_copy_(2, self._indices(slots), values.to(self._memory.device))

    def _indices(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(list(slots), dtype=torch.long, device=self._memory.device)


def slot_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token."""
    return config.layers * 2 * config.kv_heads * config.head_dim * dtype.itemsize


def default_capacity(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    """How many tokens the pool holds unless told: a quarter of the memory, on CPUs 4 GiB at most.

    ConfigError if that is not even one token.
    """
    room = available_memory(device)
    room = room * 3 // _SHARE if device.type == "cuda" else min(room // _SHARE, _MOST)
    capacity = room // slot_bytes(config, dtype) - 1
    if capacity < 1:
        raise ConfigError(
            f"{device} has no memory for a KV cache of {config.layers} layers: {room} bytes"
        )
    return capacity


def available_memory(device: torch.device) -> int:
    """Bytes that this process may use: free memory of a GPU; of the host what the system and
    control groups allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def group_limits(membership: Path, mount: Path) -> list[int]:
    """The memory limits of the control groups of this process and of those above them (versions 1
    and 2)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []  # no Linux
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                limits.extend(_limit(folder / name))
    return limits


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        # the root group has no such file, and a container may not see the groups above its own
        return []
    return [int(text)] if text.isdecimal() else []  # "max" is no limit
