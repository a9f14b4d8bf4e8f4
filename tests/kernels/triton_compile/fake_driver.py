"""A driver for Triton that has no device: launches compile for a target, and are recorded instead
of run.

What it shows of a device is what Triton asks of a real one before a launch: the target, the shared
memory, the threads of a program. So a launch that a device would refuse is refused here, by
Triton's own check.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager
from triton.runtime.driver import driver

from asgl.kernels.triton.target import Target, target_of


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: `metadata` is Triton's, `file` what was compiled: a cubin, or AMD
    assembly."""

    name: str
    grid: tuple[int, int, int]
    metadata: Any
    file: Path


# name: (Triton's target, multiprocessors of the device that the name stands for)
TARGETS: dict[str, tuple[GPUTarget, int]] = {
    "sm_80": (GPUTarget("cuda", 80, 32), 108),  # A100
    "sm_86": (GPUTarget("cuda", 86, 32), 84),  # A40
    "sm_89": (GPUTarget("cuda", 89, 32), 142),  # L40S
    "sm_90": (GPUTarget("cuda", 90, 32), 132),  # H100
    "sm_100": (GPUTarget("cuda", 100, 32), 148),  # B200
    "sm_120": (GPUTarget("cuda", 120, 32), 170),  # RTX 5090
    "gfx942": (GPUTarget("hip", "gfx942", 64), 304),  # MI300X
}


def _compiled(metadata: Any) -> Path:
    suffix = "amdgcn" if metadata.target.backend == "hip" else "cubin"
    path = get_cache_manager(metadata.hash).get_file(f"{metadata.name[:150]}.{suffix}")
    assert path is not None, f"{metadata.name} is not in Triton's cache"
    return Path(path)


class _Utils:
    def __init__(self, owner: FakeDriver) -> None:
        self._owner = owner

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._owner.target.shared_memory}

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[object, object, int, int, int]:
        return object(), object(), 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass


class FakeDriver:
    """Stands for one device of `arch`. `launches` grows with every launch. Made by `fake_driver`,
    once for each arch: Triton remembers, for each kernel and device, through which driver to
    launch."""

    def __init__(self, arch: str) -> None:
        self._triton, multiprocessors = TARGETS[arch]
        self.target: Target = target_of(arch, multiprocessors)
        self.launches: list[Launch] = []
        self.utils = _Utils(self)
        self._number = list(TARGETS).index(arch)  # kernels are cached by device

    def activate(self) -> None:
        driver.set_active(self)  # pyright: ignore[reportArgumentType]

    def get_current_target(self) -> GPUTarget:
        return self._triton

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: object, *rest: Any) -> None:
            self.launches.append(Launch(metadata.name, (x, y, z), metadata, _compiled(metadata)))

        return launch


@functools.cache
def fake_driver(arch: str) -> FakeDriver:
    return FakeDriver(arch)
