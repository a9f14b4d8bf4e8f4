"""What a workload is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.client import Client


def _ungraded(item: Any, answer: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Workload:
    """A program, and what it is run on.

    items: makes so many items, the same ones every time; their order is that of submission. run:
    one program, over a client that starts its prompts. grade: whether the answer to the item is
    right, None if there is no right one. programs: how many items are a full run. concurrency: how
    many programs run at once at most.
    """

    name: str
    about: str
    items: Callable[[int], Sequence[Any]]
    run: Callable[[Client, Any], Awaitable[Any]]
    programs: int
    grade: Callable[[Any, Any], bool | None] = _ungraded
    concurrency: int = 64
