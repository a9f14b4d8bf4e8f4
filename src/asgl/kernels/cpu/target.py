"""What the processor that kernels are compiled for can do: as Numba sees it, NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES included."""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding as llvm
from numba import config


class Target(NamedTuple):
    """`name` and `features` are LLVM's; the rest follows from them."""

    name: str
    features: str
    vector_registers: int
    """How many vectors of 16 floats the register file holds."""
    bf16_dot: bool
    """Whether products of bfloat16 pairs are added to float32 by one instruction (AVX512-BF16)."""
    pair_words: int
    """Words of two int16 that one instruction multiplies and adds (PMADDWD); 0 where there is
    none."""
    dot_words: int
    """Words of four bytes that one instruction multiplies, unsigned by signed, and adds to int32
    (VPDPBUSD: AVX512-VNNI or AVX-VNNI); 0 where there is none."""
    shuffle_words: int
    """Words whose bytes one instruction looks up in a table of 16 (PSHUFB); 0 where there is
    none."""
    half_conversion: bool
    """Whether float16 become float32 by an instruction (F16C)."""


def detect() -> Target:
    """The target of this process's kernels."""
    settings: Any = config
    host = llvm.get_host_cpu_features()
    # Numba's order: what the user set, else the host
    name = settings.CPU_NAME or llvm.get_host_cpu_name()
    if settings.CPU_FEATURES is not None:
        features = settings.CPU_FEATURES
    elif settings.CPU_NAME and llvm.get_host_cpu_name() != settings.CPU_NAME:
        features = ""
    else:
        features = host.flatten()
    present = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    registers = 32 if "avx512f" in present else 8 if "avx" in present else 4
    x86 = llvm.get_process_triple().startswith(("x86_64", "i686"))
    pair_words = 0 if not x86 else 16 if "avx512bw" in present else 8 if "avx2" in present else 4
    dot_words = 16 if {"avx512f", "avx512vnni"} <= present else 8 if "avxvnni" in present else 0
    shuffle_words = pair_words if pair_words != 4 or "ssse3" in present else 0
    return Target(
        name,
        features,
        registers,
        {"avx512f", "avx512bf16"} <= present,
        pair_words,
        dot_words if x86 else 0,
        shuffle_words,
        "f16c" in present,
    )


TARGET = detect()
