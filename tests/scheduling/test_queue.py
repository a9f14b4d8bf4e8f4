"""The orders of admission, fairness between namespaces, and the bound on waiting."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_harness import Harness, tokens

from asgl.errors import ConfigError, QueueFullError
from asgl.plan import INT
from asgl.scheduling.counters import Counters
from asgl.scheduling.queue import AGING, POLICIES, WaitingRequests, make_queue
from asgl.scheduling.radix_cache import RadixCache
from asgl.scheduling.request import Request
from asgl.scheduling.scheduler import Scheduler
from asgl.scheduling.sequence import SequenceState


def waiting(cache: RadixCache, number: int, prompt: list[int], priority: int = 0) -> SequenceState:
    sequence = SequenceState(Request(number, prompt, priority=priority), arrival=number)
    cache.watch(sequence)
    return sequence


def drained(queue) -> list[int]:
    order = []
    while (request := queue.pop()) is not None:
        order.append(request.id)
    return order


@pytest.fixture
def cache() -> RadixCache:
    """1 2 3 -> (4 5), (6 7);   8 9"""
    cache = RadixCache()
    for start, sequence in enumerate([[1, 2, 3, 4, 5], [1, 2, 3, 6, 7], [8, 9]]):
        cache.insert(
            array(INT, sequence), array(INT, range(10 * start, 10 * start + len(sequence))), None
        )
    return cache


SEQUENCES = [[8, 9, 0], [1, 2, 3, 4, 0], [1, 2, 3, 6, 7], [9], [1, 2, 3, 6, 7, 1], [1, 0]]


# depth-first begins below 8 9, which was used last, and then takes the subtree 1 2 3 whole
@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("lpm", [2, 4, 1, 0, 5, 3]),
        ("fcfs", [0, 1, 2, 3, 4, 5]),
        ("dfs-weight", [0, 2, 4, 1, 5, 3]),
    ],
)
def test_orders(cache, policy, order):
    queue = make_queue(policy)
    for number, sequence in enumerate(SEQUENCES):
        queue.push(waiting(cache, number, sequence))
    assert len(queue) == 6
    assert drained(queue) == order


@pytest.mark.parametrize("policy", POLICIES)
def test_higher_priorities_come_first_and_removed_requests_do_not_come(cache, policy):
    queue = make_queue(policy)
    requests = [
        waiting(cache, number, sequence, priority=number % 2)
        for number, sequence in enumerate(SEQUENCES)
    ]
    for request in requests:
        queue.push(request)
    queue.remove(requests[3])
    queue.remove(requests[3])
    assert requests[3] not in queue
    order = drained(queue)
    assert sorted(order) == [0, 1, 2, 4, 5]
    assert [number % 2 for number in order] == [1, 1, 0, 0, 0]


def test_random_is_reproducible_and_no_order_of_arrival(cache):
    orders = []
    for _ in range(2):
        queue = make_queue("random")
        for number in range(50):
            queue.push(waiting(cache, number, [1]))
        orders.append(drained(queue))
    assert orders[0] == orders[1] != list(range(50))


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12),
)
def test_depth_first_visits_each_subtree_in_one_go(cached, sequences):
    cache = RadixCache()
    for start, sequence in enumerate(cached):
        cache.insert(
            array(INT, sequence), array(INT, range(10 * start, 10 * start + len(sequence))), None
        )
    queue = make_queue("dfs-weight")
    requests = [waiting(cache, number, sequence) for number, sequence in enumerate(sequences)]
    for request in requests:
        queue.push(request)
    order = [requests[number] for number in drained(queue)]
    assert len(order) == len(requests)
    for node in cache.nodes():
        inside = [
            index for index, request in enumerate(order) if node in list(request.watched_at.path())
        ]
        assert not inside or inside == list(range(inside[0], inside[-1] + 1))


def test_an_unknown_policy():
    with pytest.raises(ConfigError, match="'sjf'"):
        Scheduler(capacity=10, policy="sjf")


def test_the_queue_may_be_bounded():
    harness = Harness(100, max_waiting=2)
    harness.submit([1], max_tokens=1)
    harness.submit([2], max_tokens=1)
    with pytest.raises(QueueFullError, match="max_waiting is 2") as caught:
        harness.scheduler.submit(Request(9, [3], max_tokens=1))
    assert (caught.value.waiting, caught.value.limit) == (2, 2)
    harness.step()
    harness.submit([3], max_tokens=1)
    harness.run()


def test_a_flood_in_one_namespace_does_not_starve_another():
    harness = Harness(400, max_running=2)
    for number in range(100):
        harness.submit(tokens(20, number), max_tokens=10, namespace="flood")
    for _ in range(30):
        harness.step()
    quiet = [
        harness.submit(tokens(20, 1000 + number), max_tokens=10, namespace="quiet")
        for number in range(5)
    ]
    ended_before = len(harness.ended)
    while not all(request.id in harness.ended for request in quiet):
        harness.step()
    # half of what was served meanwhile was the quiet one's, but for what ran already
    assert len(harness.ended) - ended_before <= 2 * len(quiet) + 3
    harness.run()
    assert len(harness.ended) == 105


def test_namespaces_get_equal_shares_of_tokens_not_of_requests():
    harness = Harness(400, max_running=1)
    for number in range(40):
        harness.submit(tokens(90, number), max_tokens=11, namespace="large")
        for part in range(4):
            harness.submit(tokens(10, 1000 + 4 * number + part), max_tokens=11, namespace="small")
    served = {"large": 0, "small": 0}
    for _ in range(600):
        harness.step()
        for number in harness.ended:
            request = harness.requests[number]
            served[request.namespace] += len(request.tokens)
        assert abs(served["large"] - served["small"]) <= 202
        harness.ended.clear()
    assert min(served.values()) > 800


def test_a_namespace_that_was_idle_has_saved_up_nothing():
    harness = Harness(400, max_running=1)
    for number in range(30):
        harness.submit(tokens(50, number), max_tokens=11, namespace="busy")
    while len(harness.ended) < 15:
        harness.step()
    for number in range(10):
        harness.submit(tokens(50, 100 + number), max_tokens=11, namespace="late")
    while len(harness.ended) < 25:
        harness.step()
    late = sum(harness.requests[number].namespace == "late" for number in harness.ended)
    assert 4 <= late <= 6
    harness.run()
    harness.verify_idle()


def one_token(namespace: str, number: int = 0) -> SequenceState:
    return SequenceState(Request(number, [1], namespace=namespace), arrival=number)


def flood_of_namespaces(queue: WaitingRequests) -> Iterator[str]:
    """Requests of one token each, every one of a namespace of its own; eight wait at any time.
    Names those that are served."""
    for number in range(100_000):
        queue.push(one_token(f"flood {number}"))
        if number >= 8:
            request = queue.pop()
            assert request is not None
            assert request.namespace is not None
            queue.charge(request, 1)
            yield request.namespace


def test_a_flood_of_namespaces_does_not_starve_one_that_had_more_than_its_share():
    queue = WaitingRequests(lambda: make_queue("fcfs"))
    flood = flood_of_namespaces(queue)
    next(flood)
    queue.push(one_token("greedy"))
    while next(flood) != "greedy":
        pass
    queue.charge(one_token("greedy"), 100)
    for _ in range(200):  # it is remembered while nothing of it waits
        next(flood)
    queue.push(one_token("greedy"))
    queue.push(one_token("modest"))
    order = [next(flood) for _ in range(2000)]
    # it has had 101 tokens: until everybody else has had as many, eight or nine at a time, it
    # waits, and no longer
    assert order.index("modest") < 20
    assert 500 < order.index("greedy") < 900


def test_a_flood_of_namespaces_leaves_nothing_behind():
    queue = WaitingRequests(lambda: make_queue("fcfs"))
    flood = flood_of_namespaces(queue)
    for _ in range(2000):
        next(flood)
    assert queue.entries < 300


def test_many_namespaces_take_turns_by_what_their_requests_cost():
    """A model of the queue: of those with the least virtual time one is next, and as many wait as
    were put in."""
    generator = random.Random(0)
    queue = WaitingRequests(lambda: make_queue("fcfs"))
    alive: list[SequenceState] = []
    served: dict[str, int] = {}
    for number in range(3000):
        if generator.random() < 0.55 or not alive:
            request = one_token(str(generator.randrange(40)), number)
            alive.append(request)
            queue.push(request)
        elif generator.random() < 0.2:
            queue.remove(alive.pop(generator.randrange(len(alive))))
        else:
            request = queue.pop()
            assert request is not None
            others = {other.namespace for other in alive}
            assert all(queue.times[request.namespace] <= queue.times[name] for name in others)
            alive.remove(request)
            queue.charge(request, generator.randint(1, 20))
            served[request.namespace] = served.get(request.namespace, 0) + 1
        assert len(queue) == len(alive)
    assert len(served) == 40


@pytest.mark.parametrize("policy", ["lpm", "aged-lpm"])
def test_what_comes_and_goes_behind_others_leaves_nothing_behind(policy):
    """Requests that are cancelled in a queue that is never empty: their entries would come up last,
    so never."""
    harness = Harness(200, max_running=1, policy=policy)
    harness.submit(tokens(10), max_tokens=150, namespace="served")
    harness.step()
    harness.submit(tokens(10, 1), max_tokens=5)
    for number in range(1000):
        for namespace in (None, "served"):
            harness.scheduler.cancel(
                harness.submit(tokens(5, number), max_tokens=5, namespace=namespace)
            )
    queue = harness.scheduler.admission.queue
    assert len(queue) == 1
    assert queue.entries < 400
    harness.run()
    assert harness.ended[1] == "length"
    harness.verify_idle()


def run_adversary(policy: str, patience: int = 500) -> tuple[int, int]:
    """An endless stream of requests that share a cached prefix, against a loner that shares
    nothing. How many tokens were computed while the loner waited, and the bound."""
    harness = Harness(250, max_running=4, max_batch_tokens=64, policy=policy, patience=patience)
    shared = tokens(100, 1)
    generator = random.Random(0)
    harness.submit(shared)
    harness.run()
    for _ in range(8):
        harness.submit([*shared, generator.randrange(50)], max_tokens=12)
    harness.step()
    ahead = [request for request in harness.requests.values() if request.state != "ended"]
    loner = harness.submit(tokens(150, 2), max_tokens=20)
    begin = harness.scheduler.counters.computed_tokens
    bound = patience + sum(request.need for request in ahead) + harness.scheduler.max_batch_tokens
    # the stream never ends before the loner was admitted, or has waited three times the bound
    while not loner.admissions and harness.scheduler.counters.computed_tokens - begin < 3 * bound:
        while harness.scheduler.waiting < 6:
            harness.submit([*shared, generator.randrange(50)], max_tokens=12)
        harness.step()
    waited = harness.scheduler.counters.computed_tokens - begin
    harness.run()
    harness.verify_idle()
    return waited, bound


def test_under_lpm_a_loner_starves_and_under_aged_lpm_its_wait_is_bounded():
    waited, bound = run_adversary("lpm")
    assert waited >= 3 * bound
    waited, bound = run_adversary("aged-lpm")
    # those that were admitted just before the patience ran out still run to their ends
    assert waited <= bound + 4 * 12


def test_aging_lets_the_old_overtake_before_the_patience_runs_out():
    waited, _ = run_adversary("aged-lpm", patience=10**9)
    assert waited < 100 / AGING + 1000


def test_a_pin_keeps_a_prefix_and_yields_when_nothing_else_can_run():
    harness = Harness(100)
    prompt = tokens(30)
    harness.submit(prompt)
    harness.run()
    harness.scheduler.kv_cache.pin(array(INT, prompt), None)
    for number in range(5):
        harness.submit(tokens(40, number + 1), max_tokens=20)
    harness.run()
    assert harness.scheduler.kv_cache.cache.peek(array(INT, prompt), None) == 30
    harness.submit(tokens(80, 99), max_tokens=10)
    harness.run()
    assert harness.scheduler.kv_cache.cache.peek(array(INT, prompt), None) < 30
    assert len(harness.ended) == 7
    harness.verify_idle()


def test_the_oldest_pin_yields_first():
    harness = Harness(100)
    prompts = [array(INT, tokens(30, number)) for number in range(3)]
    for prompt in prompts:
        harness.submit(prompt)
    harness.run()
    for prompt in prompts[1:]:
        harness.scheduler.kv_cache.pin(prompt, None)
    harness.submit(tokens(60, 9), max_tokens=1)
    harness.run()
    assert [harness.scheduler.kv_cache.cache.peek(prompt, None) for prompt in prompts] == [
        0,
        10,
        30,
    ]
    harness.verify_ended()


def test_namespaces_are_counted_apart():
    harness = Harness(400)
    for namespace in (None, "a", "a"):
        harness.submit(tokens(40), max_tokens=3, namespace=namespace)
        harness.run()
    seen = harness.scheduler.counters.namespaces
    assert (seen[None].prompt_tokens, seen[None].cached_tokens) == (40, 0)
    assert (seen["a"].prompt_tokens, seen["a"].cached_tokens, seen["a"].generated_tokens) == (
        80,
        39,
        6,
    )


def test_the_namespaces_that_are_counted_last_are_kept():
    """A flood of namespaces that come once does not drop the counts of one that comes again and
    again."""
    counters = Counters()
    for number in range(3000):
        for namespace in (None, str(number)):
            counters.admitted(SequenceState(Request(number, [1, 2], namespace=namespace)))
    assert len(counters.namespaces) == 1024
    assert counters.namespaces[None].prompt_tokens == 2 * 3000
    assert "2999" in counters.namespaces


def test_a_namespace_that_is_left_leaves_no_root_behind():
    """Requests cancelled at any point of their lives, and pins of what is not cached."""
    harness = Harness(200, max_running=2, max_batch_tokens=16)
    for number in range(60):
        request = harness.submit(tokens(30, number), max_tokens=3, namespace=str(number))
        for _ in range(number % 6):
            harness.step()
        harness.begin() if number % 2 else None
        harness.scheduler.cancel(request)
        harness.finish() if harness.in_flight else None
        harness.scheduler.kv_cache.pin(array(INT, tokens(30, number)), f"pin {number}")
    harness.run()
    while harness.scheduler.kv_cache.drop_pin():
        pass
    harness.scheduler.kv_cache.flush()
    assert not harness.scheduler.kv_cache.cache.namespaces
    harness.verify_idle()
