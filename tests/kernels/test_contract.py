"""What every back end must do, against float64 oracles written as plainly as the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from tests.kernels.batches import (
    POOL,
    activation,
    arrival,
    attention_oracle,
    batch_of,
    caches,
    generator,
    how_to_sample,
    make_batch,
    random_keys,
    random_qkv,
    rope_table,
    rotate,
)
from torch import Tensor

from asgl.kernels.api import Attending, Kernels
from asgl.kernels.quantized import QuantizedTensor

SHAPES = [(3, 3, 64), (9, 3, 64), (8, 1, 128), (4, 2, 32)]  # heads, kv_heads, head_dim

# rows as (prefix, new tokens); rows with one new token come first
BATCHES = {
    "first token": [(0, 1)],
    "second token": [(1, 1)],
    "empty prefix": [(0, 7)],
    "decode": [(5, 1), (63, 1), (64, 1), (200, 1)],
    "extend": [(64, 64), (1, 130), (31, 2)],
    "mixed": [(17, 1), (300, 1), (0, 5), (33, 129), (127, 3)],
    "many": [(7 * i % 23, 1) for i in range(40)] + [(3, 2)] * 5,
}


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        found.detach().cpu().double(), expected.double(), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BATCHES)
def test_attention(backend, kernels: Kernels, name: str, shape: tuple[int, int, int]) -> None:
    _, kv_heads, head_dim = shape
    batch = make_batch(kernels, BATCHES[name])
    k_cache, v_cache = caches(kernels, batch, kv_heads, head_dim)
    qkv = random_qkv(kernels, len(batch.input_ids), shape)
    q = rotate(kernels, qkv, batch, rope_table(kernels, 512, head_dim), k_cache, v_cache).clone()
    out = kernels.attention(q, k_cache, v_cache, batch, Attending(head_dim**-0.5))
    assert out.dtype == activation(kernels, torch.ones(1, 8)).dtype
    close(out, attention_oracle(q, k_cache, v_cache, batch, head_dim**-0.5), backend.attention)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["key", "value"])
def test_a_token_that_is_not_finite_spoils_who_attends_to_it(
    kernels: Kernels, where: str, bad: float
) -> None:
    """And nobody else: neither tokens before it, in the same row and tile, nor other rows."""
    heads, kv_heads, head_dim = shape = (4, 2, 32)
    batch = make_batch(kernels, [(40, 1), (3, 20), (0, 30)])
    n, poisoned, head = len(batch.input_ids), 1 + 8, 1
    qkv = random_qkv(kernels, n, shape)
    k_cache, v_cache = caches(kernels, batch, kv_heads, head_dim)
    rope = rope_table(kernels, 512, head_dim)

    def attended(qkv: Tensor) -> Tensor:
        keys, values = k_cache.clone(), v_cache.clone()
        q = rotate(kernels, qkv.clone(), batch, rope, keys, values).clone()
        slot = int(batch.slots[poisoned])
        assert values[batch.slots].isfinite().all()
        assert keys[slot, 1 - head].isfinite().all()
        assert bool(keys[slot, head].isnan().all()) != bool(qkv.isfinite().all())
        return kernels.attention(q, keys, values, batch, Attending(head_dim**-0.5)).clone()

    expected = attended(qkv).unflatten(1, (heads, head_dim))
    broken = qkv.clone()
    place = heads + head + (kv_heads if where == "value" else 0)
    broken.view(n, -1, head_dim)[poisoned, place, 5] = bad
    found = attended(broken).unflatten(1, (heads, head_dim))
    spoiled = torch.zeros(n, heads, dtype=torch.bool)
    spoiled[poisoned : 1 + 20, 2 * head :] = True
    assert found[spoiled].isnan().all()
    assert torch.equal(found[~spoiled], expected[~spoiled])


def test_attention_is_exact_where_one_score_dominates(backend, kernels: Kernels) -> None:
    """Scores of several hundred must neither overflow nor lose the greatest."""
    batch = make_batch(kernels, [(150, 1), (70, 9)])
    k_cache, v_cache = caches(kernels, batch, 1, 64)
    q = rotate(
        kernels,
        random_qkv(kernels, 10, (2, 1, 64)),
        batch,
        rope_table(kernels, 512, 64),
        k_cache,
        v_cache,
    ).clone()
    q *= 60
    out = kernels.attention(q, k_cache, v_cache, batch, Attending(1.0))
    # products of this size carry their own rounding into the exponent
    close(out, attention_oracle(q, k_cache, v_cache, batch, 1.0), max(backend.attention, 5e-3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rope_and_store(backend, kernels: Kernels, shape: tuple[int, int, int]) -> None:
    heads, kv_heads, head_dim = shape
    batch = make_batch(kernels, BATCHES["mixed"])
    k_cache, v_cache = caches(kernels, batch, kv_heads, head_dim)
    k_before, v_before = k_cache.clone(), v_cache.clone()
    n = len(batch.input_ids)
    qkv = random_qkv(kernels, n, shape)
    q = rotate(kernels, qkv, batch, rope_table(kernels, 512, head_dim), k_cache, v_cache)
    assert q.shape == (n, heads, head_dim)

    parts = qkv.cpu().double().view(n, heads + 2 * kv_heads, head_dim)
    frequencies = 10_000 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    turn = torch.polar(
        torch.ones(1, dtype=torch.float64), batch.positions.cpu().double()[:, None] * frequencies
    )
    turned = (
        torch.complex(parts[..., : head_dim // 2], parts[..., head_dim // 2 :]) * turn[:, None, :]
    )
    rotated = torch.cat((turned.real, turned.imag), dim=2)
    slots = batch.slots.long()
    close(q, rotated[:, :heads], backend.product)
    close(k_cache[slots], rotated[:, heads : heads + kv_heads], backend.product)
    close(v_cache[slots], parts[:, heads + kv_heads :], backend.product)
    others = torch.ones(POOL, dtype=torch.bool)
    others[slots.cpu()] = False
    for cache, before in ((k_cache, k_before), (v_cache, v_before)):
        assert torch.equal(
            cache.cpu()[others].nan_to_num(123.0), before.cpu()[others].nan_to_num(123.0)
        )


def test_rows_read_what_other_rows_write(backend, kernels: Kernels) -> None:
    """A tree of branches: each row's context holds the new slots of the row above it."""
    prefix, first, second, third = list(range(900, 940)), [3, 1400, 77], [POOL - 1, 0], [512]
    contexts = [
        prefix + first + second + third,
        prefix + first,
        prefix + first + second,
        [*prefix, 44],
    ]
    new = [1, 3, 2, 1]
    order = [
        0,
        3,
        1,
        2,
    ]  # rows with one new token come first, so a child may stand before its parent
    batch = batch_of([contexts[i] for i in order], [new[i] for i in order], device=kernels.device)
    k_cache, v_cache = caches(kernels, batch, 3, 64)
    q = rotate(
        kernels,
        random_qkv(kernels, 7, (9, 3, 64)),
        batch,
        rope_table(kernels, 512, 64),
        k_cache,
        v_cache,
    ).clone()
    out = kernels.attention(q, k_cache, v_cache, batch, Attending(0.125))
    close(out, attention_oracle(q, k_cache, v_cache, batch, 0.125), backend.attention)


