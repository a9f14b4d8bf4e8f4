"""Agents: many short generations on prompts that grow, with long instructions in common."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from bench import data
from bench.client import Client, Options
from bench.workloads.base import Workload

# --- ReAct: a long shared prompt; thought and action, then the observation of a recorded trace ----

_SHOTS = 2


class Trace(NamedTuple):
    head: str
    question: str
    observations: tuple[str, ...]


def _react_head() -> str:
    shots = []
    for dialogue in data.dialogues()[:_SHOTS]:
        steps = "".join(
            f"Thought {number}: {request}\nAction {number}: {'; '.join(calls)}\nObservation "
            f"{number}: done.\n"
            for number, (request, calls) in enumerate(
                zip(dialogue.requests, dialogue.calls, strict=True), 1
            )
        )
        shots.append(f"Task: {dialogue.requests[0]}\n{steps}\n")
    return (
        "Use the tools of a file system to solve tasks. The tools:\n"
        + "\n".join(data.tools())
        + "\n\n"
        + "".join(shots)
    )


def _react_items(count: int) -> Sequence[Trace]:
    generator = random.Random(3)
    head = _react_head()
    available = data.dialogues()[_SHOTS:]
    items = []
    for number in range(count):
        dialogue = available[number % len(available)]
        observations = tuple(
            f"{', '.join(map(data.call_name, calls)) or 'nothing'} returned "
            f"{data.passage(generator.randrange(1000), 40)}"
            for calls in dialogue.calls[:4]
        )
        items.append(Trace(head, f"Task {number}: {dialogue.requests[0]}\n", observations))
    return items


async def _react(client: Client, item: Trace) -> int:
    s = client.prompt(item.head + item.question)
    for number, observation in enumerate(item.observations, 1):
        s.append(f"Thought {number}:")
        await s.gen(Options(max_tokens=40, stop=("Observation",), exact=True))
        s.append(f"\nObservation {number}: {observation}\n")
    return len(item.observations)


REACT = Workload(
    "react",
    "about 1,800 tokens shared by all agents; up to 4 steps of at most 40 tokens, observations "
    "replayed",
    _react_items,
    _react,
    6,
)


# --- generative agents: five templates, short outputs, one after another inside an agent ----------


_TEMPLATES = (
    (
        "Here is the plan of {name} for today in broad strokes: {plan}\nHow poignant is this "
        "event, from 1 to 10: {event}\n"
        "Rating:",
        2,
    ),
    (
        "{name} is a person of the town. {plan}\nIn which place does {name} do this: "
        "{event}\nPlace:",
        6,
    ),
    ("Convert an action to an emoji. {name} does this: {event}\nEmoji:", 4),
    ("{plan}\nTurn this into subject, predicate and object: {name} {event}\nTriple:", 16),
    ("{plan}\nSummarize in a few words what {name} feels about this: {event}\nSummary:", 20),
)


def _generative_items(count: int) -> Sequence[tuple[str, tuple[tuple[str, int], ...]]]:
    generator = random.Random(4)
    town = (
        "The town of the game has a cafe, a park, a college, a store and eleven houses. "
        + data.passage(50, 250)
        + "\n"
    )
    items = []
    for agent in range(count):
        name, plan = f"Agent {agent}", data.passage(200 + agent, 80)
        calls = []
        for _ in range(6):
            template, tokens = generator.choice(_TEMPLATES)
            calls.append(
                (
                    template.format(
                        name=name, plan=plan, event=data.passage(generator.randrange(5000), 12)
                    ),
                    tokens,
                )
            )
        items.append((town, tuple(calls)))
    return items


async def _generative(client: Client, item: tuple[str, tuple[tuple[str, int], ...]]) -> int:
    head, calls = item
    for text, tokens in calls:
        await client.prompt(head + text).gen(Options(max_tokens=tokens, exact=True))
    return len(calls)


GENERATIVE = Workload(
    "generative-agents",
    "5 templates after a town in common, 6 calls of 2-20 tokens one after another",
    _generative_items,
    _generative,
    8,
)
