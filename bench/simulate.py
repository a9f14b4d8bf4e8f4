"""Replays traces through the real scheduler against a model of a device, in virtual time.

    python bench/simulate.py             hit rates, as tables
    python bench/simulate.py --plots docs/plots    writes the plots of docs/scheduling.md, too

The device: a step costs STEP + tokens * TOKEN seconds (fitted to the CPU back end with
SmolLM2-135M; see docs/log.md). Everything but the planning times is deterministic.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asgl.plan import SampledToken, StepResult
from asgl.scheduling import queue
from asgl.scheduling.queue import POLICIES
from asgl.scheduling.request import Request
from asgl.scheduling.scheduler import Scheduler
from traces import TRACES, Ask, optimum, random_tree, words

STEP, TOKEN = 0.004, 0.00028


@dataclass
class Outcome:
    """What a replay gave. Times in virtual seconds."""

    hit_rate: float
    seconds: float
    waits: list[float] = field(default_factory=list)
    retractions: int = 0
    plan_seconds: float = 0.0
    requests: int = 0

    def wait(self, share: float) -> float:
        return sorted(self.waits)[min(int(share * len(self.waits)), len(self.waits) - 1)]


def replay(arrivals: Sequence[tuple[float, Ask]], **options) -> Outcome:
    """Submits each request at its time, steps until all have ended."""
    scheduler = Scheduler(**options)
    events = [(at, number) for number, (at, _) in enumerate(arrivals)]
    events.sort(reverse=True)
    now, submitted_at, waits, plan_seconds = 0.0, {}, [], 0.0
    while events or scheduler.running or scheduler.waiting:
        while events and events[-1][0] <= now:
            _, number = events.pop()
            ask = arrivals[number][1]
            scheduler.submit(Request(number, ask.prompt, max_tokens=ask.output))
            submitted_at[number] = now
        began = time.perf_counter()
        plan = scheduler.plan()
        plan_seconds += time.perf_counter() - began
        waits += [
            now - submitted_at.pop(update.sequence.id)
            for update in scheduler.take_updates()
            if update.event == "admitted" and update.sequence.id in submitted_at
        ]
        if plan is None:
            now = max(now, events[-1][0]) if events else now
            continue
        now += STEP + TOKEN * plan.tokens
        began = time.perf_counter()
        scheduler.commit(
            StepResult(
                samples=tuple(
                    SampledToken(hash((plan.number, row.request_id)) % 50_000)
                    for row in plan.samples
                )
            )
        )
        plan_seconds += time.perf_counter() - began
        scheduler.take_updates()
    seen = scheduler.counters
    return Outcome(
        seen.cached_tokens / seen.prompt_tokens,
        now,
        waits,
        seen.retractions,
        plan_seconds,
        len(arrivals),
    )


def offline() -> None:
    """Everything waits from the start, one request runs at a time, and the cache holds the longest
    request, no more."""
    print("\noffline, one at a time, cache = longest request: hit rate as a share of the optimum")
    print(f"{'trace':<18}{'optimum':>9}" + "".join(f"{name:>12}" for name in POLICIES))
    for name, make in TRACES.items():
        shares = {}
        for seed in range(3):
            asks = [Ask(ask.prompt, 1) for ask in make(random.Random(seed))]
            best = optimum(asks)
            capacity = max(len(ask.prompt) for ask in asks)
            for rule in POLICIES:
                outcome = replay(
                    [(0.0, ask) for ask in asks],
                    capacity=capacity,
                    max_running=1,
                    max_batch_tokens=4096,
                    policy=rule,
                    patience=10**12,
                )
                shares.setdefault(rule, []).append(outcome.hit_rate / best)
        print(
            f"{name:<18}{best:>9.1%}"
            + "".join(f"{statistics.mean(shares[rule]):>12.1%}" for rule in POLICIES)
        )


def batched() -> None:
    """Everything waits from the start; 32 run at a time, in a cache of four times the longest
    request."""
    print(
        "\noffline, 32 at a time, cache = 4 x longest request: hit rate as a share of the optimum "
        "(virtual seconds)"
    )
    print(f"{'trace':<18}{'optimum':>9}" + "".join(f"{name:>20}" for name in POLICIES))
    for name, make in TRACES.items():
        asks = make(random.Random(0))
        best, capacity = optimum(asks), 4 * max(len(ask.prompt) + ask.output for ask in asks)
        cells = []
        for rule in POLICIES:
            outcome = replay(
                [(0.0, ask) for ask in asks], capacity=capacity, max_running=32, policy=rule
            )
            cells.append(f"{outcome.hit_rate / best:>11.1%} ({outcome.seconds:.0f} s)")
        print(f"{name:<18}{best:>9.1%}" + "".join(f"{cell:>20}" for cell in cells))


def poisson(asks: Sequence[Ask], load: float, seed: int) -> list[tuple[float, Ask]]:
    """Arrivals at random times, at `load` times the rate that a device could serve without any
    cache hit."""
    generator = random.Random(seed)
    cost = statistics.mean(
        TOKEN * (len(ask.prompt) + ask.output) + STEP * ask.output / 8 for ask in asks
    )
    at, arrivals = 0.0, []
    for ask in asks:
        at += generator.expovariate(load / cost)
        arrivals.append((at, ask))
    return arrivals


def online(plots: Path | None) -> None:
    """Arrivals at random times: hit rate against the longest waits, for policies and for constants
    of aged-lpm."""
    print(
        "\nonline, Poisson arrivals at 2.5 times the load that fits without a cache: hit rate, p50 "
        "and p99 wait"
    )
    asks = random_tree(random.Random(1), requests=1500, depth=6, fanout=4)
    capacity = 4 * max(len(ask.prompt) for ask in asks)
    arrivals = poisson(asks, load=2.5, seed=2)
    points: list[tuple[str, float, float]] = []
    for rule in POLICIES:
        outcome = replay(arrivals, capacity=capacity, max_running=16, policy=rule)
        points.append((rule, outcome.hit_rate, outcome.wait(0.99)))
        print(
            f"  {rule:<22}{outcome.hit_rate:>8.1%}{outcome.wait(0.5):>9.2f} "
            f"s{outcome.wait(0.99):>9.2f} s"
        )
    chosen = queue.AGING
    for constant in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        queue.AGING = constant
        outcome = replay(arrivals, capacity=capacity, max_running=16, policy="aged-lpm")
        points.append((f"{constant:g}", outcome.hit_rate, outcome.wait(0.99)))
        print(
            f"  aged-lpm, aging {constant:<6g}{outcome.hit_rate:>8.1%}{outcome.wait(0.5):>9.2f} "
            f"s{outcome.wait(0.99):>9.2f} s"
        )
    queue.AGING = chosen
    if plots is not None:
        _plot(
            plots / "aging.svg",
            "p99 wait, s",
            "hit rate",
            [(name, [(wait, rate)]) for name, rate, wait in points if name in POLICIES]
            + [
                (
                    "aged-lpm by constant",
                    [(wait, rate) for name, rate, wait in points if name not in POLICIES],
                )
            ],
            labels=[(wait, rate, name) for name, rate, wait in points],
        )


def small_caches(plots: Path | None) -> None:
    """Throughput as the cache shrinks to the largest request: it should fall smoothly, and nothing
    may fail."""
    print("\nthroughput against the size of the cache (largest request = 1)")
    generator = random.Random(3)
    shared = words(generator, 200)
    asks = [
        Ask(shared + words(generator, generator.randint(20, 300)), generator.randint(20, 200))
        for _ in range(200)
    ]
    largest = max(len(ask.prompt) + ask.output for ask in asks)
    curve = []
    for size in (8, 4, 2, 1.75, 1.5, 1.25, 1.1, 1.05):
        outcome = replay([(0.0, ask) for ask in asks], capacity=int(size * largest), max_running=32)
        rate = sum(ask.output for ask in asks) / outcome.seconds
        curve.append((size, rate))
        print(
            f"  {size:>5} x   {rate:>7.0f} tokens/s   hit rate {outcome.hit_rate:.1%}   "
            f"{outcome.retractions} retractions"
        )
    if plots is not None:
        _plot(
            plots / "small-caches.svg",
            "cache size, in largest requests",
            "tokens/s",
            [("lpm", curve)],
        )


def adversary() -> None:
    """An endless stream of requests that share a cached prefix, against one that shares nothing."""
    print("\nadversary: tokens computed while a loner waits (stopped at 200,000)")
    for rule in POLICIES:
        generator = random.Random(0)
        shared = words(generator, 400)
        scheduler = Scheduler(capacity=1000, max_running=8, policy=rule)
        loner = Request(10**6, words(generator, 600), max_tokens=100)
        numbers = iter(range(10**6))
        scheduler.submit(Request(next(numbers), shared))
        submitted = False
        while not loner.admissions and scheduler.counters.computed_tokens < 200_000:
            while scheduler.waiting < 12:
                scheduler.submit(
                    Request(next(numbers), (*shared, generator.randrange(1, 50_000)), max_tokens=40)
                )
            if not submitted and scheduler.counters.steps > 5:
                scheduler.submit(loner)
                submitted = True
            plan = scheduler.plan()
            assert plan is not None
            scheduler.commit(StepResult(samples=tuple(SampledToken(1) for _ in plan.samples)))
            scheduler.take_updates()
        waited = scheduler.counters.computed_tokens - loner.arrived_at
        print(f"  {rule:<12}{waited:>9,} tokens{'' if loner.admissions else '  (never admitted)'}")


def planning(plots: Path | None) -> None:
    """How long a plan takes as the queue grows: 64 requests run, the rest wait with different
    prompts."""
    print(
        "\nplanning time against the length of the queue, 64 running (median and longest of 50 "
        "plans, ms)"
    )
    curves = {}
    for rule in POLICIES:
        curve = []
        for waiting in (0, 100, 300, 1000, 3000, 10_000):
            median, longest = _plan_times(rule, waiting)
            curve.append((max(waiting, 30), 1e3 * median))
            print(f"  {rule:<12}{waiting:>7} waiting {1e3 * median:>8.2f} {1e3 * longest:>8.2f}")
        curves[rule] = curve
    if plots is not None:
        _plot(
            plots / "planning.svg", "waiting requests", "plan, ms", list(curves.items()), log=True
        )


def _plan_times(rule: str, waiting: int) -> tuple[float, float]:
    generator = random.Random(0)
    scheduler = Scheduler(capacity=200_000, max_running=64, policy=rule)
    prefixes = [words(generator, 300) for _ in range(20)]
    for number in range(64):
        scheduler.submit(
            Request(number, generator.choice(prefixes) + words(generator, 20), max_tokens=400)
        )
    times: list[float] = []
    for _ in range(80):
        _step(scheduler)
    for number in range(waiting):
        scheduler.submit(
            Request(
                1000 + number, generator.choice(prefixes) + words(generator, 20), max_tokens=400
            )
        )
    for number in range(50):
        times.append(_step(scheduler))
        if number % 5 == 4:  # one ends, one of the queue is admitted
            scheduler.cancel(scheduler.running[0])
    return statistics.median(times), max(times)


def _step(scheduler: Scheduler) -> float:
    began = time.perf_counter()
    plan = scheduler.plan()
    elapsed = time.perf_counter() - began
    assert plan is not None
    began = time.perf_counter()
    scheduler.commit(StepResult(samples=tuple(SampledToken(5) for _ in plan.samples)))
    scheduler.take_updates()
    return elapsed + time.perf_counter() - began


def _plot(path: Path, x: str, y: str, curves, *, labels=(), log: bool = False) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "asgl"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for name, points in curves:
        axes.plot(
            *zip(*points, strict=True),
            marker="o",
            label=name,
            linestyle="-" if len(points) > 1 else "none",
        )
    for at_x, at_y, text in labels:
        axes.annotate(text, (at_x, at_y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"  wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plots", type=Path, help="a folder for the plots")
    parser.add_argument(
        "--only", choices=["offline", "batched", "online", "small-caches", "adversary", "planning"]
    )
    arguments = parser.parse_args()
    if arguments.plots:
        arguments.plots.mkdir(parents=True, exist_ok=True)
    parts = {
        "offline": offline,
        "batched": batched,
        "online": lambda: online(arguments.plots),
        "small-caches": lambda: small_caches(arguments.plots),
        "adversary": adversary,
        "planning": lambda: planning(arguments.plots),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main()