@pytest.mark.parametrize(
    "tail", [[(30, 1)] * 6, [(1, 1), (40, 1), (2, 17), (0, 90)], [(0, 2)] * 33], ids=str
)
def test_shared_spans(backend, kernels: Kernels, tail: list[tuple[int, int]]) -> None:
    """The hint changes nothing but the cost; spans may nest, and leave rows out."""
    slots = torch.randperm(POOL, generator=generator(5)).tolist()
    prefix, branch, rest = slots[:200], slots[200:263], iter(slots[263:])
    rows = [(0, 1), *tail]
    contexts: list[list[int]] = []
    for row, (own, new) in enumerate(rows):
        head = [] if row == 0 else prefix + branch if row % 2 else prefix
        contexts.append(head + [next(rest) for _ in range(own + new)])
    below = tuple(range(1, len(rows)))
    odd = tuple(row for row in below if row % 2)
    shared = ((0, 200, below), (200, 263, odd)) if len(odd) > 1 else ((0, 200, below),)
    new = [n for _, n in rows]
    outs = []
    for spans in (shared, ()):
        batch = batch_of(contexts, new, spans, device=kernels.device)
        k_cache, v_cache = caches(kernels, batch, 3, 64)
        qkv = random_qkv(kernels, sum(new), (9, 3, 64))
        q = rotate(kernels, qkv, batch, rope_table(kernels, 512, 64), k_cache, v_cache).clone()
        outs.append(kernels.attention(q, k_cache, v_cache, batch, Attending(0.125)).clone())
        close(outs[-1], attention_oracle(q, k_cache, v_cache, batch, 0.125), backend.attention)
    close(outs[0], outs[1].cpu().double(), backend.attention)


