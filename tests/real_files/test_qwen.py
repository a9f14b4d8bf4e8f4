"""Qwen2.5-Coder-0.5B-Instruct Q4_K_M, the file of its makers: tensors of four quantized types."""

from __future__ import annotations

import enum

import pytest
import torch
from dequantized import logprobs, model
from fetched import QWEN
from pydantic import BaseModel, Field
from scored import errors, tokens

import asgl


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """The log-probabilities of transformers after each token of the text, in float32."""
    path = QWEN.fetch()
    return logprobs(model(path), tokens(path))


@pytest.mark.parametrize(
    ("options", "mean", "most"),
    [
        ({"kernels": "reference", "dtype": "float32"}, 1e-4, 1e-3),
        ({}, 0.05, 0.5),
    ],
    ids=["reference", "default"],
)
async def test_log_probabilities(
    expected: torch.Tensor, options: dict[str, str], mean: float, most: float
) -> None:
    found = await errors(QWEN.fetch(), expected, **options)
    assert found.mean() < mean
    assert found.max() < most


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Book(BaseModel):
    title: str = Field(max_length=60)
    author: str = Field(max_length=40)
    year: int = Field(ge=1000, le=2100)
    level: Level


@asgl.tool
async def weather(city: str, days: int = 1) -> str:
    """The weather of the next days.

    Args:
        city: Where.
        days: For how many days.
    """
    return f"{days} days of rain in {city}"


async def test_programs() -> None:
    """Chat, JSON, select, forks and tools, by what a model of its size knows."""
    greedy = asgl.SamplingParams(temperature=0, max_tokens=80)
    async with asgl.Runtime(str(QWEN.fetch()), kv_cache_tokens=8192, sampling=greedy) as rt:
        assert rt.model.architecture == "qwen2"
        await chat(rt)
        await json(rt)
        await select(rt)
        await forks(rt)
        await tools(rt)


async def chat(rt: asgl.Runtime) -> None:
    s = rt.prompt()
    s.system("You are a helpful assistant. Answer in one word.")
    s.user("What is the capital of France?")
    with s.role("assistant"):
        assert "Paris" in await s.gen("answer")
    s.user("And of Italy?")
    with s.role("assistant"):
        second = s.gen("second")
        assert "Rome" in await second
    assert second.cached_tokens > 30
    assert second.finish_reason == "eos"


async def json(rt: asgl.Runtime) -> None:
    s = rt.prompt()
    s.user("Describe the book '1984' by George Orwell, published in 1949, as JSON.")
    with s.role("assistant"):
        book = await s.gen("book", json_schema=Book)
    assert isinstance(book, Book)
    assert "Orwell" in book.author
    assert book.year == 1949


async def select(rt: asgl.Runtime) -> None:
    s = rt.prompt("The capital of Japan is the city of")
    assert await s.select("city", [" Paris", " Tokyo", " Rome", " Oslo"]) == " Tokyo"


async def forks(rt: asgl.Runtime) -> None:
    s = rt.prompt("# A table of capitals, in the form country: capital\n" * 4)
    async with s.fork(3) as branches:
        for branch, country in zip(branches, ("Italy", "Spain", "Austria"), strict=True):
            branch += f"{country}:"
            branch.gen("capital", max_tokens=4, stop="\n")
    assert [text.strip() for text in branches.gather("capital")] == ["Rome", "Madrid", "Vienna"]
    assert rt.statistics().cached_tokens > 0


async def tools(rt: asgl.Runtime) -> None:
    s = rt.prompt()
    s.system("You are a helpful assistant.", tools=[weather])
    s.user("Do I need an umbrella in Lyon in the next 3 days?")
    (call,) = await s.call_tools([weather])
    assert call.tool.name == "weather"
    assert call.arguments["city"] == "Lyon"
    assert call.arguments["days"] == 3
    assert call.result == "3 days of rain in Lyon"
    # what it says to that is too much to ask of its size: it calls again
    assert "<tool_response>\n3 days of rain in Lyon\n</tool_response><|im_end|>\n" in s.text
