"""What the Triton kernels have to do at the shapes of two models: bytes that must move, and
operations. For roofline.py and gpu.py."""

from __future__ import annotations

from dataclasses import dataclass

ITEM = 2
"""Bytes of an element: bfloat16."""


@dataclass(frozen=True)
class Model:
    """Sizes of a model."""

    heads: int
    kv_heads: int
    head_dim: int
    width: int
    gated: int
    vocabulary: int


MODELS = {
    "smollm2-135m": Model(9, 3, 64, 576, 1536, 49152),
    "llama-3-8b": Model(32, 8, 128, 4096, 14336, 128256),
}


@dataclass(frozen=True)
class Work:
    """One call of a kernel. `case` names it in the compile lane's table. `moved`: bytes, each that
    is needed counted once. `operations`: multiplications and additions, of the products only where
    there are any. `on_tensor_cores`: whether these are products."""

    case: str
    at: str
    moved: int
    operations: int
    on_tensor_cores: bool


@dataclass(frozen=True)
class Rows:
    """A batch of equal rows: `shared` of their context is one prefix for all."""

    rows: int
    new: int
    context: int
    shared: int = 0


EXTEND = Rows(1, 2048, 2048)
PREFIXED = Rows(4, 256, 4096)
DECODE = Rows(64, 1, 2048)
ALONE = Rows(1, 1, 2048)
SHARED = Rows(64, 1, 1152, shared=1024)
TOKENS, LOGITS = 2048, 64


def work(model: Model) -> list[Work]:
    """Every kernel at the shapes of a step."""
    heads = model.heads + 2 * model.kv_heads
    d = model.head_dim
    return [
        Work(
            "add_rms_norm",
            f"{TOKENS} tokens",
            TOKENS * model.width * (4 + ITEM + 4 + ITEM),
            TOKENS * model.width * 5,
            False,
        ),
        Work(
            "rope_and_store",
            f"{TOKENS} tokens",
            TOKENS * d * (2 * heads * ITEM + 4),
            TOKENS * d * heads * 3,
            False,
        ),
        _attention("extend", model, EXTEND),
        _attention("extend", model, PREFIXED),
        _attention("decode", model, DECODE),
        _attention("decode", model, ALONE),
        _attention("span", model, SHARED),
        Work(
            "silu_and_mul",
            f"{TOKENS} tokens",
            TOKENS * model.gated * 3 * ITEM,
            TOKENS * model.gated * 5,
            False,
        ),
        Work(
            "head",
            f"{LOGITS} rows",
            (LOGITS + model.vocabulary) * model.width * ITEM + LOGITS * model.vocabulary * 4,
            2 * LOGITS * model.vocabulary * model.width,
            True,
        ),
        Work(
            "sample, greedy",
            f"{LOGITS} rows",
            LOGITS * model.vocabulary * 4,
            LOGITS * model.vocabulary,
            False,
        ),
        # read again from the L2 cache in each of eleven passes of two searches; memory is read once
        Work(
            "sample, filtered",
            f"{LOGITS} rows",
            LOGITS * model.vocabulary * 4,
            LOGITS * model.vocabulary * 25 * 20,
            False,
        ),
    ]


def pairs(rows: Rows) -> int:
    """Queries times positions that each sees."""
    before = rows.context - rows.new
    return rows.rows * (rows.new * before + rows.new * (rows.new + 1) // 2)


def _attention(case: str, model: Model, rows: Rows) -> Work:
    """Keys and values once for a row, those of a shared prefix once for all; queries and results
    once."""
    each = 2 * model.kv_heads * model.head_dim * ITEM
    own = rows.rows * (rows.context - rows.shared)
    moved = (
        own + rows.shared
    ) * each + 2 * rows.rows * rows.new * model.heads * model.head_dim * ITEM
    at = f"{rows.rows} x {rows.new} new, context {rows.context}" + (
        f", {rows.shared} shared" if rows.shared else ""
    )
    return Work(case, at, moved, 4 * pairs(rows) * model.heads * model.head_dim, True)
