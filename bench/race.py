"""Runs engines in turn on each workload, and makes rows of results."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import asgl
from asgl.models.config import ModelConfig
from bench import optimum, results
from bench.ablations import VARIANTS
from bench.client import Client, StringClient, Unsupported
from bench.driver import Run, execute
from bench.engine_asgl import AsglClient
from bench.peers.all import PEERS, make_peer
from bench.peers.remote import Limits, PeerError
from bench.workloads import WORKLOADS
from bench.workloads.base import Workload


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run. scale: the share of each workload's programs. limit: seconds after which a run
    is broken off. concurrency: programs at once; None for each workload's own. seconds: once so
    many have passed no further workload is begun; None for no bound."""

    model: str = "smollm2-135m"
    engines: Sequence[str] = ("asgl",)
    workloads: Sequence[str] = tuple(WORKLOADS)
    rounds: int = 3
    scale: float = 1.0
    limit: float = 30.0
    concurrency: Sequence[int | None] = (None,)
    seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    runtime: dict[str, Any] = field(default_factory=dict)
    """More arguments of the Runtime."""

    @property
    def asked(self) -> dict[str, Any]:
        """What a race must have in common with an earlier one to go on from it."""
        return {
            "engines": list(self.engines),
            "rounds": self.rounds,
            "scale": self.scale,
            "limit": self.limit,
        }


class Engine(Protocol):
    """Something that can be raced."""

    name: str
    about: dict[str, Any]

    def client(self, salt: str) -> Client: ...

    async def recover(self) -> None:
        """After a run that was broken off."""

    def figures(self, client: Client) -> dict[str, Any]:
        """More figures of the run that the client made."""
        ...

    @property
    def pid(self) -> int: ...


class AsglEngine:
    """A variant of asgl on the Runtime that all variants share."""

    def __init__(self, runtime: asgl.Runtime, variant: str) -> None:
        self.name = variant
        self._runtime = runtime
        self._variant = VARIANTS[variant]
        self._before = runtime.statistics()
        model = runtime.model
        self.about = {
            "version": asgl.__version__,
            "settings": f"{self._variant.about}; {model.kernels} kernels, weights "
            f"{model.weights}, {model.dtype}, {self._before.capacity} tokens of KV, embedded",
        }

    @property
    def pid(self) -> int:
        return os.getpid()

    def client(self, salt: str) -> AsglClient:
        client = AsglClient(self._runtime, self._variant, salt)
        self._before = self._runtime.statistics()
        return client

    async def recover(self) -> None:
        """Cancelled programs have left the engine by themselves; their last step may still run, and
        is over once another is. The next run's scheduler knows nothing of it."""
        await self._runtime.prompt("Idle.").gen(max_tokens=1, ignore_eos=True)

    def figures(self, client: Client) -> dict[str, Any]:
        assert isinstance(client, AsglClient)
        now, before = self._runtime.statistics(), self._before
        return {
            "work": optimum.work(ticket.sequence for ticket in client.tickets if ticket.sequence),
            "steps": now.steps,
            "run_seconds": now.run_seconds - before.run_seconds,
            "plan_seconds": now.plan_seconds - before.plan_seconds,
            "idle_seconds": now.idle_seconds - before.idle_seconds,
            "retractions": now.retractions,
        }


class PeerEngine:
    """A peer in its own process."""

    def __init__(self, peer: Any) -> None:
        self.name: str = peer.name
        self._peer = peer

    @property
    def about(self) -> dict[str, Any]:
        return self._peer.about

    @property
    def pid(self) -> int:
        return self._peer.pid

    def client(self, salt: str) -> StringClient:
        return StringClient(self._peer, salt)

    async def recover(self) -> None:
        await self._peer.stop()
        await self._peer.start()

    def figures(self, client: Client) -> dict[str, Any]:
        return {}


