"""All layers of a Llama in one job: what the entries do one by one, without a return to Python
between them.

At batch 1 a layer takes 90 microseconds, and nine calls from Python would take as long.
"""

from __future__ import annotations

from typing import Any

from asgl.kernels.cpu import team
from asgl.kernels.cpu.attention import attention_phases
from asgl.kernels.cpu.elementwise import norm_phase, rope_phase
from asgl.kernels.cpu.linear import ADD, GATE, STORE, linear_phases
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.cpu.simd import get_i64, kernel, load, load_words, store, store_words

ATTENTION_NORM, QKV, QKV_BIAS, OUT, MLP_NORM, GATE_UP, DOWN, KEYS, VALUES = (
    0, 1, 3, 4, 6, 7, 9, 11, 12,
)  # fmt: skip
"""The columns of the table of layers: addresses. A weight (QKV, OUT, GATE_UP, DOWN) has a second
column: the code of its format."""
COLUMNS = 13
LAYER_PHASES = 14
"""Phases of a layer; a last one follows the last layer."""


@kernel
def _linear(
    a: Any, phase: int, number: int, weight: int, x: int, rows: int, k: int, outputs: int,
    mode: int, out: int, scratch: int,
) -> None:  # fmt: skip
    """`linear_phases` with the weight whose columns are at `weight`."""
    address, code = get_i64(weight), get_i64(weight + 8)
    linear_phases(a, phase, number, x, rows, address, code, k, outputs, mode, out, scratch)


@kernel
def _keep_rows(a: Any, phase: int, number: int) -> None:
    """Gathers the rows `a.at` (int64) of the attended tokens [n, width], and of the residual stream
    [n, d]."""
    size = a.heads * a.head_dim * 4
    for i in team.pieces(a.job, phase, number, 1, a.wanted):
        row = get_i64(a.at + i * 8)
        for j in range(0, size, 64):
            words = load_words(a.attended + row * size + j)
            store_words(a.kept_attended + i * size + j, words)
        for j in range(0, a.d, LANES):
            store(a.kept_hidden + (i * a.d + j) * 4, load(a.hidden + (row * a.d + j) * 4))


@kernel
def layers_job(a: Any, thread: int, number: int) -> None:
    """Runs the layers of the table over `a.rows` new tokens; `a` is the record of the entry
    `layers`.

    hidden [rows, d] is the residual stream, changed in place. With `wanted` 0 the last layer only
    stores its keys and values; else its rest runs for the `wanted` tokens `at`, and `out` [wanted,
    d] are their normed states.
    """
    scratch, qkv_width = a.scratch + thread * a.room, (a.heads + 2 * a.kv_heads) * a.head_dim
    job, d, width = a.job, a.d, a.heads * a.head_dim
    rows, hidden, attended = a.rows, a.hidden, a.attended
    for i in range(a.layers):
        at, phase = a.table + i * COLUMNS * 8, i * LAYER_PHASES
        norm = get_i64(at + ATTENTION_NORM * 8)
        norm_phase(job, phase, number, hidden, 0, rows, d, norm, a.eps, a.normed)
        _linear(
            a, phase + 1, number, at + QKV * 8, a.normed, rows, d, qkv_width, STORE, a.qkv, scratch
        )
        keys, values = get_i64(at + KEYS * 8), get_i64(at + VALUES * 8)
        rope_phase(a, phase + 3, number, get_i64(at + QKV_BIAS * 8), keys, values, a.q)
        if i == a.layers - 1 and a.wanted == 0:
            return
        attention_phases(a, phase + 4, number, a.q, keys, values, attended, scratch)
        if i == a.layers - 1:  # from here on tokens no longer see each other
            _keep_rows(a, phase + 6, number)
            rows, hidden, attended = a.wanted, a.kept_hidden, a.kept_attended
        _linear(a, phase + 7, number, at + OUT * 8, attended, rows, width, d, ADD, hidden, scratch)
        norm = get_i64(at + MLP_NORM * 8)
        norm_phase(job, phase + 9, number, hidden, 0, rows, d, norm, a.eps, a.normed)
        _linear(
            a, phase + 10, number, at + GATE_UP * 8, a.normed, rows, d, a.f, GATE, a.gated, scratch
        )
        _linear(a, phase + 12, number, at + DOWN * 8, a.gated, rows, a.f, d, ADD, hidden, scratch)
    norm_phase(job, a.layers * LAYER_PHASES, number, hidden, 0, rows, d, a.norm, a.eps, a.out)
