"""Norm, rotation, gate and head, in Triton. One pass over memory each; all arithmetic in
float32."""

# No annotations from __future__: Triton's interpreter reads them as objects.
# Kernels are in Triton's language, whose values no checker of Python knows; the code that launches
# them is checked strictly.
# pyright: basic, reportMissingParameterType=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false, reportRedeclaration=false

import triton
import triton.language as tl


@triton.jit
def add_rms_norm_kernel(
    hidden, delta, weight, out, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """hidden float32 [n, width] += delta [n, width] (if ADD); out [n, width] = hidden / rms(hidden)
    * weight float32 [width] (Zhang and Sennrich, arXiv 1910.07467). Contiguous rows. Grid (n);
    BLOCK >= width, lanes past it are masked."""
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(hidden + row + at, mask=inside, other=0.0)
    if ADD:
        x += tl.load(delta + row + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden + row + at, x, mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    normed = x * scale * tl.load(weight + at, mask=inside, other=0.0)
    tl.store(out + row + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rope_and_store_kernel(qkv, positions, slots, rope, k_cache, v_cache, q_out, HEADS: tl.constexpr,
                          KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_H: tl.constexpr,
                          BLOCK_D: tl.constexpr):  # fmt: skip
    """Rotates queries and keys (RoFormer, arXiv 2104.09864; halves of a head against each other),
    stores keys and values.

    qkv [n, HEADS + 2 KV_HEADS, 2 HALF]; rope float32 [context, 2 HALF]: cosines, then sines;
    k_cache, v_cache [slots, KV_HEADS, 2 HALF]; q_out [n, HEADS, 2 HALF]. Grid (n, ceil((HEADS + 2
    KV_HEADS) / BLOCK_H)); BLOCK_D >= HALF. A token whose slot is negative is padding: its keys and
    values are written nowhere. A key that is not finite, or whose value is not, is stored as NaN,
    and such a value as zeros: see `asgl.kernels.api.Kernels.rope_and_store`.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    width: tl.constexpr = 2 * HALF
    all_heads: tl.constexpr = HEADS + 2 * KV_HEADS
    # one for each head: Triton's interpreter takes a broadcast comparison of scalars for a number
    slot = tl.load(slots + token).to(tl.int64) + head * 0
    angle = rope + tl.load(positions + token).to(tl.int64) * width + d
    cosine = tl.load(angle, mask=d < HALF, other=0.0)[None, :]
    sine = tl.load(angle + HALF, mask=d < HALF, other=0.0)[None, :]
    inside = (head < all_heads)[:, None] & (d < HALF)[None, :]
    source = qkv + ((token * all_heads + head) * width)[:, None] + d[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    turned = (head < HEADS + KV_HEADS)[:, None]  # values are stored as they are
    left = tl.where(turned, first * cosine - second * sine, first)
    right = tl.where(turned, second * cosine + first * sine, second)
    is_q = inside & (head < HEADS)[:, None]
    to_q = q_out + ((token * HEADS + head) * width)[:, None] + d[None, :]
    tl.store(to_q, left.to(q_out.dtype.element_ty), mask=is_q)
    tl.store(to_q + HALF, right.to(q_out.dtype.element_ty), mask=is_q)
    is_k = inside & ((head >= HEADS) & (head < HEADS + KV_HEADS) & (slot >= 0))[:, None]
    own = KV_HEADS * width  # from a key to its value
    broken = _broken(left, right, k_cache.dtype.element_ty) | _broken(
        tl.load(source + own, mask=is_k, other=0.0),
        tl.load(source + own + HALF, mask=is_k, other=0.0),
        v_cache.dtype.element_ty,
    )
    to_k = k_cache + ((slot * KV_HEADS + head - HEADS) * width)[:, None] + d[None, :]
    nan = float("nan")
    tl.store(to_k, tl.where(broken, nan, left).to(k_cache.dtype.element_ty), mask=is_k)
    tl.store(to_k + HALF, tl.where(broken, nan, right).to(k_cache.dtype.element_ty), mask=is_k)
    is_v = inside & ((head >= HEADS + KV_HEADS) & (slot >= 0))[:, None]
    broken = _broken(left, right, v_cache.dtype.element_ty)
    to_v = v_cache + ((slot * KV_HEADS + head - HEADS - KV_HEADS) * width)[:, None] + d[None, :]
    tl.store(to_v, tl.where(broken, 0.0, left).to(v_cache.dtype.element_ty), mask=is_v)
    tl.store(to_v + HALF, tl.where(broken, 0.0, right).to(v_cache.dtype.element_ty), mask=is_v)


@triton.jit
def _broken(left, right, DTYPE: tl.constexpr):
    """[heads, 1]: whether a head's halves [heads, BLOCK_D] hold something that is not finite in
    `DTYPE`."""
    limit = float("inf")
    finite = (tl.abs(left.to(DTYPE).to(tl.float32)) < limit) & (
        tl.abs(right.to(DTYPE).to(tl.float32)) < limit
    )
    return (tl.min(finite.to(tl.int32), 1) == 0)[:, None]


@triton.jit
def silu_and_mul_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    """gate_up [n, 2 width], a row's gates before its ups: silu(gate) * up -> out [n, width]
    (Shazeer, arXiv 2002.05202). Contiguous. Grid (n, ceil(width / BLOCK)); lanes past the width are
    masked."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    source = gate_up + row * 2 * width + at
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        out + row * width + at,
        (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty),
        mask=inside,
    )


@triton.jit(do_not_specialize=["m"])
def head_kernel(x, weight, out, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """out float32 [m, n] = x [m, k] @ weight [n, k]^T, all contiguous: logits, which 16-bit
    products of libraries would round.

    Grid (ceil(n / BLOCK_N), ceil(m / BLOCK_M)): a program holds a tile of results and goes over k
    in blocks; rows, columns and the end of k are masked. With m <= BLOCK_M the weight is read once.
    """
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    left = x + (row.to(tl.int64) * k)[:, None]
    right = weight + (column.to(tl.int64) * k)[None, :]
    for begin in range(0, k, BLOCK_K):
        at = begin + tl.arange(0, BLOCK_K)
        a = tl.load(left + at[None, :], mask=(row < m)[:, None] & (at < k)[None, :], other=0.0)
        b = tl.load(right + at[:, None], mask=(column < n)[None, :] & (at < k)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    place = (row.to(tl.int64) * n)[:, None] + column[None, :]
    tl.store(out + place, total, mask=(row < m)[:, None] & (column < n)[None, :])
