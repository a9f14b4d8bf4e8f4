"""Small stand-ins for the data sets, so that no test fetches anything, and a tiny model."""

from __future__ import annotations

import pytest

from bench import data
from tiny import tiny_directory


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("bench"), max_position_embeddings=16384)


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    problems = [
        data.Problem(f"What is {n} and {n}?", f"It is {n}+{n}.", 2 * n) for n in range(1200)
    ]
    dialogues = [
        data.Dialogue(
            [f"List folder {n}.", "Go up."], [[f"ls(folder='{n}')"], ["cd(folder='..')", "pwd()"]]
        )
        for n in range(9)
    ]
    lines = [f"This is line {n} of a play, of a fair length" for n in range(3000)]
    monkeypatch.setattr(data, "gsm8k", lambda: problems)
    monkeypatch.setattr(
        data, "conversations", lambda: [[f"Tell me about {n}.", "More."] for n in range(5)]
    )
    monkeypatch.setattr(data, "dialogues", lambda: dialogues)
    monkeypatch.setattr(
        data,
        "tools",
        lambda: ["ls(folder: string): lists a folder", "cd(folder: string): goes there"],
    )
    monkeypatch.setattr(data, "shakespeare", lambda: "\n".join(lines))
    monkeypatch.setattr(
        data, "passage", lambda number, words: f"passage {number} of " + "a word " * (words // 20)
    )
