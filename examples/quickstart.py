"""A branching program on a real model: roles, streaming, a select, and a fork whose branches share
one prompt.

Run it with `make demo`, or `python examples/quickstart.py [model]`.
"""

from __future__ import annotations

import asyncio
import sys
import time

import asgl


async def main(model: str = "smollm2-135m") -> None:
    began = time.perf_counter()
    async with asgl.Runtime(model, sampling=asgl.SamplingParams(seed=1)) as rt:
        print(
            f"{rt.model.name} ({rt.model.parameters / 1e6:.0f}M parameters, {rt.model.kernels} "
            f"kernels, {rt.model.device}), "
            f"opened in {time.perf_counter() - began:.1f} s\n"
        )
        began = time.perf_counter()

        # A prompt is a stream: what is submitted to it runs in order, whether or not it is awaited.
        s = rt.prompt()
        s += asgl.system("You are a helpful assistant who answers in one or two sentences.")
        s += asgl.user("What is the capital of France, and what is it known for?")
        print("answer    ", end="", flush=True)
        with s.role("assistant"):
            async for piece in s.gen("answer", max_tokens=60, temperature=0):
                print(piece, end="", flush=True)
        print()

        # A select scores every option after the same prompt, and goes on with the likeliest.
        s += asgl.user("Is that city larger than Lyon? Answer yes or no.")
        with s.role("assistant"):
            choice = await s.select("larger", ["Yes", "No"])
        print(f"larger?   {choice}")

        # A fork's branches start from the same tokens; they run together, and the engine computes
        # the prompt once.
        topics = ["food", "art", "history"]
        async with s.fork(3) as branches:
            for branch, topic in zip(branches, topics, strict=True):
                branch += asgl.user(f"Tell me one thing about the {topic} of the city.")
                branch += asgl.assistant(asgl.gen("fact", max_tokens=40, temperature=0))
        for topic, fact in zip(topics, branches.gather("fact"), strict=True):
            print(f"{topic:<9} {fact}")

        # Joining appends what the branches added to the parent, which goes on with all of it.
        s.join(branches)
        s += asgl.user("Write a headline about this city.")
        s += asgl.assistant(asgl.gen("headline", max_tokens=24, temperature=0))
        print(f"headline  {await s.get('headline')}")

        seconds, seen = time.perf_counter() - began, rt.statistics()
        print(
            f"\n{seen.generated_tokens} tokens generated, {seen.generated_tokens / seconds:.0f} a "
            "second; "
            f"{seen.cached_tokens} of {seen.prompt_tokens} prompt tokens came from the cache; "
            f"{seconds:.1f} s"
        )


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except asgl.AsglError as error:
        sys.exit(f"error: {error}")
