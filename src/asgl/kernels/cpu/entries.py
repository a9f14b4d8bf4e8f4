"""What Python calls. Each entry is a job: every thread of the team runs it, with its own number and
that of the job.

An entry takes its arguments in a record, whose fields are listed here. They are int64 (addresses
and sizes) but for those marked `:float`. See the phases for what they mean.
"""

from __future__ import annotations

from typing import Any

from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from asgl.kernels.cpu.attention import attention_phases
from asgl.kernels.cpu.elementwise import embed_phase, norm_phase, rope_phase, silu_phase
from asgl.kernels.cpu.layers import layers_job
from asgl.kernels.cpu.linear import STORE, linear_phases
from asgl.kernels.cpu.sampling import log_softmax_phase, sample_phase

UNITS = "units unit_count tokens limits merged merged_count parts order indices"
"""What `plan_units` returns, and the slots."""

FIELDS = {
    "embed": "job ids rows d table kind scale offset share out",
    "add_rms_norm": "job hidden delta rows d weight eps:float out",
    "linear": "job x rows weight bits k outputs out inputs scratch room packed_only byte_inputs",
    "rope_and_store": "job qkv rows heads kv_heads head_dim positions slots rope k_cache v_cache "
    "out",
    "attention": f"job {UNITS} q k_cache v_cache heads kv_heads head_dim scale:float partials out "
    "scratch room packed_only",
    "layers": "job table layers hidden rows d f heads kv_heads head_dim eps:float rope positions "
    f"slots norm packed_only byte_inputs normed qkv q {UNITS} scale:float partials attended gated "
    "wanted at kept_attended kept_hidden out inputs scratch room",
    "silu_and_mul": "job gate_up rows width out",
    "log_softmax": "job logits m n out",
    "sample": "job logits m n temperature top_k top_p min_p keys ids greedy ranks out",
}
"""The entries, and the fields of their records."""


def embed(record: Any, thread: int, number: int) -> None:
    embed_phase(carray(record, 1)[0], number)


def add_rms_norm(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    norm_phase(a.job, 0, number, a.hidden, a.delta, a.rows, a.d, a.weight, a.eps, a.out)


def linear(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    scratch = a.scratch + thread * a.room
    linear_phases(
        a, 0, number, a.x, a.rows, a.weight, a.bits, a.k, a.outputs, STORE, a.out, scratch
    )


def rope_and_store(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    rope_phase(a, 0, number, 0, a.k_cache, a.v_cache, a.out)


def attention(record: Any, thread: int, number: int) -> None:
    a = carray(record, 1)[0]
    scratch = a.scratch + thread * a.room
    attention_phases(a, 0, number, a.q, a.k_cache, a.v_cache, a.out, scratch)


def layers(record: Any, thread: int, number: int) -> None:
    layers_job(carray(record, 1)[0], thread, number)


def silu_and_mul(record: Any, thread: int, number: int) -> None:
    silu_phase(carray(record, 1)[0], number)


def log_softmax(record: Any, thread: int, number: int) -> None:
    log_softmax_phase(carray(record, 1)[0], number)


def sample(record: Any, thread: int, number: int) -> None:
    sample_phase(carray(record, 1)[0], thread, number)
