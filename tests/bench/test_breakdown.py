"""Where the time goes: the parts of a run, and the losses."""

from __future__ import annotations

import pytest

from bench import breakdown, optimum, race


def test_the_parts_make_up_the_wall_time():
    row = {"seconds": 10.0, "run_seconds": 6.0, "plan": 1.0, "tokenization": 0.5, "waiting": 1.5}
    parts = breakdown.parts({"products": 2.0, "attention": 1.0}, row)
    assert parts == {
        "products": 4.0,
        "attention": 2.0,
        "sampling": 0.0,
        "other kernels": 0.0,
        "waiting": 1.0,
        "rest": 1.5,
    }
    assert sum({**row, **parts}[part] for part in breakdown.PARTS) == row["seconds"]


def test_losses_are_above_the_ideal_and_sorted():
    row = dict.fromkeys(breakdown.PARTS, 1.0) | {
        "seconds": 12.0,
        "products": 5.0,
        "ideal_seconds": 2.0,
        "recomputed": 0.5,
    }
    lost = breakdown.losses([row])
    assert lost[0]["part"] == "products"
    assert lost[0]["seconds"] == 5.0 - 2.0 - 0.5
    assert lost[0]["share"] == round(2.5 / 12, 4)
    assert [loss["seconds"] for loss in lost] == sorted(
        (loss["seconds"] for loss in lost), reverse=True
    )
    assert sum(loss["seconds"] for loss in lost) == row["seconds"] - row["ideal_seconds"]


async def test_a_profile_of_a_tiny_model(model, monkeypatch):
    monkeypatch.setattr(optimum, "measure", lambda: optimum.Limits(1e9, 1e9))
    monkeypatch.setattr(race, "WARM_UP", ())
    settings = race.Settings(
        model=str(model),
        workloads=("judge",),
        scale=0.01,
        runtime={"kernels": "reference", "dtype": "float32", "kv_cache_tokens": 20_000},
    )
    content = await breakdown.profile(settings)
    (row,) = content["results"]
    assert all(
        row[part] > 0
        for part in ("products", "attention", "other kernels", "sampling", "plan", "tokenization")
    )
    assert sum(row[part] for part in breakdown.PARTS) == pytest.approx(row["seconds"], rel=0.01)
    shown = breakdown.text(content)
    assert "judge" in shown
    assert "3. " in shown
