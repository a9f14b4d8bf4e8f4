"""From logits to tokens, in Triton: one program per row, without sorting.

A token's weight is w = exp((logit - greatest) / temperature), in (0, 1]. Tokens are ranked by
weight, of equals the lower id first, so what filters keep is a *cut*: all tokens above a weight,
and the first few of those that have it. Weights are positive floats, whose bits are ordered as they
are; a cut is found by fixing three bits at a time from the highest down, with eight sums of the
weights (or counts) of tokens above a candidate. Sums over fewer tokens in the same order are never
greater, rounded or not, so that the search is exact with respect to its own sums. Top-k and top-p
are the same search with different measures; min-p is a cut by itself. Of what is kept, the token
with the least time divided by its weight is drawn, in one pass: see `asgl.kernels.noise`.

The filters are those of Fan et al. (top-k, arXiv 1805.04833), Holtzman et al. (top-p, arXiv
1904.09751) and Nguyen et al. (min-p, arXiv 2407.01082); the search is radix selection (Alabi et
al., Fast k-selection algorithms for graphics processing units, 2012) with sums in place of counts.
"""

# No annotations from __future__: Triton's interpreter reads them as objects.
# Kernels are in Triton's language, whose values no checker of Python knows; the code that launches
# them is checked strictly.
# pyright: basic, reportMissingParameterType=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false, reportRedeclaration=false

import triton
import triton.language as tl

from asgl.kernels import noise

WEYL = tl.constexpr(noise.WEYL)
FIRST = tl.constexpr(noise.FIRST)
SECOND = tl.constexpr(noise.SECOND)
STEP = tl.constexpr(noise.STEP)


@triton.jit
def _weights(logits, begin, vocabulary, greatest, temperature, BLOCK: tl.constexpr):
    """The weights of a block of tokens; 0 past the end, and where the logit is NaN."""
    at = begin + tl.arange(0, BLOCK)
    logit = tl.load(logits + at, mask=at < vocabulary, other=-float("inf"))
    return tl.maximum(tl.exp((logit - greatest) / temperature), 0.0)