@pytest.mark.parametrize("m", [1, 2, 5, 16, 64, 131])
@pytest.mark.parametrize(("out", "k"), [(96, 64), (960, 576)])
def test_linear_and_head(backend, kernels: Kernels, m: int, out: int, k: int) -> None:
    x = activation(kernels, torch.randn(m, k, generator=generator(1)))
    weight = torch.randn(out, k, generator=generator(2)) / math.sqrt(k)
    expected = x.cpu().double() @ weight.double().T
    close(kernels.linear(x, kernels.pack_linear(weight)), expected, backend.product)
    logits = kernels.head(x, kernels.pack_head(weight))
    assert logits.dtype == torch.float32
    close(logits, expected, backend.product)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights(backend, kernels: Kernels, bits: int) -> None:
    n, k, group = 192, 128, 32
    quants = torch.randint(0, 2**bits, (n, k), generator=generator(1), dtype=torch.uint8)
    scale = torch.rand(n, k // group, generator=generator(2)) * 0.1 / 2**bits + 0.01 / 2**bits
    offset = -scale * 2 ** (bits - 1) + 0.01
    weight = QuantizedTensor(quants, scale, offset, 4 if bits == 4 else 8, group)
    dense = torch.empty(n, k, dtype=torch.float64)
    for j in range(k):
        dense[:, j] = (
            quants[:, j].double() * scale[:, j // group].double() + offset[:, j // group].double()
        )
    x = activation(kernels, torch.randn(9, k, generator=generator(3)))
    expected = x.cpu().double() @ dense.T
    close(kernels.linear(x, kernels.pack_linear(weight)), expected, backend.product)
    close(kernels.head(x, kernels.pack_head(weight)), expected, backend.product)
    ids = torch.tensor([0, n - 1, 5, 5], dtype=torch.int32, device=kernels.device)
    close(
        kernels.embed(kernels.pack_embedding(weight), ids), dense[ids.cpu().long()], backend.product
    )


def test_packed_weights_are_copies(kernels: Kernels) -> None:
    weight = torch.randn(64, 64, generator=generator(1))
    packed = kernels.pack_linear(weight), kernels.pack_head(weight), kernels.pack_embedding(weight)
    x = activation(kernels, torch.ones(1, 64))
    ids = torch.tensor([3], dtype=torch.int32, device=kernels.device)

    def results() -> list[Tensor]:
        found = (
            kernels.linear(x, packed[0]),
            kernels.head(x, packed[1]),
            kernels.embed(packed[2], ids),
        )
        return [tensor.clone() for tensor in found]

    before = results()
    weight.fill_(torch.nan)
    for old, new in zip(before, results(), strict=True):
        assert torch.equal(old, new)


def test_embed_gives_a_fresh_float32_tensor(backend, kernels: Kernels) -> None:
    table = torch.randn(50, 64, generator=generator(1))
    packed = kernels.pack_embedding(table)
    ids = torch.tensor([49, 0, 7, 7], dtype=torch.int32, device=kernels.device)
    first = kernels.embed(packed, ids)
    assert first.dtype == torch.float32
    first.fill_(torch.nan)
    close(kernels.embed(packed, ids), table[ids.cpu().long()], backend.product)


@pytest.mark.parametrize("n", [1, 3, 70])
@pytest.mark.parametrize("with_delta", [False, True])
def test_add_rms_norm(backend, kernels: Kernels, n: int, with_delta: bool) -> None:
    d = 576
    hidden = 5 * torch.randn(n, d, generator=generator(1)).to(kernels.device)
    weight = torch.rand(d, generator=generator(2)).to(kernels.device)
    pack = kernels.pack_linear(torch.randn(d, 64, generator=generator(3)) / 8)
    x = activation(kernels, torch.randn(n, 64, generator=generator(4)))
    delta = kernels.linear(x, pack) if with_delta else None
    total = hidden.cpu().double() + (delta.cpu().double() if delta is not None else 0)
    expected = (
        total / torch.sqrt((total**2).mean(dim=1, keepdim=True) + 1e-5) * weight.cpu().double()
    )
    normed = kernels.add_rms_norm(hidden, delta, weight, 1e-5)
    close(normed, expected, backend.product)
    close(hidden, total, 1e-6)  # the residual stream itself is float32 everywhere


def test_silu_and_mul(backend, kernels: Kernels) -> None:
    pack = kernels.pack_linear(torch.randn(192, 64, generator=generator(1)) / 8)
    for n in (1, 5, 33):
        gate_up = kernels.linear(
            activation(kernels, 4 * torch.randn(n, 64, generator=generator(2))), pack
        ).clone()
        gate, up = gate_up.cpu().double().chunk(2, dim=1)
        close(kernels.gate(gate_up, "silu"), gate / (1 + torch.exp(-gate)) * up, backend.product)


def test_log_softmax_leaves_the_logits(kernels: Kernels) -> None:
    logits = 20 * torch.randn(3, 500, generator=generator(1)).to(kernels.device)
    before = logits.clone()
    close(kernels.log_softmax(logits), torch.log_softmax(before.cpu().double(), dim=1), 1e-5)
    assert torch.equal(logits, before)


# Sampling


KEYS = [0, -1, 2**63 - 1, -(2**63), *random_keys(6, 1)]


def drawn(
    logits: Tensor,
    key: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> set[int]:
    """The tokens that may be drawn from a row by the definition, within rounding."""
    scaled = [value / temperature for value in logits.double().tolist()]
    highest = max(scaled)
    weights = [math.exp(value - highest) for value in scaled]
    ranking = sorted(
        (t for t in range(len(weights)) if weights[t] > 1e-37), key=lambda t: (-weights[t], t)
    )
    if top_k:
        ranking = ranking[:top_k]
    total, found = sum(weights[t] for t in ranking), set()
    for share in {top_p * (1 - 2e-6), top_p, top_p * (1 + 2e-6)} if top_p < 1 else {2.0}:
        kept, mass = [], 0.0
        for t in ranking:
            if mass >= share * total or weights[t] < min_p:
                break
            kept.append(t)
            mass += weights[t]
        times = [arrival(t, key) / weights[t] for t in kept]
        first = min(times) * (1 + 1e-5)
        found |= {t for t, time in zip(kept, times, strict=True) if time <= first}
    return found


@pytest.mark.parametrize("vocabulary", [40, 300, 5000])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 8.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 2000},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.7, "min_p": 0.01, "temperature": 1.7},
        {"top_p": 0.99, "temperature": 8.0},
        {"min_p": 1e-4, "temperature": 8.0},
    ],
    ids=str,
)
def test_sample_follows_its_definition(
    kernels: Kernels, vocabulary: int, filters: dict[str, float]
) -> None:
    logits = 3 * torch.randn(len(KEYS), vocabulary, generator=generator(vocabulary))
    how = how_to_sample(kernels, len(KEYS), key=KEYS, **filters)
    tokens = kernels.sample(logits.clone().to(kernels.device), how).tolist()
    for row, (token, key) in enumerate(zip(tokens, KEYS, strict=True)):
        assert token in drawn(logits[row], key, **filters)


