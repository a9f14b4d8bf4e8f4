"""What is compiled is kept, and only what is compiled is told."""

from __future__ import annotations

from typing import Any

import pytest
from numba import njit

from asgl.kernels.cpu.cache import cached


def double(x: int) -> int:
    return 2 * x


def test_only_compiling_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGL_HOME", str(tmp_path))
    told: list[str] = []

    def make(name: str) -> Any:
        return cached(
            lambda cache: njit("int64(int64)", cache=cache)(double), lambda: told.append(name)
        )

    assert make("first")(3) == 6
    assert told == ["first"]
    assert make("second")(3) == 6
    assert told == ["first"]
    monkeypatch.setenv("ASGL_HOME", str(tmp_path / "elsewhere"))
    assert make("third")(3) == 6
    assert told == ["first", "third"]
