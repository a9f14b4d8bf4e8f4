"""Attention over paged keys and values, in Triton.

All kernels read keys and values through `kv_indices`, one slot per position, and hold the query
heads that share a KV head as rows of one tile, so that each key is read once for all of them (GQA,
arXiv 2305.13245). The softmax is online (Milakov and Gimelshein, arXiv 1805.02867; Dao et al.,
arXiv 2205.14135), in float32 and in base 2: scores come scaled by scale * log2(e).

    extend   rows of several new tokens: a prefix by index, and causal among the new tokens (the
             extend kernel of SGLang, arXiv 2312.07104). The grid covers a ragged batch without
             knowing its lengths: row r is given the tiles from qo_indptr[r] // tokens + r on,
             which is enough for any split into rows.
    decode   rows of one new token: the context is cut into pieces (flash-decoding, Dao et al.
             2023), whose results are merged.
    span     positions that several decode rows share are read once for all of them (cascade
             attention, Ye et al. 2024); their results are merged with the decode rows' own.
    merge    results of pieces, weighted by their log-sum-exp.

Layouts, all contiguous: q, out [tokens, heads, head_dim]; k_cache, v_cache [slots, kv_heads,
head_dim]; qo_indptr, kv_indptr int32 [rows + 1]; kv_indices int32 [sum of contexts]; partial
float32 [partial results, heads, head_dim] and partial_lse float32 [partial results, heads], in base
2. Query head h reads KV head h // GROUP. Blocks are powers of two: BLOCK_D >= HEAD_DIM, BLOCK_M >=
GROUP; what is beyond is masked, and masked lanes read and write nothing: slots outside the batch
may hold anything, NaN too. Sizes that differ from step to step are not specialized on, lest a
kernel be compiled in a step.
"""

# No annotations from __future__: Triton's interpreter reads them as objects.
# Kernels are in Triton's language, whose values no checker of Python knows; the code that launches
# them is checked strictly.
# pyright: basic, reportMissingParameterType=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false, reportRedeclaration=false

import triton
import triton.language as tl


