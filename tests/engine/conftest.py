"""Tests of the engine's loop run twice: one step at a time, and two in flight."""

from __future__ import annotations

import pytest
from engine_harness import InFlight


@pytest.fixture(params=[1, 2], ids=["one step", "two in flight"])
def steps_in_flight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(InFlight, "steps", request.param)
    return request.param
