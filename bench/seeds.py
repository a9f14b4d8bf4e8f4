"""How often a seeded text is the same whatever else is computed: the share of texts that agree
with the one that was drawn alone, on the real model.

    python -m bench.seeds [--model MODEL] [--deterministic]

Each text is drawn alone on an empty cache, then together with all others, alone on a warm cache,
twice in a fork, and together with others again.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import asgl

TOKENS = 50
PROMPTS = (
    "Once upon a time there was a lighthouse keeper who",
    "The three most important inventions of the last century are",
    "Dear Sir or Madam, I am writing to you because",
    "def fibonacci(n):\n    ",
    "Question: Why is the sky blue?\nAnswer:",
    "It rained for forty days, and on the morning of the next one the people of the town",
)
SEEDS = (1, 2, 3, 4)
SAMPLING: dict[str, dict[str, Any]] = {
    "temperature 1": {"temperature": 1.0, "top_p": 1.0},
    "temperature 0.7, top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
}
Text = tuple[int, ...]


async def _text(s: asgl.PromptStream, seed: int, sampling: dict[str, Any]) -> Text:
    handle = s.gen(max_tokens=TOKENS, ignore_eos=True, seed=seed, **sampling)
    await handle
    return tuple(handle.token_ids)


def _first_difference(a: Text, b: Text) -> int:
    return next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), TOKENS)


async def measure(rt: asgl.Runtime, sampling: dict[str, Any]) -> None:
    cases = [(prompt, seed) for prompt in PROMPTS for seed in SEEDS]

    async def one(prompt: str, seed: int) -> Text:
        return await _text(rt.prompt(prompt), seed, sampling)

    async def together() -> list[Text]:
        others = [
            rt.prompt(prompt[: 5 + 7 * number]).gen(
                max_tokens=20 + 9 * number, ignore_eos=True, seed=100 + number
            )
            for number, prompt in enumerate(PROMPTS)
        ]
        found = await asyncio.gather(*(one(*case) for case in cases))
        await asyncio.gather(*others)
        return found

    async def forked(branch: int) -> list[Text]:
        found: list[Text] = []
        for prompt, seed in cases:
            s = rt.prompt(prompt)
            async with s.fork(3) as branches:
                texts = [
                    b.start_soon(_text, seed if number == branch else 50 + number, sampling)
                    for number, b in enumerate(branches)
                ]
            found.append(await texts[branch])
        return found

    alone: list[Text] = []
    for case in cases:
        await rt.flush_cache()
        alone.append(await one(*case))
    again = await together()
    await rt.flush_cache()
    ways = {
        "together with the others": again,
        "the same once more": await together(),
        "alone, warm": [await one(*case) for case in cases],
        "in a fork of 3": await forked(1),
    }
    for name, texts in ways.items():
        differ = [_first_difference(a, b) for a, b in zip(alone, texts, strict=True)]
        same = sum(at == TOKENS for at in differ)
        wrong = len(differ) - same
        steps = sum(min(at + 1, TOKENS) for at in differ)
        print(
            f"  {name:<26} {same:>3} of {len(cases)} texts   a token in "
            + (f"{steps / wrong:.0f} falls otherwise" if wrong else f"{steps} or more")
        )
    equal = sum(a == b for a, b in zip(again, ways["the same once more"], strict=True))
    print(f"  {'together, run to run':<26} {equal:>3} of {len(cases)} texts")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()
    async with asgl.Runtime(options.model, deterministic=options.deterministic) as rt:
        print(rt.model)
        for name, sampling in SAMPLING.items():
            print(f"{name}: texts of {TOKENS} tokens that are as when drawn alone on a cold cache")
            await measure(rt, sampling)


if __name__ == "__main__":
    asyncio.run(main())