@triton.jit
def _attend_blocks(q, result, top, total, k_cache, v_cache, slots, kv_head, start, end, bound,
                   limit, scale, MASKED: tl.constexpr, KV_HEADS: tl.constexpr,
                   HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """Goes over the positions start:end of a context, a block at a time.

    q [M, D]; result float32 [M, D], top and total float32 [M]: the state of the softmax. slots: the
    context's. If MASKED, only positions below `bound`, and for each row of queries only those up to
    its `limit` [M], count; otherwise all blocks are whole.
    """
    d = tl.arange(0, BLOCK_D)
    for position in range(start, end, BLOCK_N):
        at = position + tl.arange(0, BLOCK_N)
        inside = at < bound
        if MASKED:  # noqa: SIM108 (a branch of the compiler's, as the ones below)
            slot = tl.load(slots + at, mask=inside, other=0)
        else:
            slot = tl.load(slots + at)
        place = slot.to(tl.int64) * (KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM
        keys = k_cache + place[None, :] + d[:, None]
        values = v_cache + place[:, None] + d[None, :]
        if MASKED or BLOCK_D != HEAD_DIM:
            k = tl.load(keys, mask=inside[None, :] & (d < HEAD_DIM)[:, None], other=0.0)
        else:
            k = tl.load(keys)
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        if MASKED:
            scores = tl.where(
                inside[None, :] & (at[None, :] <= limit[:, None]), scores, -float("inf")
            )
        highest = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(top - highest)
        total = total * shrink + tl.sum(weights, 1)
        if MASKED or BLOCK_D != HEAD_DIM:
            v = tl.load(values, mask=inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        else:
            v = tl.load(values)
        result = tl.dot(weights.to(v.dtype), v, result * shrink[:, None], input_precision=PRECISION)
        top = highest
    return result, top, total


@triton.jit
def _attend(q, k_cache, v_cache, slots, kv_head, start, whole, end, limit, scale,
            KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Attends to the positions start:whole, all blocks without a mask, then to whole:end.

    Returns the softmax's state: result [M, D], still to be divided by total; top and total [M].
    """
    result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result, top, total = _attend_blocks(
        q, result, top, total, k_cache, v_cache, slots, kv_head, start, whole, end, limit, scale,
        False, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)  # fmt: skip
    return _attend_blocks(
        q, result, top, total, k_cache, v_cache, slots, kv_head, whole, end, end, limit, scale,
        True, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION)  # fmt: skip


@triton.jit(do_not_specialize=["first_row", "rows"])
def extend_kernel(q, k_cache, v_cache, qo_indptr, kv_indptr, kv_indices, out, first_row, rows,
                  scale, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                  BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """Rows first_row:rows of any numbers of new tokens, whose keys and values are in the cache
    already.

    Grid (new tokens // tokens of a tile + rows, KV heads): a tile has BLOCK_M // GROUP tokens, and
    is found by a binary search over the rows; programs past a row's end leave at once. The token at
    position p sees positions 0 to p of its row, the prefix and the new tokens up to itself.
    Positions up to the tile's first token need no mask, and are gone over without one.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    first_token = tl.load(qo_indptr + first_row)
    low = first_row
    high = rows
    while high - low > 1:  # the last row whose tiles start at or before this one
        middle = (low + high) // 2
        begins = (tl.load(qo_indptr + middle) - first_token) // TOKENS + middle - first_row
        if begins <= tile:
            low = middle
        else:
            high = middle
    row_begin = tl.load(qo_indptr + low)
    new = tl.load(qo_indptr + low + 1) - row_begin
    token = (tile - ((row_begin - first_token) // TOKENS + low - first_row)) * TOKENS
    if token < new:
        kv_begin = tl.load(kv_indptr + low)
        prefix = tl.load(kv_indptr + low + 1) - kv_begin - new
        m = tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        tokens = token + m // GROUP
        real = (m < TOKENS * GROUP) & (tokens < new)
        place = ((row_begin + tokens).to(tl.int64) * HEADS + kv_head * GROUP + m % GROUP) * HEAD_DIM
        within = real[:, None] & (d < HEAD_DIM)[None, :]
        queries = tl.load(q + place[:, None] + d[None, :], mask=within, other=0.0)
        limit = prefix + tokens
        end = prefix + tl.minimum(token + TOKENS, new)
        whole = (prefix + token + 1) // BLOCK_N * BLOCK_N
        result, _, total = _attend(
            queries, k_cache, v_cache, kv_indices + kv_begin, kv_head, 0, whole, end, limit,
            scale, KV_HEADS, HEAD_DIM, BLOCK_M, BLOCK_D, BLOCK_N, PRECISION)  # fmt: skip
        tl.store(
            out + place[:, None] + d[None, :],
            (result / total[:, None]).to(out.dtype.element_ty),
            mask=within,
        )


@triton.jit(do_not_specialize=["splits"])
def decode_kernel(q, k_cache, v_cache, kv_indptr, kv_indices, rows_spans, partial, partial_lse,
                  out, splits, scale, SPANNED: tl.constexpr, DIRECT: tl.constexpr,
                  HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                  BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """One new token a row, whose number is the row's. Grid (rows, KV heads, splits). It sees all
    positions of its row.

    rows_spans int32 [rows, 3], if SPANNED: the third value is how many positions at the start the
    span kernel takes care of. The rest is cut into `splits` pieces of whole blocks. If DIRECT (one
    piece, no spans) the result goes to `out`, else to partial[row * splits + piece]; of an empty
    piece only its log-sum-exp is written, -inf.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    piece = tl.program_id(2)
    kv_begin = tl.load(kv_indptr + row)
    context = tl.load(kv_indptr + row + 1) - kv_begin
    first = 0
    if SPANNED:
        first = tl.load(rows_spans + row * 3 + 2)
    blocks = (context - first + splits * BLOCK_N - 1) // (splits * BLOCK_N)
    start = first + piece * blocks * BLOCK_N
    end = tl.minimum(start + blocks * BLOCK_N, context)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    within = (m < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    head = kv_head * GROUP + m
    queries = tl.load(
        q + ((row.to(tl.int64) * HEADS + head) * HEAD_DIM)[:, None] + d[None, :],
        mask=within,
        other=0.0,
    )
    limit = tl.zeros([BLOCK_M], tl.int32) + context
    whole = start + tl.maximum(end - start, 0) // BLOCK_N * BLOCK_N
    result, top, total = _attend(
        queries, k_cache, v_cache, kv_indices + kv_begin, kv_head, start, whole, end, limit,
        scale, KV_HEADS, HEAD_DIM, BLOCK_M, BLOCK_D, BLOCK_N, PRECISION)  # fmt: skip
    if DIRECT:
        place = (row.to(tl.int64) * HEADS + head) * HEAD_DIM
        tl.store(
            out + place[:, None] + d[None, :],
            (result / total[:, None]).to(out.dtype.element_ty),
            mask=within,
        )
    else:
        place = (row.to(tl.int64) * splits + piece) * HEADS + head
        # an empty piece has no weight at all: -inf stays -inf
        tl.store(partial_lse + place, top + tl.log2(tl.maximum(total, 1e-30)), mask=m < GROUP)
        if start < end:
            tl.store(
                partial + (place * HEAD_DIM)[:, None] + d[None, :],
                result / total[:, None],
                mask=within,
            )


@triton.jit(do_not_specialize=["first_partial"])
def span_kernel(q, k_cache, v_cache, kv_indptr, kv_indices, units, entries, partial, partial_lse,
                first_partial, scale, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
                HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
                BLOCK_N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Positions that several decode rows share. Grid (units, KV heads).

    Every row of a unit sees all its positions: they are before the row's new token.

    units int32 [units, 6]: first entry, entries, a row whose context to read, first position, last
    position + 1, number of the piece within its span. entries int32 [entries, 2]: row, and its
    first partial result of the span, counted from first_partial. Units without entries leave at
    once, so that a launch of fixed size serves any batch.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    unit = units + tl.program_id(0) * 6
    kv_head = tl.program_id(1)
    first = tl.load(unit)
    count = tl.load(unit + 1)
    if count > 0:
        kv_begin = tl.load(kv_indptr + tl.load(unit + 2))
        start = tl.load(unit + 3)
        end = tl.load(unit + 4)
        m = tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        real = m // GROUP < count
        entry = entries + (first + m // GROUP) * 2
        row = tl.load(entry, mask=real, other=0)
        head = kv_head * GROUP + m % GROUP
        within = real[:, None] & (d < HEAD_DIM)[None, :]
        queries = tl.load(
            q + ((row.to(tl.int64) * HEADS + head) * HEAD_DIM)[:, None] + d[None, :],
            mask=within,
            other=0.0,
        )
        limit = tl.zeros([BLOCK_M], tl.int32) + end
        whole = start + (end - start) // BLOCK_N * BLOCK_N
        result, top, total = _attend(
            queries, k_cache, v_cache, kv_indices + kv_begin, kv_head, start, whole, end, limit,
            scale, KV_HEADS, HEAD_DIM, BLOCK_M, BLOCK_D, BLOCK_N, PRECISION)  # fmt: skip
        part = first_partial + tl.load(entry + 1, mask=real, other=0) + tl.load(unit + 5)
        place = part.to(tl.int64) * HEADS + head
        tl.store(partial_lse + place, top + tl.log2(total), mask=real)
        tl.store(
            partial + (place * HEAD_DIM)[:, None] + d[None, :], result / total[:, None], mask=within
        )


@triton.jit(do_not_specialize=["first_partial", "splits"])
def merge_kernel(partial, partial_lse, rows_spans, first_partial, out, splits,
                 SPANNED: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                 BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """Adds up the pieces of a row, each weighted by the exponential of its log-sum-exp. Grid (rows,
    heads).

    rows_spans int32 [rows, 3], if SPANNED: the row's first partial result of spans, counted from
    first_partial, and how many. Pieces whose log-sum-exp is -inf are empty: what stands in
    `partial` for them is not read.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    base = 0
    count = splits
    if SPANNED:
        base = tl.load(rows_spans + row * 3)
        count = splits + tl.load(rows_spans + row * 3 + 1)
    d = tl.arange(0, BLOCK_D)
    result = tl.zeros([BLOCK_D], tl.float32)
    top = -float("inf")
    total = 0.0
    for begin in range(0, count, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        part = tl.where(p < splits, row * splits + p, first_partial + base + p - splits).to(
            tl.int64
        )
        place = part * HEADS + head
        lse = tl.load(partial_lse + place, mask=p < count, other=-float("inf"))
        held = lse > -float("inf")
        highest = tl.maximum(top, tl.max(lse, 0))
        # a block of empty pieces, before any that is not, must not give inf - inf
        safe = tl.where(highest == -float("inf"), 0.0, highest)
        weights = tl.exp2(lse - safe)
        values = tl.load(
            partial + (place * HEAD_DIM)[:, None] + d[None, :],
            mask=held[:, None] & (d < HEAD_DIM)[None, :],
            other=0.0,
        )
        shrink = tl.exp2(top - safe)
        result = result * shrink + tl.sum(values * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        top = highest
    place = (row.to(tl.int64) * HEADS + head) * HEAD_DIM
    tl.store(out + place + d, (result / total).to(out.dtype.element_ty), mask=d < HEAD_DIM)
