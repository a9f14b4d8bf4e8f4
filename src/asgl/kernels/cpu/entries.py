"""What Python calls. Each entry is the body of a parallel region: every thread of the team runs it, with the same arguments.

An entry takes the address of a record; the fields of the records are listed here, in order. Fields are int64 (addresses and
sizes) but for those whose name says `: float`. See the phases for what they mean.
"""

from __future__ import annotations

from numba import carray

from asgl.kernels.cpu import team
from asgl.kernels.cpu.attention import attention_phases
from asgl.kernels.cpu.elementwise import embed_phase, norm_phase, rope_phase, silu_phase
from asgl.kernels.cpu.linear import STORE, linear_phase
from asgl.kernels.cpu.sampling import log_softmax_phase, sample_phase

FIELDS = {
    "embed": "team ids rows d table kind scale offset share out",
    "add_rms_norm": "team hidden delta rows d weight eps:float out",
    "linear": "team x ldx rows weight bits k outputs out ldo scratch room packed_only grain",
    "rope_and_store": "team qkv rows heads kv_heads head_dim positions slots rope k_cache v_cache out",
    "attention": "team units unit_count tokens limits merged merged_count parts order indices q k_cache v_cache heads kv_heads "
    "head_dim scale:float partials out scratch room",
    "silu_and_mul": "team gate_up rows width out",
    "log_softmax": "team logits m n out",
    "sample": "team logits m n temperature top_k top_p min_p uniform greedy ranks out",
}
"""The entries, and the fields of their records."""


def embed(record):
    a = carray(record, 1)[0]
    embed_phase(a.team, 0, a.ids, a.rows, a.d, a.table, a.kind, a.scale, a.offset, a.share, a.out)


def add_rms_norm(record):
    a = carray(record, 1)[0]
    norm_phase(a.team, 0, a.hidden, a.delta, a.rows, a.d, a.weight, a.eps, a.out)


def linear(record):
    a = carray(record, 1)[0]
    scratch = a.scratch + team.join(a.team) * a.room
    linear_phase(
        a.team, 0, a.x, a.ldx, a.rows, a.weight, a.bits, a.k, a.outputs, STORE, a.out, a.ldo, scratch, a.packed_only != 0,
        a.grain,
    )


def rope_and_store(record):
    a = carray(record, 1)[0]
    rope_phase(
        a.team, 0, a.qkv, a.rows, a.heads, a.kv_heads, a.head_dim, a.positions, a.slots, a.rope, a.k_cache, a.v_cache, a.out
    )


def attention(record):
    a = carray(record, 1)[0]
    scratch = a.scratch + team.join(a.team) * a.room
    attention_phases(
        a.team, 0, a.units, a.unit_count, a.tokens, a.limits, a.merged, a.merged_count, a.parts, a.order, a.indices, a.q,
        a.k_cache, a.v_cache, a.heads, a.kv_heads, a.head_dim, a.scale, a.partials, a.out, scratch,
    )


def silu_and_mul(record):
    a = carray(record, 1)[0]
    silu_phase(a.team, 0, a.gate_up, a.rows, a.width, a.out)


def log_softmax(record):
    a = carray(record, 1)[0]
    log_softmax_phase(a.team, 0, a.logits, a.m, a.n, a.out)


def sample(record):
    a = carray(record, 1)[0]
    thread = team.join(a.team)
    sample_phase(
        a.team, 0, a.logits, a.m, a.n, a.temperature, a.top_k, a.top_p, a.min_p, a.uniform, a.greedy != 0, a.ranks, thread,
        a.out,
    )
