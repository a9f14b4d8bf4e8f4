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
from asgl.kernels.cpu.llvm import ELEMENT, LANES
from asgl.kernels.cpu.simd import get_i64, kernel, load, load_words, store, store_words

(
    ATTENTION_NORM,
    QKV,
    QKV_BITS,
    QKV_BIAS,
    OUT,
    OUT_BITS,
    MLP_NORM,
    GATE_UP,
    GATE_UP_BITS,
    DOWN,
    DOWN_BITS,
    KEYS,
    VALUES,
) = range(13)
"""The columns of the table of layers: addresses, and bits of a weight."""
COLUMNS = 13
LAYER_PHASES = 14
"""Phases of a layer; a last one follows the last layer."""


@kernel
def _rows_phase(
    job: int,
    phase: int,
    number: int,
    at: int,
    rows: int,
    width: int,
    source: int,
    target: int,
    d: int,
    hidden: int,
    kept: int,
) -> None:
    """Gathers the rows `at` (int64) of the attended tokens [n, width], as elements, and of the
    residual stream [n, d]."""
    while True:
        i = team.claim(job, phase, number, 1, rows)
        if i >= rows:
            break
        row = get_i64(at + i * 8)
        for j in range(0, width * ELEMENT, 64):
            store_words(
                target + i * width * ELEMENT + j, load_words(source + row * width * ELEMENT + j)
            )
        for j in range(0, d, LANES):
            store(kept + (i * d + j) * 4, load(hidden + (row * d + j) * 4))
        team.finish(job, phase, 1)
    team.wait(job, phase, number, rows)


@kernel
def layers_job(a: Any, thread: int, number: int) -> None:
    """Runs the layers of the table over `a.rows` new tokens; `a` is the record of the entry
    `layers`.

    hidden [rows, d] is the residual stream, changed in place. With `wanted` 0 the last layer only
    stores its keys and values; else its rest runs for the `wanted` tokens `at`, and `out` [wanted,
    d] elements are their normed states.
    """
    scratch, qkv_width = a.scratch + thread * a.room, (a.heads + 2 * a.kv_heads) * a.head_dim
    width, rows, hidden, attended = a.heads * a.head_dim, a.rows, a.hidden, a.attended
    packed_only, byte_inputs = a.packed_only != 0, a.byte_inputs != 0
    for i in range(a.layers):
        at, phase = a.table + i * COLUMNS * 8, i * LAYER_PHASES
        norm_phase(
            a.job,
            phase,
            number,
            hidden,
            0,
            rows,
            a.d,
            get_i64(at + ATTENTION_NORM * 8),
            a.eps,
            a.normed,
        )
        linear_phases(
            a.job,
            phase + 1,
            number,
            a.normed,
            a.d * ELEMENT,
            rows,
            get_i64(at + QKV * 8),
            get_i64(at + QKV_BITS * 8),
            a.d,
            qkv_width,
            STORE,
            a.qkv,
            qkv_width * 4,
            a.inputs,
            scratch,
            packed_only,
            byte_inputs,
        )
        keys, values = get_i64(at + KEYS * 8), get_i64(at + VALUES * 8)
        rope_phase(
            a.job,
            phase + 3,
            number,
            a.qkv,
            get_i64(at + QKV_BIAS * 8),
            rows,
            a.heads,
            a.kv_heads,
            a.head_dim,
            a.positions,
            a.slots,
            a.rope,
            keys,
            values,
            a.q,
        )
        if i == a.layers - 1 and a.wanted == 0:
            return
        attention_phases(
            a.job,
            phase + 4,
            number,
            a.units,
            a.unit_count,
            a.tokens,
            a.limits,
            a.merged,
            a.merged_count,
            a.parts,
            a.order,
            a.indices,
            a.q,
            keys,
            values,
            a.heads,
            a.kv_heads,
            a.head_dim,
            a.scale,
            a.partials,
            attended,
            scratch,
            packed_only,
        )
        if i == a.layers - 1:  # from here on tokens no longer see each other
            _rows_phase(
                a.job,
                phase + 6,
                number,
                a.at,
                a.wanted,
                width,
                attended,
                a.kept_attended,
                a.d,
                hidden,
                a.kept_hidden,
            )
            rows, hidden, attended = a.wanted, a.kept_hidden, a.kept_attended
        linear_phases(
            a.job,
            phase + 7,
            number,
            attended,
            width * ELEMENT,
            rows,
            get_i64(at + OUT * 8),
            get_i64(at + OUT_BITS * 8),
            width,
            a.d,
            ADD,
            hidden,
            a.d * 4,
            a.inputs,
            scratch,
            packed_only,
            byte_inputs,
        )
        norm_phase(
            a.job,
            phase + 9,
            number,
            hidden,
            0,
            rows,
            a.d,
            get_i64(at + MLP_NORM * 8),
            a.eps,
            a.normed,
        )
        linear_phases(
            a.job,
            phase + 10,
            number,
            a.normed,
            a.d * ELEMENT,
            rows,
            get_i64(at + GATE_UP * 8),
            get_i64(at + GATE_UP_BITS * 8),
            a.d,
            a.f,
            GATE,
            a.gated,
            a.f * ELEMENT,
            a.inputs,
            scratch,
            packed_only,
            byte_inputs,
        )
        linear_phases(
            a.job,
            phase + 12,
            number,
            a.gated,
            a.f * ELEMENT,
            rows,
            get_i64(at + DOWN * 8),
            get_i64(at + DOWN_BITS * 8),
            a.f,
            a.d,
            ADD,
            hidden,
            a.d * 4,
            a.inputs,
            scratch,
            packed_only,
            byte_inputs,
        )
    norm_phase(a.job, a.layers * LAYER_PHASES, number, hidden, 0, rows, a.d, a.norm, a.eps, a.out)
