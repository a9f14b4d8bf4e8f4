"""What constrained decoding costs, and what jump-forward saves.

    python -m bench.grammar [model]

First the grammar alone: for each kind, compiling it and the processor time of one token (to push
it, to look for forced tokens, and to find the mask of the next), over generations that choose at
random, uniformly, among what is allowed. Then the model: objects of fixed fields, with jump-forward
and without it.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import asgl
from asgl.execution.grammar import Compiler
from asgl.types import GrammarSource

FIELDS = {
    "type": "object",
    "properties": {
        "given_name": {"type": "string", "maxLength": 12},
        "family_name": {"type": "string", "maxLength": 12},
        "date_of_birth": {"type": "string", "pattern": "^[12][0-9]{3}-[01][0-9]-[0-3][0-9]$"},
        "place_of_residence": {"type": "string", "maxLength": 16},
        "number_of_children": {"type": "integer", "minimum": 0, "maximum": 20},
        "is_employed": {"type": "boolean"},
        "has_driving_licence": {"type": "boolean"},
        "marital_status": {"enum": ["single", "married"]},
    },
    "required": [
        "given_name",
        "family_name",
        "date_of_birth",
        "place_of_residence",
        "number_of_children",
        "is_employed",
        "has_driving_licence",
        "marital_status",
    ],
}
SOURCES = {
    "regex, a telephone number": GrammarSource("regex", r"\+?[0-9]{2,3}( [0-9]{2,4}){2,5}"),
    "regex, any text": GrammarSource("regex", r"(.|\n){60,100}"),
    "choices, 50": GrammarSource(
        "choices", json.dumps([f"category {number}" for number in range(50)])
    ),
    "choices, 5,000": GrammarSource(
        "choices", json.dumps([f"category {number}" for number in range(5000)])
    ),
    "schema, fixed fields": GrammarSource("json_schema", json.dumps(FIELDS)),
    "schema, 100 optional fields": GrammarSource(
        "json_schema",
        json.dumps(
            {
                "type": "object",
                "properties": {f"field_{number}": {"type": "integer"} for number in range(100)},
            }
        ),
    ),
    "schema, any JSON": GrammarSource("json_schema", "{}"),
    "grammar, arithmetic": GrammarSource(
        "grammar", 'start: e\ne: t (("+" | "-") t)*\nt: /[0-9]+/ | "(" e ")"'
    ),
}


def walk(compiler: Compiler, source: GrammarSource, seed: int, most: int = 100) -> list[float]:
    """Seconds of each token of a random generation."""
    generator, matcher, spent = (
        random.Random(seed),
        compiler.compile(source).matcher(()),
        list[float](),
    )
    began = time.thread_time()
    while not matcher.complete and len(spent) < most:
        mask = matcher.mask()
        spent.append(time.thread_time() - began)
        bits = int.from_bytes(mask, "little")
        token = _any(generator, bits)
        began = time.thread_time()
        matcher.push(token)
    return spent


def _any(generator: random.Random, bits: int) -> int:
    """One of the bits that are set."""
    if bits.bit_count() > 1000:
        while not bits >> (token := generator.randrange(bits.bit_length())) & 1:
            pass
        return token
    return generator.choice(
        [place for place, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]
    )


def masks(compiler: Compiler) -> None:
    print(f"{'grammar':<30}{'compile ms':>12}{'us a token':>12}{'p99':>8}{'worst':>8}")
    compiler.compile(GrammarSource("regex", "a"))  # makes the tokenizer
    for name, source in SOURCES.items():
        began = time.perf_counter()
        compiler.compile(source)
        compiled = time.perf_counter() - began
        spent = sorted(
            second * 1e6 for seed in range(20) for second in walk(compiler, source, seed)
        )
        print(
            f"{name:<30}{compiled * 1e3:>12.1f}{statistics.fmean(spent):>12.1f}"
            f"{spent[len(spent) * 99 // 100]:>8.0f}"
            f"{spent[-1]:>8.0f}"
        )


async def objects(
    rt: asgl.Runtime, count: int, jump: bool
) -> tuple[float, int, list[Sequence[int]]]:
    """Seconds and steps of so many generations at once, and their tokens."""
    rt._running.engine.scheduler.jump_forward = jump
    await rt.flush_cache()
    before, began = rt.statistics().steps, time.perf_counter()
    handles = [
        rt.prompt(f"Person {number} of the register, as JSON:\n").gen(
            json_schema=FIELDS, max_tokens=300, seed=number
        )
        for number in range(count)
    ]
    for handle in handles:
        await handle
    return (
        time.perf_counter() - began,
        rt.statistics().steps - before,
        [handle.token_ids for handle in handles],
    )


async def main(model: str, repeats: int = 3) -> None:
    async with asgl.Runtime(model) as rt:
        masks(Compiler(rt.tokenizer))
        print(
            f"\nobjects of fixed fields, {rt.model.name} on {rt.model.device}, {rt.model.kernels} "
            "kernels; "
            f"medians of {repeats} runs, alternating\n"
            f"{'at once':>8}{'tokens':>8}{'steps':>8}{'without':>9}"
            f"{'ms':>9}{'without':>9}{'speed-up':>10}"
        )
        await objects(rt, 2, True)
        for count in (1, 8):
            runs: dict[bool, list[Any]] = {True: [], False: []}
            for _ in range(repeats):
                for jump in (True, False):
                    runs[jump].append(await objects(rt, count, jump))
            seconds = {
                jump: statistics.median(run[0] for run in found) for jump, found in runs.items()
            }
            steps = {jump: found[0][1] for jump, found in runs.items()}
            print(
                f"{count:>8}{sum(map(len, runs[True][0][2])):>8}{steps[True]:>8}{steps[False]:>9}"
                f"{seconds[True] * 1e3:>9.0f}"
                f"{seconds[False] * 1e3:>9.0f}{seconds[False] / seconds[True]:>10.2f}"
                + (
                    ""
                    if runs[True][0][2] == runs[False][0][2]
                    else "   (other tokens: near ties in bfloat16)"
                )
            )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2] or ["smollm2-135m"]))
