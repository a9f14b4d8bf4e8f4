"""A few lives of the soak; `make soak` runs it for ten minutes."""

from __future__ import annotations

import pytest
from soak import live


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_a_life(seed):
    life = live(seed)
    assert life.steps > 0