@pytest.mark.parametrize(
    "filters", [{}, {"min_p": 0.02}, {"top_p": 0.9}, {"top_k": 30, "top_p": 0.9}], ids=str
)
def test_draws_follow_the_distribution(
    backend, kernels: Kernels, filters: dict[str, float]
) -> None:
    """The chi-square of many draws, of which each is of another key."""
    if backend.slowness > 1 and filters:
        pytest.skip("too slow, and what filters keep is tested by its definition")
    count, vocabulary = 4000 // backend.slowness, 60
    logits = torch.linspace(0, -4, vocabulary)[torch.randperm(vocabulary, generator=generator(3))]
    keys = random_keys(count, 2)
    tokens = torch.cat(
        [
            kernels.sample(
                logits.repeat(400, 1).to(kernels.device),
                how_to_sample(kernels, 400, key=keys[at : at + 400], **filters),
            ).cpu()
            for at in range(0, count, 400)
        ]
    )
    share, order = torch.softmax(logits.double(), 0).sort(descending=True)
    most = int(filters.get("top_k", vocabulary))
    share[most:] = 0
    share[share.cumsum(0) - share >= filters.get("top_p", 2.0) * share.sum()] = 0
    share[share < filters.get("min_p", 0.0) * share[0]] = 0
    expected = share[share > 0] / share.sum() * count
    observed = torch.bincount(tokens, minlength=vocabulary)[order].double()
    assert observed[len(expected) :].sum() == 0
    degrees = len(expected) - 1
    statistic = float(((observed[: degrees + 1] - expected) ** 2 / expected).sum())
    assert abs(statistic - degrees) < 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("filters", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.02}], ids=str)
