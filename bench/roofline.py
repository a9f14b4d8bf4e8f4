"""A model of the Triton kernels on GPUs that are not here: bytes, operations, compiled resources,
and the bound that follows.

    python bench/roofline.py            prints the tables
    python bench/roofline.py --write    puts them into docs/kernels-triton.md

Nothing in it is measured. The bound is the larger of bytes / bandwidth and operations / peak of the
public data sheets: no kernel can be faster, and how much slower these are is unknown until `make
gpu` has run. Compiling needs no GPU (tests/kernels/triton_compile).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from tests.kernels.triton_compile.compile_table import measure  # noqa: E402
from tests.kernels.triton_compile.fake_driver import Launch  # noqa: E402
from tests.kernels.triton_compile.machine_code import Resources, opcode, sass  # noqa: E402

from kernel_work import MODELS, Work, work  # noqa: E402

DOCS = ROOT / "docs" / "kernels-triton.md"
BEGIN, END = "<!-- roofline: begin -->", "<!-- roofline: end -->"


@dataclass(frozen=True)
class Device:
    """A data sheet: bytes a second, operations a second on tensor cores in bfloat16 and outside in
    float32, and of one multiprocessor registers, bytes of shared memory and warps."""

    name: str
    arch: str
    bandwidth: float
    tensor: float
    plain: float
    multiprocessors: int
    registers: int
    shared: int
    warps: int


DEVICES = (
    Device("H100 SXM", "sm_90", 3.35e12, 989e12, 67e12, 132, 65536, 233_472, 64),
    Device("A100 SXM 80 GB", "sm_80", 2.039e12, 312e12, 19.5e12, 108, 65536, 167_936, 64),
)
_PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA")
_KINDS = {
    "product": _PRODUCTS,
    "global": ("LDG", "STG", "LDGSTS"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "float": (
        "FADD",
        "FMUL",
        "FFMA",
        "FMNMX",
        "FSEL",
        "FSETP",
        "MUFU",
        "F2F",
        "F2FP",
        "HADD2",
        "HFMA2",
        "FMNMX3",
    ),
}


def bound(device: Device, it: Work) -> tuple[float, str]:
    """Seconds that the work takes at least, and what bounds it."""
    memory = it.moved / device.bandwidth
    arithmetic = it.operations / (device.tensor if it.on_tensor_cores else device.plain)
    return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")


def occupancy(device: Device, launch: Launch, found: Resources) -> tuple[int, str]:
    """Warps of a multiprocessor that can be there at once, and what limits them."""
    warps = launch.metadata.num_warps
    of_a_warp = -(-found.registers * 32 // 256) * 256  # registers are given in units of 256
    limits = {
        "registers": device.registers // (of_a_warp * warps),
        "shared memory": device.shared // (found.shared + 1024),
        "warps": device.warps // warps,
        "programs": 32,
    }
    least = min(limits, key=lambda name: limits[name])
    return limits[least] * warps, least


def hot_loop(instructions: list[str]) -> list[str]:
    """The loop that does the work: of those without a loop inside, the one with most products, then
    most loads."""
    places = {line[:-1]: at for at, line in enumerate(instructions) if line.endswith(":")}
    loops: list[tuple[int, int]] = []
    for at, line in enumerate(instructions):
        if "BRA" in line and "`(" in line:
            start = places.get(line.split("`(")[1].split(")")[0], at)
            if at - start > 2:  # kernels end in a jump to itself
                loops.append((start, at))
    inner = [
        loop
        for loop in loops
        if not any(loop[0] <= s and e <= loop[1] and (s, e) != loop for s, e in loops)
    ]

    def weight(loop: tuple[int, int]) -> tuple[int, int]:
        names = [
            opcode(line).split(".")[0]
            for line in instructions[loop[0] : loop[1]]
            if not line.endswith(":")
        ]
        return sum(name in _PRODUCTS for name in names), sum(
            name in _KINDS["global"] for name in names
        )

    if not inner:
        return []
    start, end = max(inner, key=weight)
    return [line for line in instructions[start : end + 1] if not line.endswith(":")]


def census(loop: list[str]) -> str:
    """How many instructions of each kind."""
    counts: Counter[str] = Counter()
    for line in loop:
        name = opcode(line).split(".")[0]
        counts[next((kind for kind, names in _KINDS.items() if name in names), "other")] += 1
    return (
        ", ".join(f"{counts[kind]} {kind}" for kind in (*_KINDS, "other") if counts[kind])
        or "none: one pass"
    )


def table(device: Device, model: str) -> str:
    """A table in Markdown."""
    compiled = {key[2]: found for key, found in measure(device.arch, model).items()}
    lines = [
        f"#### {model} on {device.name}: a model, unmeasured",
        "",
        "| kernel | at | MB | GFLOP | FLOP/byte | bound, us | by | warps/SM | limited by | hot "
        "loop |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for it in work(MODELS[model]):
        launch, found = compiled[it.case]
        seconds, by = bound(device, it)
        warps, limit = occupancy(device, launch, found)
        lines.append(
            f"| {it.case} | {it.at} | {it.moved / 1e6:.2f} | {it.operations / 1e9:.3f} | "
            f"{it.operations / it.moved:.1f} | "
            f"{seconds * 1e6:.1f} | {by} | {warps} | {limit} | "
            f"{census(hot_loop(sass(launch.file.read_bytes())))} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help=f"put the tables into {DOCS.relative_to(ROOT)}"
    )
    options = parser.parse_args()
    text = "\n\n".join(table(device, model) for device in DEVICES for model in MODELS)
    print(text)
    if options.write:
        before, rest = DOCS.read_text().split(BEGIN)
        DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
