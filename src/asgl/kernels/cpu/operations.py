"""What a job on the team does: operations, one after the other, as rows of a table.

A forward pass is written down once, when a model is loaded (see recorder.py), and then run without
a return to Python between its operations: at batch 1 a layer takes 90 microseconds, and nine calls
from Python would take as long. Each operation is a phase or two, so between two of them all threads
have met (see team.py).

A row is int64 numbers: what it does, its first phase, then what it does that with. Memory that each
step has elsewhere is named by a register: a place in an array of addresses. Register 0 holds 0.
"""

from __future__ import annotations

from typing import Any

from asgl.kernels.cpu import team
from asgl.kernels.cpu.attention import PLAN, attention_phases
from asgl.kernels.cpu.elementwise import add_normed_phase, gate_phase, norm_phase, rotate_phase
from asgl.kernels.cpu.experts import (
    add_share_phase,
    combine_phase,
    expert_phase,
    gather_phase,
    route_phases,
)
from asgl.kernels.cpu.linear import describe_phase, linear_phase
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.cpu.simd import get_f32, get_i64, kernel, load, store
from asgl.kernels.cpu.tiles import OUTPUTS

FIELDS = {
    "norm": "wanted x out delta weight d eps:float",
    "describe": "wanted x out k kind size times",
    "linear": "wanted x out multiply weight tile_bytes groups outputs mode activation bias joined "
    "waits ldx ldo column factor:float",
    "add_normed": "wanted x out weight d eps:float",
    "rotate": "wanted x out keys values heads kv_heads head_dim rope half q_norm k_norm normed "
    "q_scale eps:float",
    "attention": "wanted x out keys values heads kv_heads head_dim window plan sinks partials last "
    "scale:float softcap:float",
    "keep": "wanted x out width",
    "gate": "wanted x out width activation",
    "route": "wanted x out experts used over_used renormalized",
    "gather": "wanted x out routed used d",
    "experts": "wanted x out routed weights tile_bytes groups outputs mode activation used ldx",
    "combine": "wanted x out routed used d",
    "add_share": "wanted x out share d",
}
"""What there is to do, and with what: int64 numbers, but for those marked `:float`. `wanted` is 0
for all new tokens, 1 for those that are wanted; `x`, `out` and what comes of others are
registers."""
KINDS = {name: kind for kind, name in enumerate(FIELDS)}
COLUMNS = {
    name: [field.partition(":")[0] for field in fields.split()] for name, fields in FIELDS.items()
}
FIRST = 2
"""The column of an operation's first field."""
WIDTH = FIRST + max(map(len, COLUMNS.values()))
"""Columns of a row."""
PHASES = {"attention": 2, "route": 2}
"""Of those operations that have more than one."""


def column(name: str, field: str) -> int:
    """Which column of such an operation's row a field is."""
    return FIRST + COLUMNS[name].index(field)


def _places(name: str) -> tuple[int, ...]:
    """Where the fields of such an operation are after the first three, in bytes of its row."""
    return tuple(8 * (FIRST + i) for i in range(3, len(COLUMNS[name])))


_WANTED, _X, _OUT = 8 * FIRST, 8 * FIRST + 8, 8 * FIRST + 16
(
    _NORM, _DESCRIBE, _LINEAR, _ADD_NORMED, _ROTATE, _ATTENTION, _KEEP, _GATE, _ROUTE, _GATHER,
    _EXPERTS, _COMBINE, _ADD_SHARE,
) = range(len(KINDS))  # fmt: skip
_NORM_DELTA, _NORM_WEIGHT, _NORM_D, _NORM_EPS = _places("norm")
_DESCRIBE_K, _DESCRIBE_KIND, _DESCRIBE_SIZE, _DESCRIBE_TIMES = _places("describe")
(
    _LINEAR_MULTIPLY, _LINEAR_WEIGHT, _LINEAR_TILE_BYTES, _LINEAR_GROUPS, _LINEAR_OUTPUTS,
    _LINEAR_MODE, _LINEAR_ACTIVATION, _LINEAR_BIAS, _LINEAR_JOINED, _LINEAR_WAITS, _LINEAR_LDX,
    _LINEAR_LDO, _LINEAR_COLUMN, _LINEAR_FACTOR,
) = _places("linear")  # fmt: skip
_ADD_NORMED_WEIGHT, _ADD_NORMED_D, _ADD_NORMED_EPS = _places("add_normed")
(
    _ROTATE_KEYS, _ROTATE_VALUES, _ROTATE_HEADS, _ROTATE_KV_HEADS, _ROTATE_HEAD_DIM, _ROTATE_ROPE,
    _ROTATE_HALF, _ROTATE_Q_NORM, _ROTATE_K_NORM, _ROTATE_NORMED, _ROTATE_Q_SCALE, _ROTATE_EPS,
) = _places("rotate")  # fmt: skip
(
    _ATTENTION_KEYS, _ATTENTION_VALUES, _ATTENTION_HEADS, _ATTENTION_KV_HEADS, _ATTENTION_HEAD_DIM,
    _ATTENTION_WINDOW, _ATTENTION_PLAN, _ATTENTION_SINKS, _ATTENTION_PARTIALS, _ATTENTION_LAST,
    _ATTENTION_SCALE, _ATTENTION_SOFTCAP,
) = _places("attention")  # fmt: skip
(_KEEP_WIDTH,) = _places("keep")
_GATE_WIDTH, _GATE_ACTIVATION = _places("gate")
_ROUTE_EXPERTS, _ROUTE_USED, _ROUTE_OVER_USED, _ROUTE_RENORMALIZED = _places("route")
_GATHER_ROUTED, _GATHER_USED, _GATHER_D = _places("gather")
(
    _EXPERTS_ROUTED, _EXPERTS_WEIGHTS, _EXPERTS_TILE_BYTES, _EXPERTS_GROUPS, _EXPERTS_OUTPUTS,
    _EXPERTS_MODE, _EXPERTS_ACTIVATION, _EXPERTS_USED, _EXPERTS_LDX,
) = _places("experts")  # fmt: skip
_COMBINE_ROUTED, _COMBINE_USED, _COMBINE_D = _places("combine")
_ADD_SHARE_SHARE, _ADD_SHARE_D = _places("add_share")


