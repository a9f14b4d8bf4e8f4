"""What a compiled kernel takes of a device, read from its machine code with the disassemblers that
come with Triton."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA", "QGMMA", "IMMA", "DMMA")


@dataclass(frozen=True)
class Resources:
    """registers: of a thread (AMD: vector registers, of either kind). stack: bytes of a thread that
    are spilled to memory. shared: bytes of a program that are compiled in or asked for at launch.
    products: the instruction of matrix products and how often it is in the code, "" where there is
    none. loads, stores: widths in bits of accesses to global memory and how often they are in the
    code, widest first; asynchronous copies to shared memory are loads. instructions: of the whole
    kernel."""

    registers: int
    stack: int
    shared: int
    products: str
    loads: str
    stores: str
    instructions: int


def resources(binary: bytes | str, shared: int) -> Resources:
    """Of a cubin, or of AMD assembly text. `shared`: what the launch asks for."""
    return _amd(binary, shared) if isinstance(binary, str) else _nvidia(binary, shared)


def sass(cubin: bytes) -> list[str]:
    """The instructions of a cubin, in order, each with its predicate and operands; labels end with
    a colon."""
    lines: list[str] = []
    for line in _tool("nvdisasm", ["-c"], cubin).splitlines():
        if (match := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line)) is not None:
            lines.append(match[1].strip())
        elif (match := re.match(r"(\.L_x_\d+):", line)) is not None:
            lines.append(match[1] + ":")
    return lines


def opcode(instruction: str) -> str:
    """LDG.E.128 of '@P0 LDG.E.128 R4, ...'."""
    words = instruction.split()
    return words[1] if words[0].startswith("@") else words[0]


def _tool(name: str, arguments: list[str], cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        return subprocess.run(
            [_BIN / name, *arguments, file.name], capture_output=True, text=True, check=True
        ).stdout
    finally:
        os.unlink(file.name)


def _nvidia(cubin: bytes, shared: int) -> Resources:
    usage = _tool("cuobjdump", ["--dump-resource-usage"], cubin)
    found = dict(re.findall(r"\b(REG|STACK|SHARED):(\d+)", usage))
    codes = [opcode(line) for line in sass(cubin) if not line.endswith(":")]
    return Resources(
        registers=int(found["REG"]),
        stack=int(found["STACK"]),
        shared=max(shared, int(found["SHARED"])),
        products=_census(
            Counter(name for code in codes if (name := code.split(".")[0]) in _PRODUCTS)
        ),
        loads=_widths(
            Counter(_width(code) for code in codes if code.startswith(("LDG", "LDGSTS")))
        ),
        stores=_widths(Counter(_width(code) for code in codes if code.startswith("STG"))),
        instructions=sum(not code.startswith("NOP") for code in codes),
    )


def _width(code: str) -> int:
    for part in code.split("."):
        if part in ("128", "64", "256"):
            return int(part)
        if part in ("U8", "S8"):
            return 8
        if part in ("U16", "S16"):
            return 16
    return 32


def _amd(assembly: str, shared: int) -> Resources:
    def metadata(name: str) -> int:
        return (
            int(match[1])
            if (match := re.search(rf"\.{name}:\s+(\d+)", assembly)) is not None
            else 0
        )

    words = [
        line.split()[0] for line in assembly.splitlines() if line.startswith("\t") and line.strip()
    ]
    codes = [word for word in words if not word.startswith((".", ";"))]
    widths = {
        "byte": 8,
        "ubyte": 8,
        "ushort": 16,
        "short": 16,
        "dword": 32,
        "dwordx2": 64,
        "dwordx3": 96,
        "dwordx4": 128,
    }

    def accesses(kind: str) -> Counter[int]:
        return Counter(
            widths[code.split("_")[2]]
            for code in codes
            if code.startswith((f"global_{kind}_", f"buffer_{kind}_"))
            and code.split("_")[2] in widths
        )

    return Resources(
        registers=metadata("vgpr_count"),
        stack=metadata("private_segment_fixed_size"),
        shared=max(shared, metadata("group_segment_fixed_size")),
        products=_census(Counter("MFMA" for code in codes if code.startswith("v_mfma"))),
        loads=_widths(accesses("load")),
        stores=_widths(accesses("store")),
        instructions=len(codes),
    )


def _census(counts: Counter[str]) -> str:
    return " ".join(f"{name}x{count}" for name, count in sorted(counts.items()))


def _widths(counts: Counter[int]) -> str:
    return " ".join(f"{width}x{counts[width]}" for width in sorted(counts, reverse=True))
