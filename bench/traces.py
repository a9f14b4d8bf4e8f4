"""Traces for the simulator: who asks for what, when. Shapes of the SGLang paper's workloads, and
random radix trees.

Tokens are numbers; a trace is seeded and the same on every machine. Sizes are scaled so that a
trace of a thousand requests replays in seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Ask(NamedTuple):
    """One request: prompt tokens, and how many are generated."""

    prompt: tuple[int, ...]
    output: int


def words(generator: random.Random, count: int) -> tuple[int, ...]:
    return tuple(generator.randrange(1, 50_000) for _ in range(count))


def random_tree(
    generator: random.Random, requests: int = 400, depth: int = 5, fanout: int = 4
) -> list[Ask]:
    """Paths through a random tree of shared segments, each with a tail of its own, in random
    order."""
    segments: dict[tuple[int, ...], tuple[int, ...]] = {}
    asks = []
    for _ in range(requests):
        path: tuple[int, ...] = ()
        prompt: tuple[int, ...] = ()
        for _ in range(generator.randint(1, depth)):
            path = (*path, generator.randrange(fanout))
            if path not in segments:
                segments[path] = words(generator, generator.randint(5, 120))
            prompt += segments[path]
        asks.append(Ask(prompt + words(generator, generator.randint(1, 30)), 1))
    return asks


def few_shot(generator: random.Random, subjects: int = 10, questions: int = 40) -> list[Ask]:
    """MMLU's shape: per subject five shots shared by its questions, one token out; subjects mixed
    at random."""
    asks = []
    for _ in range(subjects):
        shots = words(generator, generator.randint(400, 1200))
        asks += [
            Ask(shots + words(generator, generator.randint(40, 120)), 1) for _ in range(questions)
        ]
    generator.shuffle(asks)
    return asks


def agents(generator: random.Random, programs: int = 40, steps: int = 6) -> list[Ask]:
    """ReAct's shape: a long prompt shared by all, a growing trace for each agent; all steps of an
    agent are in the trace."""
    shared = words(generator, 1200)
    asks = []
    for _ in range(programs):
        trace = shared + words(generator, 40)
        for _ in range(steps):
            asks.append(Ask(trace, 60))
            trace += words(generator, 60 + generator.randint(20, 120))
    generator.shuffle(asks)
    return asks


def chats(generator: random.Random, users: int = 60, turns: int = 4) -> list[Ask]:
    """Multi-turn chats that share nothing but their own history."""
    asks = []
    for _ in range(users):
        history: tuple[int, ...] = ()
        for _ in range(turns):
            history += words(generator, generator.randint(150, 400))
            asks.append(Ask(history, 8))
            history += words(generator, 8)
    generator.shuffle(asks)
    return asks


def tree_of_thought(
    generator: random.Random, problems: int = 12, branches: int = 3, levels: int = 4
) -> list[Ask]:
    asks = []
    shared = words(generator, 500)
    for _ in range(problems):
        level = [shared + words(generator, 80)]
        for _ in range(levels):
            asks += [Ask(prompt, 40) for prompt in level]
            level = [prompt + words(generator, 60) for prompt in level for _ in range(branches)][
                :24
            ]
    generator.shuffle(asks)
    return asks


TRACES: dict[str, Callable[[random.Random], list[Ask]]] = {
    "random tree": random_tree,
    "few-shot": few_shot,
    "agents": agents,
    "chats": chats,
    "tree of thought": tree_of_thought,
}


def optimum(asks: Sequence[Ask]) -> float:
    """The best hit rate that any order can reach, one request at a time: 1 - sum|edges| /
    sum|prompts|, corrected for the token that is computed even if the whole prompt is cached."""
    total = computed = 0
    seen: set[int] = set()
    for prompt, _ in sorted(
        asks
    ):  # in order, a prompt comes right after its longest prefix in the set
        total += len(prompt)
        state, fresh = 7, 0
        for token in prompt:
            state = hash((state, token))
            if state not in seen:
                seen.add(state)
                fresh += 1
        computed += max(fresh, 1)
    return 1 - computed / total