@kernel
def _held(registers: int, place: int) -> int:
    """What the register holds whose number is at a place."""
    return get_i64(registers + get_i64(place) * 8)


@kernel
def _linear(
    a: Any, op: int, phase: int, number: int, rows: int, x: int, out: int, scratch: int
) -> None:
    linear_phase(
        a.job, phase, number, rows, x, get_i64(op + _LINEAR_LDX), get_i64(op + _LINEAR_MULTIPLY),
        get_i64(op + _LINEAR_WEIGHT), get_i64(op + _LINEAR_TILE_BYTES),
        get_i64(op + _LINEAR_GROUPS), get_i64(op + _LINEAR_OUTPUTS), get_i64(op + _LINEAR_MODE),
        get_i64(op + _LINEAR_ACTIVATION), get_f32(op + _LINEAR_FACTOR), get_i64(op + _LINEAR_BIAS),
        out + get_i64(op + _LINEAR_COLUMN) * 4, get_i64(op + _LINEAR_LDO),
        get_i64(op + _LINEAR_WAITS) != 0, scratch,
    )  # fmt: skip
    # parts of one matrix are claimed one after the other, and waited for together
    for back in range(1, get_i64(op + _LINEAR_JOINED) + 1):
        outputs = get_i64(op - back * WIDTH * 8 + _LINEAR_OUTPUTS)
        team.wait(a.job, phase - back, number, (outputs + OUTPUTS - 1) // OUTPUTS)


@kernel
def _rotate(a: Any, op: int, phase: int, number: int, rows: int, x: int, out: int) -> None:
    rotate_phase(
        a.job, phase, number, rows, x, out, get_i64(op + _ROTATE_KEYS),
        get_i64(op + _ROTATE_VALUES), a.positions, a.slots, get_i64(op + _ROTATE_HEADS),
        get_i64(op + _ROTATE_KV_HEADS), get_i64(op + _ROTATE_HEAD_DIM), get_i64(op + _ROTATE_ROPE),
        get_i64(op + _ROTATE_HALF), get_i64(op + _ROTATE_Q_NORM), get_i64(op + _ROTATE_K_NORM),
        get_i64(op + _ROTATE_NORMED), get_f32(op + _ROTATE_EPS), get_i64(op + _ROTATE_Q_SCALE),
    )  # fmt: skip


@kernel
def _attention(
    a: Any, op: int, phase: int, number: int, plans: int, partials: int, x: int, out: int,
    scratch: int,
) -> None:  # fmt: skip
    attention_phases(
        a.job, phase, number, plans + get_i64(op + _ATTENTION_PLAN) * 8 * len(PLAN), x,
        get_i64(op + _ATTENTION_KEYS), get_i64(op + _ATTENTION_VALUES),
        get_i64(op + _ATTENTION_HEADS), get_i64(op + _ATTENTION_KV_HEADS),
        get_i64(op + _ATTENTION_HEAD_DIM), get_f32(op + _ATTENTION_SCALE),
        get_f32(op + _ATTENTION_SOFTCAP), get_i64(op + _ATTENTION_WINDOW),
        get_i64(op + _ATTENTION_SINKS), partials, out,
        scratch, a.packed_only != 0,
    )  # fmt: skip


@kernel
def _keep_phase(
    job: int, phase: int, number: int, rows: int, at: int, x: int, width: int, out: int
) -> None:
    """Gathers the rows `at` (int64 [rows]) of x [n, width] float32 to out."""
    for i in team.pieces(job, phase, number, 1, rows):
        source, target = x + get_i64(at + i * 8) * width * 4, out + i * width * 4
        for j in range(0, width, LANES):
            store(target + j * 4, load(source + j * 4))


@kernel
def _experts(
    a: Any, op: int, phase: int, number: int, rows: int, routed: int, x: int, out: int,
    scratch: int,
) -> None:  # fmt: skip
    expert_phase(
        a.job, phase, number, rows, x, get_i64(op + _EXPERTS_LDX),
        routed, get_i64(op + _EXPERTS_WEIGHTS),
        get_i64(op + _EXPERTS_TILE_BYTES), get_i64(op + _EXPERTS_GROUPS),
        get_i64(op + _EXPERTS_OUTPUTS), get_i64(op + _EXPERTS_MODE),
        get_i64(op + _EXPERTS_ACTIVATION), get_i64(op + _EXPERTS_USED), out, scratch,
    )  # fmt: skip


@kernel
def run_operations(a: Any, thread: int, number: int) -> None:
    """Runs the rows of a table; `a` is the record of the entry `operations`.

    `a.program` is where int64 lie: how many rows there are, and the addresses of the table, of the
    registers and of the plans of attention. They are read once, together: a helper that is late may
    find another job's program here, and has nothing to do in it, but must not read of both.
    `a.rows` is how many new tokens there are, `a.at` (int64 [a.wanted]) which of them are wanted:
    if none is, the job ends where the last layer has stored its keys and values.
    """
    scratch, job, program = a.scratch + thread * a.room, a.job, a.program
    table, registers, plans = get_i64(program + 8), get_i64(program + 16), get_i64(program + 24)
    for i in range(get_i64(program)):
        op = table + i * WIDTH * 8
        kind, phase = get_i64(op), get_i64(op + 8)
        rows = a.wanted if get_i64(op + _WANTED) else a.rows
        x, out = _held(registers, op + _X), _held(registers, op + _OUT)
        if kind == _LINEAR:
            _linear(a, op, phase, number, rows, x, out, scratch)
        elif kind == _DESCRIBE:
            describe_phase(
                job, phase, number, rows * get_i64(op + _DESCRIBE_TIMES), x,
                get_i64(op + _DESCRIBE_K), get_i64(op + _DESCRIBE_KIND), out,
                get_i64(op + _DESCRIBE_SIZE),
            )  # fmt: skip
        elif kind == _NORM:
            delta = _held(registers, op + _NORM_DELTA)
            d, weight, eps = (
                get_i64(op + _NORM_D), get_i64(op + _NORM_WEIGHT), get_f32(op + _NORM_EPS),
            )  # fmt: skip
            norm_phase(job, phase, number, x, delta, rows, d, weight, eps, out)
        elif kind == _ROTATE:
            _rotate(a, op, phase, number, rows, x, out)
        elif kind == _ATTENTION:
            if get_i64(op + _ATTENTION_LAST) != 0 and a.wanted == 0:
                return
            partials = _held(registers, op + _ATTENTION_PARTIALS)
            _attention(a, op, phase, number, plans, partials, x, out, scratch)
        elif kind == _KEEP:
            _keep_phase(job, phase, number, rows, a.at, x, get_i64(op + _KEEP_WIDTH), out)
        elif kind == _ADD_NORMED:
            d, weight = get_i64(op + _ADD_NORMED_D), get_i64(op + _ADD_NORMED_WEIGHT)
            eps = get_f32(op + _ADD_NORMED_EPS)
            add_normed_phase(job, phase, number, out, x, rows, d, weight, eps)
        elif kind == _GATE:
            width, activation = get_i64(op + _GATE_WIDTH), get_i64(op + _GATE_ACTIVATION)
            gate_phase(job, phase, number, rows, width, x, out, activation)
        elif kind == _ROUTE:
            route_phases(
                job, phase, number, rows, x, get_i64(op + _ROUTE_EXPERTS),
                get_i64(op + _ROUTE_USED), get_i64(op + _ROUTE_OVER_USED) != 0,
                get_i64(op + _ROUTE_RENORMALIZED) != 0, out,
            )  # fmt: skip
        elif kind == _GATHER:
            routed = _held(registers, op + _GATHER_ROUTED)
            used, d = get_i64(op + _GATHER_USED), get_i64(op + _GATHER_D)
            gather_phase(job, phase, number, rows, x, routed, used, d, out)
        elif kind == _EXPERTS:
            routed = _held(registers, op + _EXPERTS_ROUTED)
            _experts(a, op, phase, number, rows, routed, x, out, scratch)
        elif kind == _COMBINE:
            routed = _held(registers, op + _COMBINE_ROUTED)
            used, d = get_i64(op + _COMBINE_USED), get_i64(op + _COMBINE_D)
            combine_phase(job, phase, number, rows, x, routed, used, d, out)
        else:
            share = _held(registers, op + _ADD_SHARE_SHARE)
            d = get_i64(op + _ADD_SHARE_D)
            add_share_phase(job, phase, number, rows, x, share, d, out)