@triton.jit
def _measure(
    logits, vocabulary, greatest, temperature, keys, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """float32 [8]: for each of the eight keys, the weight of all tokens with at least that key (or
    how many, if COUNT)."""
    total = tl.zeros([8, BLOCK], tl.float32)
    for begin in range(0, vocabulary, BLOCK):
        w = _weights(logits, begin, vocabulary, greatest, temperature, BLOCK)
        key = w.to(tl.int32, bitcast=True)
        each = tl.where(w > 0.0, 1.0, 0.0) if COUNT else w
        total += tl.where(key[None, :] >= keys[:, None], each[None, :], 0.0)
    return tl.sum(total, 1)


@triton.jit
def _search(
    logits,
    vocabulary,
    greatest,
    temperature,
    goal,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The highest key so that tokens of at least that key weigh `goal`, or are so many; 0 if all
    together do not. With it, the measure of all tokens above that key."""
    digit = tl.arange(0, 8)
    found = 0
    for place in range(0, 10):
        shift = 27 - 3 * place
        held = _measure(
            logits, vocabulary, greatest, temperature, found + (digit << shift), COUNT, BLOCK
        )
        # the first candidate is what was found so far: enough, or else nothing is
        found += tl.maximum(tl.sum((held >= goal).to(tl.int32), 0) - 1, 0) << shift
    above = _measure(logits, vocabulary, greatest, temperature, found + 1 + digit * 0, COUNT, BLOCK)
    return found, tl.max(above, 0)


@triton.jit
def _held(logits, vocabulary, greatest, temperature, cut, BLOCK: tl.constexpr):
    """Of the tokens above the cut the weight, and of those at it the number."""
    above = tl.zeros([BLOCK], tl.float32)
    equal = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, vocabulary, BLOCK):
        w = _weights(logits, begin, vocabulary, greatest, temperature, BLOCK)
        key = w.to(tl.int32, bitcast=True)
        above += tl.where(key > cut, w, 0.0)
        equal += (key == cut).to(tl.int32)
    return tl.sum(above, 0), tl.sum(equal, 0)


@triton.jit
def _times(tokens, low, high):
    """-log(1 - u) of tokens under a key, by the definition in `asgl.kernels.noise`."""
    x = tokens.to(tl.uint32) * WEYL + low
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15) ^ high) * SECOND
    x = x ^ (x >> 15)
    u = ((x >> 1).to(tl.int32).to(tl.float32) + 0.5) * STEP
    # near 0, 1 - u loses what the logarithm needs; what was rounded to 1 is put below it
    series = u * (1.0 + u * (0.5 + u * (0.33333334 + u * (0.25 + u * 0.2))))
    return tl.where(u < 0.03125, series, -tl.log(1.0 - tl.minimum(u, 0.99999994)))


@triton.jit
def _race(logits, vocabulary, greatest, temperature, cut, ties, ids, key,
          FILTERED: tl.constexpr, NAMED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The column that wins, of all above the cut and the first `ties` of those at it."""
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    best = tl.full([BLOCK], float("inf"), tl.float32)
    winner = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    seen = 0
    for begin in range(0, vocabulary, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        w = _weights(logits, begin, vocabulary, greatest, temperature, BLOCK)
        tokens = tl.load(ids + at, mask=at < vocabulary, other=0) if NAMED else at
        if FILTERED:
            bits = w.to(tl.int32, bitcast=True)
            equal = (bits == cut).to(tl.int32)
            kept = (bits > cut) | ((equal > 0) & (seen + tl.cumsum(equal, 0) <= ties))
            seen += tl.sum(equal, 0)
        else:
            kept = w > 0.0
        time = tl.where(kept, _times(tokens, low, high) / tl.where(kept, w, 1.0), float("inf"))
        winner = tl.where(time < best, at, winner)
        best = tl.minimum(best, time)
    return tl.min(tl.where(best == tl.min(best, 0), winner, 0x7FFFFFFF), 0)


@triton.jit
def sample_kernel(logits, temperatures, top_ks, top_ps, min_ps, keys, ids, tokens, vocabulary,
                  stride, GREEDY: tl.constexpr, FILTERED: tl.constexpr, NAMED: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """Grid (m). logits float32 [m, vocabulary], `stride` from row to row; tokens int64 [m].

    temperatures, top_ps, min_ps float32, top_ks int32, keys int64 [m]; ids int32 [vocabulary].
    GREEDY: no row is random. FILTERED: top-k, top-p or min-p of some row is on. NAMED: columns have
    the tokens `ids`, not their own numbers. `asgl.kernels.api.Kernels.sample` says what is drawn.
    The token is -1 if a logit is NaN or +inf, or all are -inf.
    """
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    greatest = tl.full([BLOCK], -float("inf"), tl.float32)
    first = tl.full([BLOCK], 0, tl.int32)
    broken = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, vocabulary, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        logit = tl.load(logits + at, mask=at < vocabulary, other=-float("inf"))
        first = tl.where(logit > greatest, at, first)
        greatest = tl.maximum(greatest, logit)
        broken |= ((logit != logit) | (logit == float("inf"))).to(tl.int32)
    best = tl.max(greatest, 0)
    token = tl.min(tl.where(greatest == best, first, 0x7FFFFFFF), 0)
    token = tl.where((tl.max(broken, 0) > 0) | (best == -float("inf")), -1, token)
    if not GREEDY:
        temperature = tl.load(temperatures + row)
        if (temperature > 0.0) & (token >= 0):
            # as good as 0, and far from where float32 loses its precision
            temperature = tl.maximum(temperature, 1e-30)
            token = _draw(
                logits,
                vocabulary,
                best,
                temperature,
                row,
                top_ks,
                top_ps,
                min_ps,
                keys,
                ids,
                FILTERED,
                NAMED,
                BLOCK,
            )
    tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def _draw(logits, vocabulary, best, temperature, row, top_ks, top_ps, min_ps, keys, ids,
          FILTERED: tl.constexpr, NAMED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The column of a row that is random: finds the cut of the filters, then who wins the race."""
    cut = 1  # the lowest key of a weight above 0
    ties = 0x7FFFFFFF  # how many of the tokens at the cut are kept
    if FILTERED:
        top_k = tl.load(top_ks + row)
        if top_k > 0:
            found, above = _search(
                logits, vocabulary, best, temperature, top_k.to(tl.float32), True, BLOCK
            )
            if found > 0:
                cut = found
                ties = top_k - above.to(tl.int32)
        top_p = tl.load(top_ps + row)
        if top_p < 1.0:
            above, equal = _held(logits, vocabulary, best, temperature, cut, BLOCK)
            edge = cut.to(tl.float32, bitcast=True)
            goal = top_p * (above + tl.minimum(equal, ties).to(tl.float32) * edge)
            found, above = _search(logits, vocabulary, best, temperature, goal, False, BLOCK)
            if found >= cut:
                needed = tl.ceil((goal - above) / found.to(tl.float32, bitcast=True))
                needed = tl.maximum(tl.minimum(needed, 2.0e9), 1.0).to(tl.int32)
                ties = tl.where(found > cut, needed, tl.minimum(ties, needed))
                cut = found
        least = tl.load(min_ps + row).to(tl.int32, bitcast=True)
        if least > cut:
            cut = least
            ties = 0x7FFFFFFF
    key = tl.load(keys + row)
    return _race(logits, vocabulary, best, temperature, cut, ties, ids, key, FILTERED, NAMED, BLOCK)


@triton.jit(do_not_specialize=["count"])
def edit_kernel(
    logits, rows, tokens, values, count, stride, REPETITION: tl.constexpr, BLOCK: tl.constexpr
):
    """Changes single logits float32 [m, stride], named by triples (rows, tokens int64, values
    float32 [count]) that do not repeat: adds, or (REPETITION) divides positive logits by the value
    and multiplies negative ones (Keskar et al., arXiv 1909.05858). Grid (ceil(count / BLOCK));
    lanes past the count are masked."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    row = tl.load(rows + at, mask=inside, other=0).to(tl.int64)
    token = tl.load(tokens + at, mask=inside, other=0).to(tl.int64)
    value = tl.load(values + at, mask=inside, other=1.0)
    place = logits + row * stride + token
    old = tl.load(place, mask=inside, other=0.0)
    if REPETITION:  # noqa: SIM108 (a branch of the compiler's)
        new = tl.where(old > 0.0, old / value, old * value)
    else:
        new = old + value
    tl.store(place, new, mask=inside)


@triton.jit
def mask_kernel(logits, allowed, vocabulary, stride, words, BLOCK: tl.constexpr):
    """Puts -inf where a grammar does not allow a token. allowed int32 [m, words]: bit t % 32 of
    word t // 32 is token t, words past the mask's end allow nothing. Grid (m, ceil(vocabulary /
    BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocabulary
    word = tl.load(allowed + row * words + at // 32, mask=inside & (at // 32 < words), other=0)
    banned = ((word >> (at % 32)) & 1) == 0
    tl.store(
        logits + row * stride + at,
        tl.full([BLOCK], -float("inf"), tl.float32),
        mask=inside & banned,
    )