async def race(
    settings: Settings,
    kind: str,
    *,
    earlier: Sequence[Mapping[str, Any]] = (),
    save: Callable[[dict[str, Any]], object] = lambda content: None,
) -> dict[str, Any]:
    """Runs everything; the content of a result file, which `save` gets after each workload as far
    as it is.

    earlier: rows of a race with the same settings that was interrupted; the workloads that they
    have are not run again.
    """
    load = os.getloadavg()
    limits = optimum.measure()
    rows, left_out = [dict(row) for row in earlier], []
    found = {(row["workload"], row["asked_concurrency"]) for row in rows}
    end = time.monotonic() + settings.seconds if settings.seconds is not None else float("inf")
    async with AsyncExitStack() as stack:
        engines, missing = await open_engines(settings, stack)
        model = (
            model_of(settings)
            if any(isinstance(engine, AsglEngine) for engine in engines)
            else None
        )
        own = [engine for engine in engines if isinstance(engine, AsglEngine)]
        for engine in engines:
            if engine not in own[1:]:  # the variants of asgl share a Runtime
                began = time.monotonic()
                await warm_up(engine, settings)
                say(f"{engine.name} is warm after {time.monotonic() - began:.0f} s")

        def content() -> dict[str, Any]:
            return results.document(
                kind,
                rows,
                load_before=load,
                engines={engine.name: engine.about for engine in engines},
                missing=missing,
                left_out=left_out,
                model=settings.model,
                asked=settings.asked,
                machine_limits={
                    name: float(f"{value:.4g}") for name, value in limits._asdict().items()
                },
                equal_limits={"running": settings.limits.running, "kv_gib": settings.limits.kv_gib},
            )

        for name in settings.workloads:
            if time.monotonic() > end:
                left_out.append(name)
                continue
            for concurrency in settings.concurrency:
                if (name, concurrency) not in found:
                    began = time.monotonic()
                    rows += await _race_one(
                        WORKLOADS[name], engines, settings, concurrency, model, limits
                    )
                    say(f"{name}: {time.monotonic() - began:.0f} s in all")
                    save(content())
        return content()


async def open_engines(
    settings: Settings, stack: AsyncExitStack
) -> tuple[list[Engine], dict[str, str]]:
    """The engines that could be opened, and why the others are missing."""
    engines: list[Engine] = []
    missing: dict[str, str] = {}
    runtimes: dict[str, asgl.Runtime] = {}
    for name in settings.engines:
        if name in VARIANTS:
            activations = VARIANTS[name].activations
            if activations not in runtimes:
                runtimes[activations] = await stack.enter_async_context(
                    open_runtime(settings, activations=activations)
                )
            engines.append(AsglEngine(runtimes[activations], name))
            continue
        if name not in PEERS:
            raise SystemExit(
                f"there is no engine {name!r}; there are {', '.join([*VARIANTS, *PEERS])}"
            )
        try:
            peer = make_peer(name, settings.model, settings.limits)
            say(f"starting {name}")
            await peer.start()
        except PeerError as error:
            missing[name] = str(error)
            say(f"missing: {error}")
            continue
        stack.push_async_callback(peer.stop)
        engines.append(PeerEngine(peer))
    return engines, missing


def open_runtime(settings: Settings, **more: Any) -> asgl.Runtime:
    """Within the limits that hold for all engines."""
    options: dict[str, Any] = {
        "kv_cache_tokens": settings.limits.tokens(_config(settings.model).kv_bytes_per_token),
        "max_running": settings.limits.running,
    }
    return asgl.Runtime(settings.model, **{**options, **settings.runtime, **more})


def _config(model: str) -> ModelConfig:
    from asgl.models.registry import open_checkpoint

    checkpoint = open_checkpoint(model)
    checkpoint.close()
    return checkpoint.config


def model_of(settings: Settings) -> optimum.Model:
    """What a token costs, by the shapes of the model."""
    from asgl.models.layout import expected_shapes

    config = _config(settings.model)
    linear = sum(
        rows * columns
        for name, (rows, *rest) in expected_shapes(config).items()
        if name.startswith("layers.") and rest
        for columns in rest
    )
    head = config.vocabulary * config.hidden_size
    # four bits and a scale and an offset of sixteen for each 32 weights; eight bits for the head
    return optimum.Model(2.0 * linear, 2.0 * head, linear * 0.625 + head * 1.0625)


