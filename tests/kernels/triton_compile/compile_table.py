"""The checked-in table of what each kernel compiles to. Run this file to write it anew, after a
change that is meant:

TRITON_INTERPRET= python -m tests.kernels.triton_compile.compile_table
"""

from __future__ import annotations

import csv
from dataclasses import astuple, fields
from pathlib import Path

import torch
import triton
from tests.kernels.triton_compile.compile_cases import SHAPES, cases
from tests.kernels.triton_compile.fake_driver import TARGETS, Launch
from tests.kernels.triton_compile.machine_code import Resources, resources

TABLE = Path(__file__).parent / "resources.csv"
_DESCRIPTION = f"""\
# What Triton's kernels compile to, in bfloat16. Written with Triton {triton.__version__};
# by compile_table.py, and test_compile.py compares.
# shape: the model whose sizes are used (compile_cases.py). grid: programs of the launch.
# warps: of a program.
# registers: of a thread, 255 at most (AMD: vector registers, 512 at most).
# stack: bytes of a thread spilled to memory; 0 is right.
# shared: bytes of shared memory of a program.
# products: instructions of matrix products and how often they are in the code: HMMA tensor cores,
#   by warp; HGMMA by warp group (sm_90); UTCHMMA with memory of their own (sm_100); MFMA AMD's.
# loads, stores: accesses to global memory, width in bits x how often in the code; asynchronous
#   copies are loads.
# instructions: in the whole kernel.
"""
_KEY = ("arch", "shape", "kernel", "grid", "warps")
NAMES = [field.name for field in fields(Resources)]

Key = tuple[str, str, str]


def measure(
    arch: str, shape: str, dtype: torch.dtype = torch.bfloat16
) -> dict[Key, tuple[Launch, Resources]]:
    """Compiles all kernels, by (arch, shape, kernel)."""
    found: dict[Key, tuple[Launch, Resources]] = {}
    for case in cases(arch, SHAPES[shape], dtype):
        found[arch, shape, case.name] = case.launch, taken(case.launch)
    return found


def taken(launch: Launch) -> Resources:
    """What a launch takes of a device."""
    file = launch.file
    return resources(
        file.read_bytes() if file.suffix == ".cubin" else file.read_text(), launch.metadata.shared
    )


def row(key: Key, launch: Launch, found: Resources) -> list[str]:
    """A line of the table."""
    return [
        str(value)
        for value in (
            *key,
            "x".join(map(str, launch.grid)),
            launch.metadata.num_warps,
            *astuple(found),
        )
    ]


def read() -> tuple[str, dict[Key, list[str]]]:
    """The version of Triton that wrote the table, and its lines."""
    lines = TABLE.read_text().splitlines()
    version = lines[0].split("with Triton ")[1].split(";")[0]
    rows = csv.reader(line for line in lines if not line.startswith("#"))
    next(rows)
    return version, {(row[0], row[1], row[2]): row for row in rows}


def main() -> None:
    with TABLE.open("w", newline="") as file:
        file.write(_DESCRIPTION)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_KEY, *NAMES])
        for arch in TARGETS:
            for shape in SHAPES:
                for key, (launch, found) in measure(arch, shape).items():
                    writer.writerow(row(key, launch, found))
                print(arch, shape, flush=True)


if __name__ == "__main__":
    main()