def test_a_draw_hardly_depends_on_the_last_digits(
    backend, kernels: Kernels, filters: dict[str, float]
) -> None:
    """Where logits move by 1e-3 and ranks change with them, about one draw in a thousand does."""
    m, vocabulary = 500 // backend.slowness, 400
    logits = torch.randn(m, vocabulary, generator=generator(1))
    moved = logits + 1e-3 * torch.randn(m, vocabulary, generator=generator(2))
    how = how_to_sample(kernels, m, key=random_keys(m, 3), **filters)
    before, after = (
        kernels.sample(values.clone().to(kernels.device), how) for values in (logits, moved)
    )
    assert int((before != after).sum()) <= 5


@pytest.mark.parametrize("filters", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str)
def test_logits_of_some_tokens_alone(kernels: Kernels, filters: dict[str, float]) -> None:
    """The draw is that of all tokens, the others banned."""
    ids = torch.tensor([*range(5), *range(10, 90, 3), 255, 299])
    logits = torch.randn(len(KEYS), 300, generator=generator(1))
    banned = torch.full_like(logits, -torch.inf)
    banned[:, ids] = logits[:, ids]
    whole = kernels.sample(
        banned.to(kernels.device), how_to_sample(kernels, len(KEYS), key=KEYS, **filters)
    )
    some = how_to_sample(kernels, len(KEYS), key=KEYS, ids=ids.int().to(kernels.device), **filters)
    columns = kernels.sample(logits[:, ids].contiguous().to(kernels.device), some)
    assert torch.equal(ids[columns.cpu()], whole.cpu())


@pytest.mark.parametrize("vocabulary", [5, 70, 1000])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_a_row_that_is_no_distribution_gives_no_token(
    kernels: Kernels, filters: dict[str, float], vocabulary: int
) -> None:
    """And leaves the others as they are."""
    good = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(1))
    good[4, 2] = -torch.inf
    logits = good.clone()
    logits[0] = torch.nan
    logits[1] = -torch.inf
    logits[2, 3] = torch.inf
    logits[3, vocabulary - 1] = torch.nan
    for temperature in (0.0, 1.0):
        how = how_to_sample(kernels, 6, temperature=temperature, **filters)
        found, expected = (
            kernels.sample(rows.clone().to(kernels.device), how).tolist() for rows in (logits, good)
        )
        assert found == [-1] * 4 + expected[4:]
    for values in kernels.log_softmax(logits.to(kernels.device))[:4]:
        assert values.isnan().any()


def test_rows_mix_all_ways_to_sample(kernels: Kernels) -> None:
    m, vocabulary = 6, 3000
    logits = 3 * torch.randn(m, vocabulary, generator=generator(8))
    fields: dict[str, list[float]] = {
        "temperature": [0.0, 1.0, 0.7, 9.0, 0.0, 2.0],
        "top_k": [0, 0, 4, 0, 3, 1500],
        "top_p": [1.0, 1.0, 0.9, 0.95, 0.1, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.5, 1e-3],
        "key": [3**i for i in range(6)],
    }
    together = kernels.sample(
        logits.clone().to(kernels.device), how_to_sample(kernels, m, **fields)
    ).tolist()
    assert together[0] == int(logits[0].argmax())
    assert together[4] == int(logits[4].argmax())
    for row in range(m):
        alone = how_to_sample(
            kernels, 1, **{name: [values[row]] for name, values in fields.items()}
        )
        assert kernels.sample(logits[row : row + 1].clone().to(kernels.device), alone).tolist() == [
            together[row]
        ]


