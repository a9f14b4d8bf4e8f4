"""What Python calls. Each entry is a job: every thread of the team runs it, with its own number and
that of the job.

An entry takes its arguments in a record, whose fields are listed here. They are int64 (addresses
and sizes) but for those marked `:float`. See the phases for what they mean.
"""

from __future__ import annotations

from typing import Any

from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from asgl.kernels.cpu.elementwise import embed_phase
from asgl.kernels.cpu.operations import run_operations
from asgl.kernels.cpu.packing import pack_phase
from asgl.kernels.cpu.sampling import log_softmax_phase, sample_phase

FIELDS = {
    "pack": "job quants n k scale offset code formats out",
    "embed": "job ids rows d table tiled code formats out",
    "operations": "job program rows wanted at positions slots packed_only scratch room",
    "log_softmax": "job logits m n out",
    "sample": "job logits m n temperature top_k top_p min_p keys ids greedy ranks out",
}
"""The entries, and the fields of their records."""


def pack(record: Any, thread: int, number: int) -> None:
    pack_phase(carray(record, 1)[0], number)


def embed(record: Any, thread: int, number: int) -> None:
    embed_phase(carray(record, 1)[0], number)


def operations(record: Any, thread: int, number: int) -> None:
    run_operations(carray(record, 1)[0], thread, number)


def log_softmax(record: Any, thread: int, number: int) -> None:
    log_softmax_phase(carray(record, 1)[0], number)


def sample(record: Any, thread: int, number: int) -> None:
    sample_phase(carray(record, 1)[0], thread, number)
