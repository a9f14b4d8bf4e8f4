"""Decode and prefill through each engine's own interface.

    python -m bench.decode --engine asgl --engine peers --rounds 3

Prompts of at most 256 tokens, new ones in each round; greedy. First all of them are computed, with
one token out; the decode rates are of prompts that an engine with a prefix cache finds there, so
that time is spent on what is measured. T(n) is the time that B requests of n tokens take together:

    prefill        tokens of 8 prompts / T(1), nothing of them cached
    decode, B      B x (n - 1) / (T(n) - T(1)), n = 64 for up to 8 requests, 32 for more
    32 forks       the same for branches of a prompt of 1,000 tokens computed before, n = 32

Engines take turns; the result file is written after each turn. A line that takes an engine more
than its limit is broken off, and is then missing in the table, as are those after it; so is one
whose T(1) took longer than T(n), for then the engine had lost the prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

from bench import data, results
from bench.ablations import VARIANTS
from bench.client import Client, Options
from bench.peers.all import PEERS
from bench.peers.remote import PeerError
from bench.race import Engine, Settings, open_engines, say, warm_up

PROMPT, PREFILLS, PREFIX, FORKS, FORK_TOKENS = 256, 8, 1000, 32, 32
BATCHES = {1: 64, 8: 64, 32: 32, 64: 32}
"""How many tokens each of so many requests generates."""

Count = Callable[[str], int]


async def decode(client: Client, prompts: Sequence[str], tokens: int) -> float:
    """Seconds until all have generated so many tokens."""
    began = time.perf_counter()
    await asyncio.gather(
        *(client.prompt(prompt).gen(Options(max_tokens=tokens, exact=True)) for prompt in prompts)
    )
    return time.perf_counter() - began


async def forks(client: Client, prefix: str, branches: int, tokens: int) -> float:
    """Seconds until the branches of a computed prompt have generated so many tokens each."""
    s = client.prompt(prefix)
    await s.gen(Options(max_tokens=1, exact=True))
    began = time.perf_counter()
    async with s.fork(branches) as forked:
        for number, branch in enumerate(forked):
            branch.append(f" Branch {number}:")
        await asyncio.gather(
            *(branch.gen(Options(max_tokens=tokens, exact=True)) for branch in forked)
        )
    return time.perf_counter() - began


class Prompts:
    """Texts of a given number of tokens, a new one each time."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self._made = 0

    def make(self, tokens: int) -> str:
        """As many words as give at most so many tokens."""
        self._made += 1
        words = f"{self._made} {data.passage(self._made, tokens)}".split()
        low, high = 1, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high)
                if self.count(" ".join(words[:middle])) <= tokens
                else (low, middle - 1)
            )
        return " ".join(words[:low])


async def measure(
    client: Client, prompts: Prompts, batches: Mapping[int, int]
) -> AsyncIterator[tuple[str, float]]:
    """The table's lines in one round, and tokens per second of each."""
    texts = [prompts.make(PROMPT) for _ in range(max(PREFILLS, *batches))]
    cold = texts[:PREFILLS]
    seconds = await decode(client, cold, 1)
    yield "prefill", sum(map(prompts.count, cold)) / seconds
    if texts[PREFILLS:]:
        await decode(client, texts[PREFILLS:], 1)
    for batch, tokens in batches.items():
        first = await decode(client, texts[:batch], 1)
        seconds = await decode(client, texts[:batch], tokens) - first
        if (
            seconds > 0
        ):  # else the engine had lost the prompts, and computed them again for the first token
            yield f"decode, {batch}", batch * (tokens - 1) / seconds
    first = await forks(client, prompts.make(PREFIX), FORKS, 1)
    seconds = await forks(client, prompts.make(PREFIX), FORKS, FORK_TOKENS) - first
    if seconds > 0:
        yield f"{FORKS} forks of {PREFIX:,} tokens", FORKS * (FORK_TOKENS - 1) / seconds


async def turn(
    engine: Engine, prompts: Prompts, batches: Mapping[int, int], limit: float
) -> tuple[dict[str, float], str]:
    """An engine's figures in one round, each line within the limit, and what went wrong."""
    figures: dict[str, float] = {}
    lines = measure(engine.client(""), prompts, batches)
    wrong = ""
    try:
        while True:
            async with asyncio.timeout(limit):
                line, figures[line] = await anext(lines)
    except StopAsyncIteration:
        return figures, wrong
    except TimeoutError:
        wrong = f"broken off after {limit:.0f} s of one line"
    except PeerError as error:
        wrong = str(error)
    await lines.aclose()
    await engine.recover()
    return figures, wrong


async def run(
    settings: Settings, batches: Mapping[int, int], save: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """The content of a result file: a row for each line of the table and engine. `save` gets it
    after each turn."""
    from asgl.models.registry import open_checkpoint

    load = os.getloadavg()
    checkpoint = open_checkpoint(settings.model)
    prompts = Prompts(lambda text: len(checkpoint.tokenizer.encode(text)))
    content: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        engines, missing = await open_engines(settings, stack)
        about = {engine.name: engine.about for engine in engines}
        figures: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
        wrong: dict[str, str] = {}
        for engine in engines:
            await warm_up(engine, settings)
        for number in range(settings.rounds):
            first = number % max(len(engines), 1)
            for engine in [*engines[first:], *engines[:first]]:
                if engine.name in wrong:
                    continue
                began = time.perf_counter()
                measured, failed = await turn(engine, prompts, batches, settings.limit)
                figures[engine.name].append(measured)
                if failed:
                    wrong[engine.name] = failed
                say(
                    f"round {number + 1} {engine.name:<14} {time.perf_counter() - began:5.1f} s  "
                    + "  ".join(f"{line}: {value:.0f}" for line, value in measured.items())
                    + f"  {failed}"
                )
                content = results.document(
                    "decode",
                    _rows(figures),
                    load_before=load,
                    engines=about,
                    missing=missing,
                    broken_off=wrong,
                    model=settings.model,
                )
                save(content)
    checkpoint.close()
    return content


def _rows(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for name, measured in figures.items():
        for line in dict.fromkeys(line for figures in measured for line in figures):
            values = [figures[line] for figures in measured if line in figures]
            rows.append(
                {
                    "workload": line,
                    "engine": name,
                    "rounds": len(values),
                    "tokens_per_second": round(median(values), 1),
                    "tokens_per_second_range": [round(min(values), 1), round(max(values), 1)],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decode", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--engine", action="append", choices=[*VARIANTS, *PEERS, "peers"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batch", type=int, nargs="+", default=list(BATCHES), choices=list(BATCHES)
    )
    parser.add_argument(
        "--limit", type=float, default=45.0, help="seconds after which a line is broken off"
    )
    parser.add_argument("--name", default="decode")
    options = parser.parse_args()
    engines: list[str] = []
    for name in options.engine or ["asgl"]:
        engines += PEERS if name == "peers" else (name,)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # peers are stopped with it
    content = asyncio.run(
        run(
            Settings(engines=engines, rounds=options.rounds, limit=options.limit),
            {batch: BATCHES[batch] for batch in options.batch},
            lambda content: results.write(options.name, content),
        )
    )
    for row in content["results"]:
        print(
            f"{row['workload']:<24} {row['engine']:<14} {row['tokens_per_second']:>8}  "
            f"{row['tokens_per_second_range']}"
        )


if __name__ == "__main__":
    main()
