"""Where asgl's time goes on each workload, and the largest losses against the ideal.

    python -m bench profile [--workload NAME] [--scale 0.5]

Each workload runs twice. Once as it is: wall time, the engine's own clocks (steps on the device
thread, planning with commit and delivery, nothing to do), and a stopwatch on the tokenizer. Once
with the kernels of a step called one by one, each under a stopwatch: the shares that they have of
their sum are applied to the time of steps of the first run, in which all layers are one call. What
neither covers is the rest: hand-over between the threads, and the programs themselves.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import asgl
from asgl.kernels import select
from asgl.models.tokenizer import Tokenizer
from bench import optimum, results
from bench.ablations import VARIANTS
from bench.driver import execute
from bench.race import AsglEngine, Settings, model_of, open_runtime, say, warm_up
from bench.workloads import WORKLOADS

KERNELS = {
    "linear": "products",
    "head": "products",
    "head_some": "products",
    "attention": "attention",
    "sample": "sampling",
    "log_softmax": "sampling",
    "embed": "other kernels",
    "add_rms_norm": "other kernels",
    "rope_and_store": "other kernels",
    "silu_and_mul": "other kernels",
}
"""To which part each kernel belongs."""

PARTS = (
    "products",
    "attention",
    "other kernels",
    "sampling",
    "plan",
    "tokenization",
    "waiting",
    "rest",
)

CAUSES = {
    "products": "matrix products take longer than the machine's limits allow for the tokens that "
    "must be computed",
    "recomputed": "prompt tokens were computed that a cache without bounds would have had",
    "attention": "the ideal has no attention: reading keys and values, and their products",
    "other kernels": "norms, rotations, activations and embeddings, which the ideal leaves out",
    "sampling": "drawing tokens and log-probabilities from 49,152 logits a row",
    "plan": "planning, committing and delivering on the event loop, while no step runs",
    "tokenization": "text to tokens, on the event loop",
    "waiting": "the engine had nothing to do: programs had not asked yet",
    "rest": "hand-over between event loop and device thread, and the programs' own code",
}
"""What a loss comes from."""


class TimedKernels:
    """Kernels that are called one by one, each under a stopwatch. `seconds` by part, since the last
    `clear`."""

    def __init__(self, kernels: Any) -> None:
        self.seconds: Counter[str] = Counter()
        self._kernels = kernels
        for name, part in KERNELS.items():
            if hasattr(kernels, name):
                setattr(self, name, self._timed(getattr(kernels, name), part))

    def __getattr__(self, name: str) -> Any:
        if name in ("fuse", "run_layers"):  # which would be all layers in one call
            raise AttributeError(name)
        return getattr(self._kernels, name)

    def _timed(self, kernel: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return kernel(*arguments)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return timed


@contextmanager
def timed_kernels() -> Iterator[list[TimedKernels]]:
    """Runtimes that are opened inside have timed kernels, which are put into the list."""
    make, made = select.make_kernels, []

    def make_timed(*arguments: Any, **options: Any) -> TimedKernels:
        made.append(TimedKernels(make(*arguments, **options)))
        return made[-1]

    select.make_kernels = make_timed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield made
    finally:
        select.make_kernels = make


@contextmanager
def timed_tokenizer() -> Iterator[Counter[str]]:
    """Seconds in `encode` meanwhile."""
    seconds: Counter[str] = Counter()
    encode = Tokenizer.encode

    def timed(self: Tokenizer, text: str) -> list[int]:
        began = time.perf_counter()
        try:
            return encode(self, text)
        finally:
            seconds["tokenization"] += time.perf_counter() - began

    Tokenizer.encode = timed
    try:
        yield seconds
    finally:
        Tokenizer.encode = encode


async def profile(settings: Settings) -> dict[str, Any]:
    """The content of a result file: a row for each workload."""
    load, limits, model = os.getloadavg(), optimum.measure(), model_of(settings)
    rows: dict[str, dict[str, Any]] = {}
    with timed_tokenizer() as tokenizing:
        async with open_runtime(settings) as rt:
            engine = AsglEngine(rt, "asgl")
            await warm_up(engine, settings)
            for name in settings.workloads:
                tokenizing.clear()
                figures, seconds = await _run(engine, name, settings)
                done: optimum.Work = figures["work"]
                computed = figures["prompt_tokens"] - figures["cached_tokens"]
                rows[name] = {
                    "seconds": seconds,
                    "ideal_seconds": optimum.ideal_seconds(done, model, limits),
                    "run_seconds": figures["run_seconds"],
                    "steps": figures["steps"],
                    "recomputed": max(computed - done.computed_tokens, 0)
                    * model.token_flops
                    / limits.flops,
                    "plan": figures["plan_seconds"],
                    "tokenization": tokenizing["tokenization"],
                    "waiting": figures["idle_seconds"],
                }
                say(f"{name:<22} {seconds:6.2f} s")
    with timed_kernels() as made:
        async with open_runtime(settings) as rt:
            engine = AsglEngine(rt, "asgl")
            await warm_up(engine, settings)
            for name, row in rows.items():
                made[-1].seconds.clear()
                await _run(engine, name, settings)
                row |= parts(made[-1].seconds, row)
                say(f"{name:<22} kernels one by one")
    about = {"asgl": {"version": asgl.__version__, "settings": VARIANTS["asgl"].about}}
    shown = [
        {
            "workload": name,
            "engine": "asgl",
            **{key: float(f"{value:.4g}") for key, value in row.items()},
        }
        for name, row in rows.items()
    ]
    return results.document(
        "profile",
        shown,
        load_before=load,
        engines=about,
        missing={},
        model=settings.model,
        asked=settings.asked,
        machine_limits=limits._asdict(),
        losses=losses(rows.values()),
    )


async def _run(engine: AsglEngine, name: str, settings: Settings) -> tuple[dict[str, Any], float]:
    workload = WORKLOADS[name]
    items = workload.items(max(round(workload.programs * settings.scale), 2))
    client = engine.client(f"Profile of {name}.\n")
    run = await execute(
        client, workload, items, concurrency=workload.concurrency, limit=settings.limit
    )
    if run.timed_out:
        say(f"{name:<22} broken off after {settings.limit:.0f} s")
        await engine.recover()
    usage = {
        "prompt_tokens": sum(usage.prompt_tokens for usage in run.usages),
        "cached_tokens": sum(usage.cached_tokens or 0 for usage in run.usages),
    }
    return {**engine.figures(client), **usage}, run.seconds


def parts(kernels: Mapping[str, float], row: Mapping[str, float]) -> dict[str, float]:
    """The time of steps by kernels, and what is left of the wall time. Waiting overlaps with the
    programs' tokenization: that part of it is not counted twice."""
    whole = sum(kernels.values()) or 1.0
    by_kernel = {
        part: row["run_seconds"] * kernels.get(part, 0.0) / whole
        for part in dict.fromkeys(KERNELS.values())
    }
    waiting = max(row["waiting"] - row["tokenization"], 0.0)
    rest = max(
        row["seconds"] - row["run_seconds"] - row["plan"] - row["tokenization"] - waiting, 0.0
    )
    return {**by_kernel, "waiting": waiting, "rest": rest}