def test_the_first_of_equal_tokens_is_greedy(kernels: Kernels) -> None:
    for vocabulary in (8, 4000):
        logits = torch.zeros(2, vocabulary, device=kernels.device)
        logits[1, 3:] = 1.0
        how = how_to_sample(kernels, 2, temperature=0.0)
        assert kernels.sample(logits, how).tolist() == [0, 3]


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 5},
        {"top_k": 25},
        {"top_p": 0.3},
        {"top_p": 0.8},
        {"min_p": 0.3},
        {"top_k": 30, "top_p": 0.5, "min_p": 0.1},
    ],
    ids=str,
)
def test_filters_cut_through_equal_tokens(kernels: Kernels, filters: dict[str, float]) -> None:
    """Of tokens that are as likely as the last one kept, those of the lowest ids are."""
    for vocabulary in (40, 600):
        logits = torch.randint(
            0, 3, (len(KEYS), vocabulary), generator=generator(vocabulary)
        ).float()
        how = how_to_sample(kernels, len(KEYS), key=KEYS, **filters)
        tokens = kernels.sample(logits.clone().to(kernels.device), how).tolist()
        for row, (token, key) in enumerate(zip(tokens, KEYS, strict=True)):
            assert token in drawn(logits[row], key, **filters)


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_the_only_token_that_is_not_banned_is_taken(
    kernels: Kernels, filters: dict[str, float]
) -> None:
    only = [0, 33, 699, 512]
    logits = torch.full((4, 700), -torch.inf)
    logits[range(4), only] = torch.tensor([-2.0, 0.0, 1e4, -1e30])
    how = how_to_sample(kernels, 4, temperature=[1.0, 0.0, 0.3, 5.0], key=[0, 5, -1, 7], **filters)
    assert kernels.sample(logits.to(kernels.device), how).tolist() == only


def test_edits_and_repetition(kernels: Kernels) -> None:
    def triple(*values: tuple[int, int, float]) -> tuple[Tensor, Tensor, Tensor]:
        rows, tokens, numbers = zip(*values, strict=True)
        return (
            torch.tensor(rows, device=kernels.device),
            torch.tensor(tokens, device=kernels.device),
            torch.tensor(numbers, dtype=torch.float32, device=kernels.device),
        )

    logits = torch.tensor(
        [[3.0, 2.0, -1.0], [-1.0, -1.5, -8.0], [1.0, 5.0, 4.0]], device=kernels.device
    )
    repetition = triple((0, 0, 2.0), (1, 0, 2.0))  # 3 -> 1.5, -1 -> -2
    repeated = how_to_sample(kernels, 3, temperature=0.0, repetition=repetition)
    assert kernels.sample(logits.clone(), repeated).tolist() == [1, 1, 1]
    edits = triple((0, 1, -torch.inf), (2, 2, 1.5), (1, 2, 6.4))
    both = how_to_sample(kernels, 3, temperature=0.0, repetition=repetition, edits=edits)
    assert kernels.sample(logits.clone(), both).tolist() == [0, 1, 2]
    for key in KEYS:
        edits = triple((0, 0, -torch.inf), (1, 1, -torch.inf), (2, 1, -torch.inf))
        tokens = kernels.sample(
            logits.clone(), how_to_sample(kernels, 3, key=key, edits=edits)
        ).tolist()
        assert all(token != banned for token, banned in zip(tokens, (0, 1, 1), strict=True))


def test_temperatures_at_the_ends_of_float32(kernels: Kernels) -> None:
    logits = torch.tensor([[90.0, 80.0, -90.0]] * 3, device=kernels.device)
    how = how_to_sample(kernels, 3, temperature=[1e-38, 1e-6, 1e30], key=[7, 8, 9])
    first = min(range(3), key=lambda token: arrival(token, 9))
    assert first != 0  # or the last row would show nothing
    assert kernels.sample(logits, how).tolist() == [0, 0, first]
