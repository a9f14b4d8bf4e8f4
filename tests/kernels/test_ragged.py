from __future__ import annotations

import random

import pytest
import torch

from asgl.kernels.api import Batch
from asgl.kernels.ragged import tiles


def batch_of(rows: list[tuple[int, int]]) -> Batch:
    """Rows as (prefix, new tokens); the slot at position p of row r is 10_000 * r + p."""
    qo, kv, indices = [0], [0], []
    for number, (prefix, new) in enumerate(rows):
        qo.append(qo[-1] + new)
        kv.append(kv[-1] + prefix + new)
        indices += [10_000 * number + position for position in range(prefix + new)]
    ints = [torch.tensor(values, dtype=torch.int32) for values in (qo, kv, indices)]
    nothing = torch.zeros(qo[-1], dtype=torch.int32)
    return Batch(
        nothing, nothing, nothing, *ints, 0, max(n for _, n in rows), max(p + n for p, n in rows)
    )


ROWS = [
    [(0, 1)],
    [(5, 1), (700, 1), (0, 300), (8000, 129)],
    [(i, 1) for i in range(0, 2000, 31)],
    [(random.Random(1).randrange(500), random.Random(i).randrange(1, 40)) for i in range(50)],
]


@pytest.mark.parametrize("rows", ROWS, ids=["one", "mixed", "decode", "random"])
@pytest.mark.parametrize("heads", [1, 9])
def test_each_token_is_in_one_tile_with_its_context(
    rows: list[tuple[int, int]], heads: int
) -> None:
    batch = batch_of(rows)
    where = [(row, prefix + i) for row, (prefix, new) in enumerate(rows) for i in range(new)]
    seen: list[int] = []
    for tile in tiles(batch, heads):
        seen += tile.flat.tolist()
        assert torch.equal(tile.queries.view(-1)[tile.real], tile.flat)
        for piece in range(len(tile.queries)):
            slots = tile.slots[piece].tolist()
            for token, last in zip(
                tile.queries[piece].tolist(), tile.last[piece].tolist(), strict=True
            ):
                row, position = where[token]
                assert last == position
                assert slots[: last + 1] == [10_000 * row + p for p in range(position + 1)]
    assert sorted(seen) == list(range(len(where)))


def test_tiles_are_bounded() -> None:
    """A long prompt in one step takes no memory that grows with its square."""
    for tile in tiles(batch_of([(0, 8000)]), 9):
        assert tile.queries.numel() * tile.slots.shape[1] * 9 <= 4 * 2**20


def test_a_long_row_does_not_pad_the_short_ones() -> None:
    made = tiles(batch_of([(8000, 1)] + [(20, 1)] * 60), 9)
    assert sum(tile.slots.numel() for tile in made) < 2 * (8001 + 60 * 21)
    assert len(made) == 2