def losses(rows: Sequence[Mapping[str, float]] | Any) -> list[dict[str, Any]]:
    """Seconds above the ideal by their cause, of all workloads together, largest first."""
    lost: Counter[str] = Counter()
    for row in rows:
        for part in PARTS:
            lost[part] += row[part]
        lost["products"] -= row["ideal_seconds"] + row["recomputed"]
        lost["recomputed"] += row["recomputed"]
    seconds = sum(row["seconds"] for row in rows)
    return [
        {
            "part": part,
            "seconds": round(value, 3),
            "share": round(value / seconds, 4),
            "cause": CAUSES[part],
        }
        for part, value in lost.most_common()
    ]


def table(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: seconds, those of the ideal, and the share of each part."""
    lines = [
        [
            row["workload"],
            f"{row['seconds']:.2f}",
            f"{row['ideal_seconds']:.2f}",
            f"{row['steps']:.0f}",
            *(f"{row[part] / row['seconds']:.1%}" for part in PARTS),
        ]
        for row in content["results"]
    ]
    return ["workload", "seconds", "ideal", "steps", *PARTS], lines


def text(content: Mapping[str, Any]) -> str:
    """What the command prints."""
    head, lines = table(content)
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    shown = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [head, *lines]
    ]
    shown += ["", "The largest losses against the ideal, of all workloads together:"]
    shown += [
        f"  {number}. {loss['part']}: {loss['seconds']:.2f} s, {loss['share']:.1%} of the time: "
        f"{loss['cause']}"
        for number, loss in enumerate(content["losses"][:3], 1)
    ]
    return "\n".join(shown)
