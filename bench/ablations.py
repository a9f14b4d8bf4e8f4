"""asgl without one of its parts at a time: what each of them is worth.

Ablations run on one open Runtime, whose engine gets a fresh scheduler before each run: so a run
starts with an empty cache, and an ablation is a scheduler, or a client, that lacks a part.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any, Literal

from asgl.scheduling.radix_cache import Insertion, Match, Node, RadixCache
from asgl.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs from asgl as it is."""

    name: str
    about: str
    policy: str = "lpm"
    shares_in_batch: bool = True
    cache: type[RadixCache[Any]] = RadixCache
    forks_streams: bool = True
    sequential: bool = False
    activations: Literal["auto", "int8"] = "auto"
    """Of the Runtime that it runs on."""


class NoCache(RadixCache[Any]):
    """Finds nothing: every request computes its whole prompt."""

    _inserting = False

    def match(self, tokens: array[int], namespace: str | None, limit: int) -> Match:
        if self._inserting:
            return super().match(tokens, namespace, limit)
        return Match(self._root(namespace), array(tokens.typecode))

    def insert(self, tokens: array[int], slots: array[int], namespace: str | None) -> Insertion:
        self._inserting = True
        try:
            return super().insert(tokens, slots, namespace)
        finally:
            self._inserting = False


class Table(NoCache):
    """Finds whole entries only: a cached sequence is reused by prompts that begin with all of it,
    as in a table of prompts. What two entries have in common is of no use to a third that differs
    from both."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._ends: set[Node] = set()

    def match(self, tokens: array[int], namespace: str | None, limit: int) -> Match:
        if self._inserting:
            return super().match(tokens, namespace, limit)
        node, slots = RadixCache.match(self, tokens, namespace, limit)
        while node.parent is not None and node not in self._ends:
            node = node.parent
        return Match(node, slots[: node.depth])

    def insert(self, tokens: array[int], slots: array[int], namespace: str | None) -> Insertion:
        inserted = super().insert(tokens, slots, namespace)
        self._ends.add(inserted.node)
        return inserted


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("asgl", "as it is"),
        Variant(
            "asgl:int8",
            "inputs of linear layers are rounded to 8 bits, as peers do",
            activations="int8",
        ),
        Variant("asgl:no-cache", "no prefix is reused", cache=NoCache, shares_in_batch=False),
        Variant(
            "asgl:no-tree",
            "whole cached sequences are reused, not parts of them",
            cache=Table,
            shares_in_batch=False,
        ),
        Variant("asgl:fcfs", "requests are admitted in the order they came", policy="fcfs"),
        Variant("asgl:random", "requests are admitted in a random order", policy="random"),
        Variant(
            "asgl:no-fork",
            "branches are prompts of their own, of the same text",
            forks_streams=False,
        ),
        Variant(
            "asgl:no-in-batch",
            "prompts are cached at the end of their requests: those that run together share "
            "nothing",
            shares_in_batch=False,
        ),
        Variant("asgl:sequential", "one generation at a time inside a program", sequential=True),
    )
}


ABLATIONS = tuple(name for name, variant in VARIANTS.items() if variant.activations == "auto")
"""Those that lack a part, and asgl as it is: asgl:int8 lacks none, and runs on a Runtime of its
own."""


def make_scheduler(variant: Variant, like: Scheduler) -> Scheduler:
    """A scheduler with an empty cache and the bounds of another one, without what the variant
    lacks."""
    return Scheduler(
        capacity=like.capacity,
        max_running=like.max_running,
        max_batch_tokens=like.max_batch_tokens,
        max_waiting=like.max_waiting,
        step_seconds=like.step_seconds,
        steps_in_flight=like.steps_in_flight,
        policy=variant.policy,
        cache=variant.cache,
        share_in_batch=variant.shares_in_batch,
    )
