"""Programs that fork: trees and skeletons of thought, judges, several chains of reasoning."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench import data
from bench.client import Client, Options, Prompt
from bench.workloads.base import Workload


def _questions(count: int) -> Sequence[str]:
    return [problem.question for problem in data.gsm8k()[200 : 200 + count]]


def _topics(count: int) -> Sequence[str]:
    turns = data.conversations()
    return [
        f"{turns[number % len(turns)][0]}"
        + (f" (variant {number})" if number >= len(turns) else "")
        for number in range(count)
    ]


# --- tree of thought ------------------------------------------------------------------------------

_TREE_LEVELS = (
    "Propose a first step.",
    "Carry out the step.",
    "Check the result.",
    "Say the answer.",
)


async def _grow(s: Prompt, levels: Sequence[str], tokens: int, branches: int) -> None:
    if not levels:
        return

    async def branch(b: Prompt, number: int) -> None:
        b.append(f"\n{levels[0]} Variant {number}:")
        await b.gen(Options(max_tokens=tokens, temperature=0.7, seed=number, exact=True))
        await _grow(b, levels[1:], tokens, branches)

    async with s.fork(branches) as forked:
        await asyncio.gather(*(branch(b, number) for number, b in enumerate(forked)))


async def _tree(client: Client, item: str) -> None:
    await _grow(
        client.prompt(f"Solve the problem step by step.\nProblem: {item}\n"), _TREE_LEVELS, 20, 2
    )


async def _deep_tree(client: Client, item: str) -> None:
    s = client.prompt(f"Solve the problem in many small steps.\nProblem: {item}\n")
    for step in range(6):  # both branches are tried, and the first is gone on with
        async with s.fork(2) as branches:
            for number, b in enumerate(branches):
                b.append(f"\nStep {step + 1}, variant {number}:")
            texts = await asyncio.gather(
                *(
                    b.gen(Options(max_tokens=30, temperature=0.7, seed=number, exact=True))
                    for number, b in enumerate(branches)
                )
            )
        s.append(f"\nStep {step + 1}, variant 0:{texts[0]}")


TREE = Workload(
    "tree-of-thought", "2 branches on each of 4 levels, 20 tokens each", _questions, _tree, 3
)
DEEP_TREE = Workload(
    "tree-of-thought-deep",
    "6 levels of 2 branches of 30 tokens; the first goes on",
    _questions,
    _deep_tree,
    4,
)


# --- skeleton of thought: short tips, then each expanded in parallel ------------------------------


async def _skeleton(client: Client, item: str) -> int:
    s = client.prompt(f"Request: {item}\nFive short points for the answer:")
    for number in range(1, 6):
        s.append(f"\n{number}.")
        await s.gen(Options(max_tokens=8, exact=True))
    async with s.fork(5) as branches:
        for number, b in enumerate(branches, 1):
            b.append(f"\nPoint {number} as a whole paragraph:")
        texts = await asyncio.gather(*(b.gen(Options(max_tokens=64, exact=True)) for b in branches))
    for text in texts:
        s.append("\n" + text)
    return len(texts)


SKELETON = Workload(
    "skeleton-of-thought",
    "5 points of 8 tokens, then 5 paragraphs of 64 in parallel",
    _topics,
    _skeleton,
    4,
)


# --- branch, solve, merge: an article judged in six dimensions ------------------------------------

_DIMENSIONS = ("clarity", "originality", "structure", "style", "evidence", "relevance")


def _articles(count: int) -> Sequence[str]:
    return [data.passage(1000 + number, 350) for number in range(count)]


async def _judge(client: Client, item: str) -> str:
    s = client.prompt(f"Read the article, and judge it.\n\n{item}\n\n")

    async def dimension(b: Prompt, name: str) -> str:
        b.append(f"Judge its {name} in a sentence:")
        await b.gen(Options(max_tokens=24, exact=True))
        b.append(f"\nScore of its {name}, from 1 to 10:")
        return await b.gen(Options(max_tokens=2, exact=True))

    async with s.fork(len(_DIMENSIONS)) as branches:
        scores = await asyncio.gather(
            *(dimension(b, name) for b, name in zip(branches, _DIMENSIONS, strict=True))
        )
    s.append(
        "Scores:"
        + ",".join(f" {name}{score}" for name, score in zip(_DIMENSIONS, scores, strict=True))
        + "\nVerdict:"
    )
    return await s.gen(Options(max_tokens=16, exact=True))


JUDGE = Workload(
    "judge",
    "an article, 6 dimensions in parallel with a score of 2 tokens each, a verdict",
    _articles,
    _judge,
    4,
)


# --- several chains of reasoning, and an answer from all of them ----------------------------------


async def _chains(client: Client, item: str) -> str:
    s = client.prompt(f"Question: {item}\n")
    async with s.fork(5) as branches:
        for number, b in enumerate(branches):
            b.append(f"Chain {number + 1}: let us think step by step.")
        texts = await asyncio.gather(
            *(
                b.gen(Options(max_tokens=80, temperature=0.3, seed=number, exact=True))
                for number, b in enumerate(branches)
            )
        )
    for number, text in enumerate(texts):
        s.append(f"Chain {number + 1}: let us think step by step.{text}\n")
    s.append("The answer, from all of these:")
    return await s.gen(Options(max_tokens=16, exact=True))


CHAINS = Workload(
    "multi-chain",
    "5 chains of 80 tokens at temperature 0.3, then an answer of 16",
    _questions,
    _chains,
    3,
)
