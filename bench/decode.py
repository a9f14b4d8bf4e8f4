"""Decode and prefill through each engine's own interface.

    python -m bench.decode --engine asgl --engine openvino --rounds 3

Prompts of 256 tokens, new ones for each measurement; greedy; T(n) is the time that B requests of n tokens take:

    decode, B      B x 63 / (T(64) - T(1))
    prefill        8 x 256 / T(1), with 8 requests
    32 forks       the same as decode, for branches of a prompt of 1,000 tokens that was computed before
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

from bench import data, results
from bench.ablations import VARIANTS
from bench.client import Client, Options
from bench.peers.all import PEERS
from bench.race import Engine, Settings, open_engines, warm_up

PROMPT, GENERATED, PREFIX, FORKS, PREFILLS = 256, 64, 1000, 32, 8

Count = Callable[[str], int]


async def decode(client: Client, prompts: Sequence[str], tokens: int) -> float:
    """Seconds until all have generated so many tokens."""
    began = time.perf_counter()
    await asyncio.gather(*(client.prompt(prompt).gen(Options(max_tokens=tokens, exact=True)) for prompt in prompts))
    return time.perf_counter() - began


async def forks(client: Client, prefix: str, branches: int, tokens: int) -> float:
    """Seconds until the branches of a computed prompt have generated so many tokens each."""
    s = client.prompt(prefix)
    await s.gen(Options(max_tokens=1, exact=True))
    began = time.perf_counter()
    async with s.fork(branches) as forked:
        for number, branch in enumerate(forked):
            branch.append(f" Branch {number}:")
        await asyncio.gather(*(branch.gen(Options(max_tokens=tokens, exact=True)) for branch in forked))
    return time.perf_counter() - began


class Prompts:
    """Texts of a given number of tokens, a new one each time."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._made = 0

    def make(self, tokens: int) -> str:
        """As many words as give at most so many tokens."""
        self._made += 1
        words = f"{self._made} {data.passage(self._made, tokens)}".split()
        low, high = 1, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._count(" ".join(words[:middle])) <= tokens else (low, middle - 1)
        return " ".join(words[:low])


async def measure(engine: Engine, batches: Sequence[int], prompts: Prompts, *, generated: int = GENERATED) -> dict[str, float]:
    """Tokens per second of each of the table's lines, in one round."""
    client = engine.client("")
    figures: dict[str, float] = {}
    for batch in batches:
        first = await decode(client, [prompts.make(PROMPT) for _ in range(batch)], 1)
        all_of_them = await decode(client, [prompts.make(PROMPT) for _ in range(batch)], generated)
        figures[f"decode, {batch}"] = batch * (generated - 1) / (all_of_them - first)
    texts = [prompts.make(PROMPT) for _ in range(PREFILLS)]
    figures["prefill"] = len(texts) * PROMPT / await decode(client, texts, 1)
    first = await forks(client, prompts.make(PREFIX), FORKS, 1)
    all_of_them = await forks(client, prompts.make(PREFIX), FORKS, generated)
    figures[f"{FORKS} forks of {PREFIX:,} tokens"] = FORKS * (generated - 1) / (all_of_them - first)
    return figures


async def run(settings: Settings, batches: Sequence[int]) -> dict[str, Any]:
    """The content of a result file: a row for each line of the table and engine."""
    from asgl.models.registry import open_checkpoint

    load = os.getloadavg()
    tokenizer = open_checkpoint(settings.model).tokenizer
    prompts = Prompts(lambda text: len(tokenizer.encode(text)))
    async with AsyncExitStack() as stack:
        engines, missing = await open_engines(settings, stack)
        rounds: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
        for engine in engines:
            await warm_up(engine, settings)
        for number in range(settings.rounds):
            turn = number % len(engines)
            for engine in [*engines[turn:], *engines[:turn]]:
                rounds[engine.name].append(await measure(engine, batches, prompts))
        about = {engine.name: engine.about for engine in engines}
    rows = []
    for name, measured in rounds.items():
        for line in measured[0]:
            values = [figures[line] for figures in measured]
            rows.append({"workload": line, "engine": name, "rounds": len(values), "tokens_per_second": round(median(values), 1),
                         "tokens_per_second_range": [round(min(values), 1), round(max(values), 1)]})
    return results.document("decode", rows, load_before=load, engines=about, missing=missing, model=settings.model)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", action="append", choices=[*VARIANTS, *PEERS, "peers"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--name", default="decode")
    options = parser.parse_args()
    engines: list[str] = []
    for name in options.engine or ["asgl"]:
        engines += PEERS if name == "peers" else (name,)
    content = asyncio.run(run(Settings(engines=engines, rounds=options.rounds), options.batch))
    for row in content["results"]:
        print(f"{row['workload']:<24} {row['engine']:<14} {row['tokens_per_second']:>8}  {row['tokens_per_second_range']}")
    print(results.write(options.name, content))


if __name__ == "__main__":
    main()
