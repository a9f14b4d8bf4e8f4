from __future__ import annotations

from pathlib import Path

import pytest
import torch
from steps import TINY

from asgl.errors import ConfigError
from asgl.execution import kv_pool
from asgl.execution.kv_pool import KVPool, available_memory, default_capacity, slot_bytes

CPU = torch.device("cpu")


def test_layers_are_separate_and_have_a_scratch_slot() -> None:
    pool = KVPool(TINY, 7, CPU, torch.bfloat16)
    assert len(pool.layers) == TINY.layers
    for number, (keys, values) in enumerate(pool.layers):
        assert keys.shape == values.shape == (8, TINY.kv_heads, TINY.head_dim)
        assert keys.is_contiguous()
        assert values.is_contiguous()
        assert not keys.any()
        keys.fill_(number + 1)
        values.fill_(-number - 1)
    assert [int(keys[0, 0, 0]) for keys, _ in pool.layers] == [1, 2]
    assert [int(values[-1, -1, -1]) for _, values in pool.layers] == [-1, -2]
    assert pool.bytes == 8 * slot_bytes(TINY, torch.bfloat16) == 8 * TINY.kv_bytes_per_token


@pytest.mark.parametrize("capacity", [0, -5])
def test_no_room_for_a_token(capacity: int) -> None:
    with pytest.raises(ConfigError, match=str(capacity)):
        KVPool(TINY, capacity, CPU, torch.float32)


def test_more_than_the_memory_is_refused_before_it_is_taken() -> None:
    with pytest.raises(ConfigError, match="choose a capacity of at most") as caught:
        KVPool(TINY, 10**13, CPU, torch.float32)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert (most + 1) * slot_bytes(TINY, torch.float32) <= available_memory(CPU)


def test_default_capacity_is_a_quarter_of_the_memory_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = slot_bytes(TINY, torch.float32)
    monkeypatch.setattr(kv_pool, "available_memory", lambda device: 4000 * each)
    assert default_capacity(TINY, CPU, torch.float32) == 999
    monkeypatch.setattr(kv_pool, "available_memory", lambda device: 2**50)
    assert default_capacity(TINY, CPU, torch.float32) == 4 * 2**30 // each - 1
    monkeypatch.setattr(kv_pool, "available_memory", lambda device: 4 * each)
    with pytest.raises(ConfigError, match="no memory"):
        default_capacity(TINY, CPU, torch.float32)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_control_groups_version_2(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/outer/inner\n")
    write(tmp_path / "fs/outer/inner/memory.max", "max\n")
    write(tmp_path / "fs/outer/memory.max", "123456\n")
    assert kv_pool.group_limits(tmp_path / "membership", tmp_path / "fs") == [123456]


def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    write(tmp_path / "membership", "5:cpu,cpuacct:/a\n4:memory:/a/b\n0::/x\n")
    write(tmp_path / "fs/memory/a/b/memory.limit_in_bytes", "1000\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "5000\n")
    assert kv_pool.group_limits(tmp_path / "membership", tmp_path / "fs") == [1000, 5000]


def test_no_control_groups(tmp_path: Path) -> None:
    assert kv_pool.group_limits(tmp_path / "nothing", tmp_path) == []
