from __future__ import annotations

import gc

import pytest

from asgl.kernels.memory import Arena, large_pages


@pytest.mark.parametrize("size", [0, 1, 4096, 5_000_000])
def test_large_pages_are_zeros_of_that_size(size: int) -> None:
    memory = large_pages(size)
    assert memory.shape == (size,)
    assert not memory.any()
    memory.fill_(7)


def test_pieces_of_an_arena_begin_at_lines_and_do_not_overlap() -> None:
    arena = Arena()
    sizes = [1, 64, 63, 0, 40 * 2**20, 100, 31 * 2**20, 2 * 2**20, 65]
    pieces = [arena.take(size) for size in sizes]
    for number, piece in enumerate(pieces):
        assert not piece.any()
        piece.fill_(number + 1)
    for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        assert piece.shape == (size,)
        assert piece.data_ptr() % 64 == 0 or not size
        assert bool((piece == number + 1).all())


def test_small_pieces_share_a_block() -> None:
    arena = Arena()
    first, second = arena.take(100), arena.take(100)
    assert second.data_ptr() - first.data_ptr() == 128
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_pieces_outlive_their_arena() -> None:
    piece = Arena().take(5_000_000)
    gc.collect()
    assert piece.fill_(1).sum() == 5_000_000
