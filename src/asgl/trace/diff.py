"""What two runs of the same programs differ in: ops that say something else, take longer, or found
less in the cache.

Ops are the same if they have the same place: the titles of their streams, from the program down,
which of several such streams it is, and their number in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from asgl.trace.model import Model
from asgl.trace.nodes import Op, Stream

Place: TypeAlias = tuple[str, ...]

SLOWER, SLOWER_SECONDS, LESS_CACHED = 1.25, 0.02, 0.05
"""What counts as slower: so many times as long, and so many seconds; and as less cached: such a
part of the prompt."""


class Pair(NamedTuple):
    """An op in both runs."""

    place: Place
    before: Op
    after: Op


@dataclass
class Difference:
    """What has become of the ops of a run."""

    same: int = 0
    """How many are in both."""
    other_text: list[Pair] = field(default_factory=list[Pair])
    other_end: list[Pair] = field(default_factory=list[Pair])
    """One of them failed or was cancelled, and the other not."""
    slower: list[Pair] = field(default_factory=list[Pair])
    """The worst first."""
    faster: list[Pair] = field(default_factory=list[Pair])
    less_cached: list[Pair] = field(default_factory=list[Pair])
    only_before: list[Place] = field(default_factory=list[Place])
    only_after: list[Place] = field(default_factory=list[Place])

    @property
    def nothing(self) -> bool:
        """Whether the runs say the same, as quickly, from the same cache."""
        return not (
            self.other_text
            or self.other_end
            or self.slower
            or self.faster
            or self.less_cached
            or self.only_before
            or self.only_after
        )


def difference(before: Model, after: Model) -> Difference:
    """What differs from `before` to `after`."""
    old, new = _places(before), _places(after)
    found = Difference()
    found.only_before = [place for place in old if place not in new]
    found.only_after = [place for place in new if place not in old]
    for place, first in old.items():
        second = new.get(place)
        if second is not None:
            found.same += 1
            _compare(Pair(place, first, second), found)
    found.slower.sort(key=_gained, reverse=True)
    found.faster.sort(key=_gained)
    return found


def _compare(pair: Pair, found: Difference) -> None:
    _, before, after = pair
    if before.state != after.state:
        found.other_end.append(pair)
    elif before.text != after.text:
        found.other_text.append(pair)
    old, new = before.seconds(before.stream.run.now), after.seconds(after.stream.run.now)
    if new > old * SLOWER and new - old > SLOWER_SECONDS:
        found.slower.append(pair)
    elif old > new * SLOWER and old - new > SLOWER_SECONDS:
        found.faster.append(pair)
    old_share, new_share = cached_share(before), cached_share(after)
    if old_share is not None and new_share is not None and old_share - new_share > LESS_CACHED:
        found.less_cached.append(pair)


def _gained(pair: Pair) -> float:
    return pair.after.seconds(pair.after.stream.run.now) - pair.before.seconds(
        pair.before.stream.run.now
    )


def cached_share(op: Op) -> float | None:
    """The share of the prompts of the op's requests that was cached."""
    prompt = sum(one.prompt_tokens for one in op.requests if one.admitted_at is not None)
    cached = sum(one.cached_tokens for one in op.requests if one.admitted_at is not None)
    return cached / prompt if prompt else None


def _places(model: Model) -> Mapping[Place, Op]:
    found: dict[Place, Op] = {}
    seen: Counter[Place] = Counter()
    for number, run in enumerate(model.runs.values()):
        for root in run.roots:
            for place, stream in _streams(root, (f"run {number}",) if number else (), seen):
                for op in stream.ops.values():
                    found[(*place, f"{op.number} {op.title}")] = op
    return found


def _streams(root: Stream, above: Place, seen: Counter[Place]) -> Iterator[tuple[Place, Stream]]:
    stack = [(above, root)]
    while stack:
        path, stream = stack.pop()
        place = (*path, stream.title)
        seen[place] += 1
        if seen[place] > 1:
            place = (*path, f"{stream.title} ({seen[place]})")
        yield place, stream
        stack.extend((place, child) for child in reversed(stream.children))
