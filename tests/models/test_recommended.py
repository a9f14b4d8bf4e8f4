from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import asgl
from asgl.errors import ModelError
from asgl.models.recommended import recommended_gguf, recommended_hugging_face
from asgl.sampling import SamplingParams
from tiny import tiny_directory, tiny_gguf

PATH = Path("generation_config.json")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, SamplingParams()),
        ({"eos_token_id": 3, "transformers_version": "5"}, SamplingParams()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0},
            SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0),
        ),
        (
            {"temperature": 0.7, "repetition_penalty": 1.1, "top_k": None},
            SamplingParams(temperature=0.7, repetition_penalty=1.1),
        ),
        ({"do_sample": False, "top_k": 50}, SamplingParams(temperature=0)),
    ],
)
def test_what_a_generation_config_recommends(
    said: dict[str, Any], expected: SamplingParams
) -> None:
    assert recommended_hugging_face(PATH, said) == expected


def test_what_a_gguf_file_recommends() -> None:
    said = {"temp": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "penalty_repeat": 1.05}
    metadata = {f"general.sampling.{key}": value for key, value in said.items()}
    assert recommended_gguf(PATH, metadata) == SamplingParams(
        temperature=0.5, top_k=40, top_p=0.9, min_p=0.1, repetition_penalty=1.05
    )


@pytest.mark.parametrize("said", [{"temperature": "hot"}, {"top_p": 3}, {"top_k": -1}])
def test_values_that_cannot_be(said: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"generation_config\.json: .* {next(iter(said))}"):
        recommended_hugging_face(PATH, said)


async def greedy(model: Path, sampling: SamplingParams | None) -> bool:
    """Whether texts are the likeliest ones if nobody says how to sample."""
    async with asgl.Runtime(model, kernels="reference", sampling=sampling) as rt:
        texts = [await rt.prompt("the ").gen(max_tokens=12, seed=seed) for seed in range(3)]
        likeliest = await rt.prompt("the ").gen(max_tokens=12, temperature=0)
    return texts == [likeliest] * 3


async def test_it_is_the_default_of_a_runtime(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "tiny")
    (directory / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    file = tiny_gguf(tmp_path / "tiny.gguf", metadata={"general.sampling.temp": 0.0})
    for model in (directory, file):
        assert await greedy(model, None)
        assert not await greedy(model, SamplingParams()), "off by sampling="
    assert not await greedy(tiny_gguf(tmp_path / "other.gguf"), None)
