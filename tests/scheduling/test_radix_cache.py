"""The radix cache against a model that keeps every prefix in a dict."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asgl.errors import InternalError
from asgl.plan import INT
from asgl.scheduling.radix_cache import Node, RadixCache, common_prefix

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
NAMESPACES = st.sampled_from([None, "salt"])


def ints(values) -> array[int]:
    return array(INT, values)


class Waiting:
    def __init__(self, tokens: list[int], namespace: str | None) -> None:
        self.tokens, self.namespace = ints(tokens), namespace
        self.matched, self.watched_at = -1, None


class RadixMachine(RuleBasedStateMachine):
    """Random insertions, matches, locks, evictions and watchers. Slots are never used twice, so
    each names its token."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: list[Waiting] = []
        self.cache: RadixCache[Waiting] = RadixCache(on_move=self.changed.append)
        self.fresh = 0
        self.model: dict[tuple[str | None, tuple[int, ...]], int] = {}
        self.locked: list[tuple[Node, str | None, tuple[int, ...]]] = []
        self.watchers: list[Waiting] = []

    def longest(self, tokens: list[int], namespace: str | None) -> int:
        length = 0
        while length < len(tokens) and (namespace, tuple(tokens[: length + 1])) in self.model:
            length += 1
        return length

    @rule(tokens=TOKENS, namespace=NAMESPACES)
    def insert(self, tokens, namespace):
        expected = self.longest(tokens, namespace)
        slots = ints(range(self.fresh, self.fresh + len(tokens)))
        self.fresh += len(tokens)
        node, existing, tree_slots = self.cache.insert(ints(tokens), slots, namespace)
        assert existing == expected
        for end in range(existing + 1, len(tokens) + 1):
            self.model[namespace, tuple(tokens[:end])] = slots[end - 1]
        assert list(tree_slots) == [
            self.model[namespace, tuple(tokens[:end])] for end in range(1, len(tokens) + 1)
        ]
        assert node.depth == len(tokens)

    @rule(tokens=TOKENS, namespace=NAMESPACES, limit=st.integers(0, 9), lock=st.booleans())
    def match(self, tokens, namespace, limit, lock):
        expected = min(self.longest(tokens, namespace), limit)
        node, slots = self.cache.match(ints(tokens), namespace, limit)
        assert list(slots) == [
            self.model[namespace, tuple(tokens[:end])] for end in range(1, expected + 1)
        ]
        assert node.depth == expected
        if lock:
            self.cache.lock(node)
            self.locked.append((node, namespace, tuple(tokens[:expected])))

    @rule(data=st.data())
    def unlock(self, data):
        if self.locked:
            node, _, _ = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
            self.cache.unlock(node)

    @rule(count=st.integers(0, 12))
    def evict(self, count):
        before = self.cache.evictable
        freed = self.cache.evict(count)
        assert len(freed) == min(count, before)
        gone = set(freed)
        assert len(gone) == len(freed)
        assert gone <= set(self.model.values())
        self.model = {prefix: slot for prefix, slot in self.model.items() if slot not in gone}

    @rule(tokens=TOKENS, namespace=NAMESPACES)
    def watch(self, tokens, namespace):
        watcher = Waiting(tokens, namespace)
        self.cache.watch(watcher)
        self.watchers.append(watcher)

    @rule(data=st.data())
    def unwatch(self, data):
        if self.watchers:
            self.cache.unwatch(self.watchers.pop(data.draw(st.integers(0, len(self.watchers) - 1))))

    @invariant()
    def consistent(self):
        self.cache.check()
        assert self.cache.size == len(self.model)

    @invariant()
    def prefix_closed_and_locked_paths_stay(self):
        for namespace, tokens in self.model:
            assert len(tokens) == 1 or (namespace, tokens[:-1]) in self.model
        for _, namespace, tokens in self.locked:
            assert not tokens or (namespace, tokens) in self.model

    @invariant()
    def watchers_know_their_match(self):
        for watcher in self.watchers:
            expected = self.longest(list(watcher.tokens), watcher.namespace)
            assert watcher.matched == expected
            assert self.cache.peek(watcher.tokens, watcher.namespace) == expected


TestRadixCache = RadixMachine.TestCase
TestRadixCache.settings = settings(
    max_examples=3 * settings.default.max_examples, stateful_step_count=40
)


def filled(*sequences: list[int]) -> RadixCache[Waiting]:
    cache: RadixCache[Waiting] = RadixCache()
    slot = 0
    for sequence in sequences:
        cache.insert(ints(sequence), ints(range(slot, slot + len(sequence))), None)
        slot += len(sequence)
    return cache


def test_eviction_takes_the_least_recently_used_leaf_first():
    cache = filled([1, 2, 3], [4, 5, 6], [7, 8, 9])
    cache.match(ints([1, 2, 3]), None, 3)
    assert set(cache.evict(3)) == {3, 4, 5}
    assert set(cache.evict(3)) == {6, 7, 8}


def test_eviction_takes_the_end_of_a_leaf_and_no_more_than_asked():
    cache = filled([1, 2, 3, 4])
    assert list(cache.evict(1)) == [3]
    assert cache.peek(ints([1, 2, 3, 4]), None) == 3


def test_a_parent_is_evicted_after_its_children():
    cache = filled([1, 2, 3], [1, 2, 9])
    assert cache.size == 4
    assert list(cache.evict(2)) == [2, 5]
    assert list(cache.evict(2)) == [0, 1]


def test_a_split_keeps_locks_slots_and_time():
    cache = filled([1, 2, 3, 4])
    node, _ = cache.match(ints([1, 2, 3, 4]), None, 4)
    cache.lock(node)
    upper, slots = cache.match(ints([1, 2]), None, 2)
    assert (upper.locks, list(slots), list(node.slots)) == (1, [0, 1], [2, 3])
    assert cache.evict(4) == ints([])
    cache.unlock(node)
    assert len(cache.evict(4)) == 4


def test_unlocking_more_than_locking_is_a_bug():
    cache = filled([1])
    node, _ = cache.match(ints([1]), None, 1)
    with pytest.raises(InternalError, match="unlocked more often"):
        cache.unlock(node)


def test_a_namespace_leaves_nothing_behind():
    cache: RadixCache[Waiting] = RadixCache()
    for salt in range(100):
        cache.insert(ints([1, 2]), ints([2 * salt, 2 * salt + 1]), str(salt))
    cache.evict(200)
    assert not cache._roots


@pytest.mark.parametrize(
    ("a", "b", "at", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 0, 3),
        ([1, 2, 3], [1, 2, 4], 0, 2),
        ([1, 2, 3], [9, 1, 2], 1, 2),
        ([1], [2], 0, 0),
        ([], [1], 0, 0),
        ([1, 2], [1], 0, 1),
    ],
)
def test_common_prefix(a, b, at, expected):
    assert common_prefix(ints(a), ints(b), at) == expected
