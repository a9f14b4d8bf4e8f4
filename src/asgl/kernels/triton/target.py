"""What the kernels must know of a device to choose their tiles. Imports no triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from asgl.errors import ConfigError

_SHARED_MEMORY = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_87": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_103": 232_448,
    "sm_120": 101_376,
    "sm_121": 101_376,
    "gfx90a": 65_536,
    "gfx942": 65_536,
    "gfx950": 163_840,
}
"""Bytes of shared memory that one program may have: the opt-in maximum of NVIDIA's architectures,
the LDS of AMD's. Compiling does not check it, launching does."""
_LEAST = 49_152
"""What any architecture that is not listed has."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device, as far as tiles depend on it.

    arch: "sm_90", "gfx942", or "interpreter" for Triton's interpreter on the CPU. multiprocessors:
    streaming multiprocessors, or compute units. shared_memory: bytes for one program.
    """

    arch: str
    multiprocessors: int
    shared_memory: int
    vendor: Literal["nvidia", "amd", "interpreter"]

    @property
    def warp_size(self) -> int:
        """Threads of a warp; of a wavefront on AMD."""
        return 64 if self.vendor == "amd" else 32

    @property
    def wide_products(self) -> bool:
        """Whether tensor cores take tiles of 64 rows at once (wgmma of sm_90, tcgen05 of
        sm_100)."""
        return self.arch in ("sm_90", "sm_100", "sm_103")


INTERPRETER = Target("interpreter", 4, 2**31, "interpreter")


def target_of(arch: str, multiprocessors: int) -> Target:
    """The target of an architecture's name."""
    vendor = "amd" if arch.startswith("gfx") else "nvidia"
    return Target(arch, multiprocessors, _SHARED_MEMORY.get(arch, _LEAST), vendor)


def target_of_device(device: torch.device) -> Target:
    """The target of a GPU that torch sees. ConfigError for GPUs older than sm_80: they have no
    bfloat16 and no asynchronous copies, and nothing here was compiled for them."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return target_of(properties.gcnArchName.split(":")[0], properties.multi_processor_count)
    if properties.major < 8:
        raise ConfigError(
            f"the Triton kernels need compute capability 8.0 or later, and {properties.name} has "
            f"{properties.major}.{properties.minor}; use kernels='reference'"
        )
    return target_of(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)