WARM_UP = (("tree-of-thought", 1), ("json-regex", 1), ("chat-short", 2))
"""Programs that fork, that are constrained, and that fill some of the KV cache: each engine runs
them before it is measured. Memory that is touched for the first time costs a virtual machine more
than the tokens that it is for."""


async def warm_up(engine: Engine, settings: Settings) -> None:
    """A few programs, apart from what is measured."""
    for name, count in ((settings.workloads[0], 2), *WARM_UP):
        workload = WORKLOADS[name]
        try:
            run = await execute(
                engine.client("Warm-up.\n"),
                workload,
                workload.items(count),
                concurrency=count,
                limit=60.0,
            )
        except Unsupported:
            continue
        except PeerError as error:
            say(f"warm-up of {engine.name} with {name}: {error}")
            await engine.recover()
            continue
        if run.timed_out:
            await engine.recover()


@dataclass(slots=True)
class _Tally:
    """What an engine has done of a workload."""

    runs: list[Run] = field(default_factory=list)
    works: list[optimum.Work] = field(default_factory=list)
    """What each run had to cost, of engines that tell."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further figures, of the last run."""
    failed: str = ""


async def _race_one(
    workload: Workload,
    engines: Sequence[Engine],
    settings: Settings,
    concurrency: int | None,
    model: optimum.Model | None,
    limits: optimum.Limits,
) -> list[dict[str, Any]]:
    items = workload.items(max(round(workload.programs * settings.scale), 2))
    at_once = min(concurrency or workload.concurrency, len(items))
    tallies = {engine.name: _Tally() for engine in engines}
    for number in range(settings.rounds):
        turn = number % len(engines)
        for engine in [*engines[turn:], *engines[:turn]]:
            tally = tallies[engine.name]
            if tally.failed or (tally.runs and tally.runs[-1].timed_out):
                continue
            salt = (
                f"Session {zlib.crc32(f'{workload.name} {concurrency} {number}'.encode()):08x}.\n"
            )
            await _run_one(engine, workload, items, salt, at_once, settings.limit, tally)
    rows = []
    for engine in engines:
        tally = tallies[engine.name]
        head: dict[str, Any] = {"asked_concurrency": concurrency}
        if tally.failed:
            rows.append(
                {
                    "workload": workload.name,
                    "engine": engine.name,
                    "concurrency": at_once,
                    "error": tally.failed,
                    **head,
                }
            )
            continue
        if tally.works:
            assert model is not None
            last = tally.works[-1]
            tally.more |= {
                "optimal_hit_rate": optimum.hit_rate(tally.works),
                "chain": last.chain,
                "ideal_seconds": optimum.ideal_seconds(last, model, limits),
            }
        rows.append(
            results.row(
                workload.name, engine.name, tally.runs, concurrency=at_once, **head, **tally.more
            )
        )
    return rows


async def _run_one(
    engine: Engine,
    workload: Workload,
    items: Sequence[Any],
    salt: str,
    at_once: int,
    limit: float,
    tally: _Tally,
) -> None:
    """One run of one engine. An engine that failed, or was broken off, is started anew: it may
    still be at work."""
    results.reset_peak_memory(engine.pid)
    client = engine.client(salt)
    shown = f"{workload.name:<22} {engine.name:<18}"
    try:
        run = await execute(client, workload, items, concurrency=at_once, limit=limit)
    except Unsupported as error:
        tally.failed = str(error)
        say(f"{shown} {error}")
        return
    except PeerError as error:
        tally.failed = str(error)
        say(f"{shown} {error}")
        await _recover(engine)
        return
    tally.runs.append(run)
    tally.more = {**engine.figures(client), "peak_memory_mib": results.peak_memory(engine.pid)}
    if "work" in tally.more:
        tally.works.append(tally.more.pop("work"))
    say(
        f"{shown} {run.programs_per_second:8.2f} programs/s in {run.seconds:5.1f} s"
        + (" (broken off)" if run.timed_out else "")
    )
    if run.timed_out:
        await _recover(engine)


async def _recover(engine: Engine) -> None:
    """A peer that does not start again fails at every later request, which its rows then say."""
    try:
        await engine.recover()
    except PeerError as error:
        say(f"{engine.name}: {error}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
