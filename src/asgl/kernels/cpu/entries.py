"""What Python calls. Each entry is a job: every thread of the team runs it, with its own number and
that of the job.

An entry takes its arguments in a record, whose fields are listed here, in order. They are int64
(addresses and sizes) but for those marked `:float`. See the phases for what they mean.
"""

from __future__ import annotations

from typing import Any

from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from asgl.kernels.cpu.attention import attention_phases
from asgl.kernels.cpu.elementwise import embed_phase, norm_phase, rope_phase, silu_phase
from asgl.kernels.cpu.layers import layers_job
from asgl.kernels.cpu.linear import STORE, linear_phases
from asgl.kernels.cpu.sampling import log_softmax_phase, sample_phase

FIELDS = {
    "embed": "job ids rows d table kind scale offset share out",
    "add_rms_norm": "job hidden delta rows d weight eps:float out",
    "linear": "job x ldx rows weight bits k outputs out ldo inputs scratch room packed_only "
    "byte_inputs",
    "rope_and_store": "job qkv rows heads kv_heads head_dim positions slots rope k_cache v_cache "
    "out",
    "attention": "job units unit_count tokens limits merged merged_count parts order indices q "
    "k_cache v_cache heads kv_heads "
    "head_dim scale:float partials out scratch room packed_only",
    "layers": "job table layers hidden rows d f heads kv_heads head_dim eps:float rope positions "
    "slots norm packed_only "
    "byte_inputs normed qkv q units unit_count tokens limits merged merged_count parts order "
    "indices scale:float partials "
    "attended gated wanted at kept_attended kept_hidden out inputs scratch room",
    "silu_and_mul": "job gate_up rows width out",
    "log_softmax": "job logits m n out",
    "sample": "job logits m n temperature top_k top_p min_p uniform greedy ranks out",
}
"""The entries, and the fields of their records."""


def embed(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    embed_phase(
        a.job, 0, number, a.ids, a.rows, a.d, a.table, a.kind, a.scale, a.offset, a.share, a.out
    )


def add_rms_norm(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    norm_phase(a.job, 0, number, a.hidden, a.delta, a.rows, a.d, a.weight, a.eps, a.out)


def linear(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    scratch = a.scratch + thread * a.room
    linear_phases(
        a.job,
        0,
        number,
        a.x,
        a.ldx,
        a.rows,
        a.weight,
        a.bits,
        a.k,
        a.outputs,
        STORE,
        a.out,
        a.ldo,
        a.inputs,
        scratch,
        a.packed_only != 0,
        a.byte_inputs != 0,
    )


def rope_and_store(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    rope_phase(
        a.job,
        0,
        number,
        a.qkv,
        0,
        a.rows,
        a.heads,
        a.kv_heads,
        a.head_dim,
        a.positions,
        a.slots,
        a.rope,
        a.k_cache,
        a.v_cache,
        a.out,
    )


def attention(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    scratch = a.scratch + thread * a.room
    attention_phases(
        a.job,
        0,
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
        a.k_cache,
        a.v_cache,
        a.heads,
        a.kv_heads,
        a.head_dim,
        a.scale,
        a.partials,
        a.out,
        scratch,
        a.packed_only != 0,
    )


def layers(record: Any, thread: int, number: int) -> None:
    layers_job(carray(record, 1)[0], thread, number)


def silu_and_mul(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    silu_phase(a.job, 0, number, a.gate_up, a.rows, a.width, a.out)


def log_softmax(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    log_softmax_phase(a.job, 0, number, a.logits, a.m, a.n, a.out)


def sample(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    sample_phase(
        a.job,
        0,
        number,
        a.logits,
        a.m,
        a.n,
        a.temperature,
        a.top_k,
        a.top_p,
        a.min_p,
        a.uniform,
        a.greedy != 0,
        a.ranks,
        thread,
        a.out,
    )
