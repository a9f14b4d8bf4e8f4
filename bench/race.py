"""Runs engines in turn on each workload, and makes rows of results."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Sequence
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
    """What to run. scale: the share of each workload's programs. limit: seconds after which a run is broken off.
    concurrency: programs at once; None for each workload's own. seconds: once so many have passed no
    further workload is begun; None for no bound."""

    model: str = "smollm2-135m"
    engines: Sequence[str] = ("asgl",)
    workloads: Sequence[str] = tuple(WORKLOADS)
    rounds: int = 3
    scale: float = 1.0
    limit: float = 120.0
    concurrency: Sequence[int | None] = (None,)
    seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    runtime: dict[str, Any] = field(default_factory=dict)
    """More arguments of the Runtime."""


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
        self.about = {"version": asgl.__version__, "settings": f"{self._variant.about}; {model.kernels} kernels, weights "
                      f"{model.weights}, {model.dtype}, {self._before.capacity} tokens of KV, embedded"}

    @property
    def pid(self) -> int:
        return os.getpid()

    def client(self, salt: str) -> AsglClient:
        client = AsglClient(self._runtime, self._variant, salt)
        self._before = self._runtime.statistics()
        return client

    async def recover(self) -> None:
        """Cancelled programs have left the engine by themselves."""

    def figures(self, client: Client) -> dict[str, Any]:
        assert isinstance(client, AsglClient)
        now, before = self._runtime.statistics(), self._before
        return {"work": optimum.work(ticket.request for ticket in client.tickets), "steps": now.steps,
                "run_seconds": now.run_seconds - before.run_seconds, "plan_seconds": now.plan_seconds - before.plan_seconds,
                "retractions": now.retractions}


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


async def race(settings: Settings, kind: str) -> dict[str, Any]:
    """Runs everything; the content of a result file."""
    load = os.getloadavg()
    limits = optimum.measure()
    async with AsyncExitStack() as stack:
        engines, missing = await open_engines(settings, stack)
        model = _model(settings) if any(isinstance(engine, AsglEngine) for engine in engines) else None
        for engine in engines:
            await warm_up(engine, settings)
        rows: list[dict[str, Any]] = []
        left_out: list[str] = []
        end = time.monotonic() + settings.seconds if settings.seconds is not None else float("inf")
        for name in settings.workloads:
            if time.monotonic() > end:
                left_out.append(name)
                continue
            for concurrency in settings.concurrency:
                rows += await _race_one(WORKLOADS[name], engines, settings, concurrency, model, limits)
        about = {engine.name: engine.about for engine in engines}
    return results.document(kind, rows, load_before=load, engines=about, missing=missing, left_out=left_out,
                            model=settings.model, scale=settings.scale,
                            machine_limits={name: float(f"{value:.4g}") for name, value in limits._asdict().items()},
                            equal_limits={"running": settings.limits.running, "kv_gib": settings.limits.kv_gib})


async def open_engines(settings: Settings, stack: AsyncExitStack) -> tuple[list[Engine], dict[str, str]]:
    """The engines that could be opened, and why the others are missing."""
    engines: list[Engine] = []
    missing: dict[str, str] = {}
    runtime: asgl.Runtime | None = None
    for name in settings.engines:
        if name in VARIANTS:
            if runtime is None:
                runtime = await stack.enter_async_context(_runtime(settings))
            engines.append(AsglEngine(runtime, name))
            continue
        if name not in PEERS:
            raise SystemExit(f"there is no engine {name!r}; there are {', '.join([*VARIANTS, *PEERS])}")
        try:
            peer = make_peer(name, settings.model, settings.limits)
            _say(f"starting {name}")
            await peer.start()
        except PeerError as error:
            missing[name] = str(error)
            _say(f"missing: {error}")
            continue
        stack.push_async_callback(peer.stop)
        engines.append(PeerEngine(peer))
    return engines, missing


def _runtime(settings: Settings) -> asgl.Runtime:
    options: dict[str, Any] = {"kv_cache_tokens": settings.limits.tokens(_config(settings.model).kv_bytes_per_token),
                               "max_running": settings.limits.running}
    return asgl.Runtime(settings.model, **{**options, **settings.runtime})


def _config(model: str) -> ModelConfig:
    from asgl.models.registry import open_checkpoint

    checkpoint = open_checkpoint(model)
    checkpoint.close()
    return checkpoint.config


def _model(settings: Settings) -> optimum.Model:
    """What a token costs, by the shapes of the model."""
    from asgl.models.layout import expected_shapes

    config = _config(settings.model)
    linear = sum(rows * columns for name, (rows, *rest) in expected_shapes(config).items() if name.startswith("layers.") and rest
                 for columns in rest)
    head = config.vocabulary * config.hidden_size
    # four bits and a scale and an offset of sixteen for each 32 weights; eight bits for the head
    return optimum.Model(2.0 * linear, 2.0 * head, linear * 0.625 + head * 1.0625)


async def warm_up(engine: Engine, settings: Settings) -> None:
    """A few programs of the first workload, and some that fork, apart from what is measured."""
    for name, count in ((settings.workloads[0], 2), ("tree-of-thought", 1)):
        workload = WORKLOADS[name]
        try:
            run = await execute(engine.client("Warm-up.\n"), workload, workload.items(count), concurrency=count, limit=60.0)
        except Unsupported:
            continue
        if run.timed_out:
            await engine.recover()


async def _race_one(workload: Workload, engines: Sequence[Engine], settings: Settings, concurrency: int | None,
                    model: optimum.Model | None, limits: optimum.Limits) -> list[dict[str, Any]]:
    items = workload.items(max(round(workload.programs * settings.scale), 2))
    at_once = min(concurrency or workload.concurrency, len(items))
    runs: dict[str, list[Run]] = {engine.name: [] for engine in engines}
    figures: dict[str, dict[str, Any]] = {engine.name: {} for engine in engines}
    failed: dict[str, str] = {}
    for number in range(settings.rounds):
        turn = number % len(engines)
        for engine in [*engines[turn:], *engines[:turn]]:
            if engine.name in failed or (runs[engine.name] and runs[engine.name][-1].timed_out):
                continue
            results.reset_peak_memory(engine.pid)
            client = engine.client(f"Session {zlib.crc32(f'{workload.name} {at_once} {number}'.encode()):08x}.\n")
            try:
                run = await execute(client, workload, items, concurrency=at_once, limit=settings.limit)
            except (Unsupported, PeerError) as error:
                failed[engine.name] = str(error)
                _say(f"{workload.name:<22} {engine.name:<18} {error}")
                continue
            memory = results.peak_memory(engine.pid)
            runs[engine.name].append(run)
            figures[engine.name] = {**engine.figures(client), "peak_memory_mib": memory}
            _say(f"{workload.name:<22} {engine.name:<18} {run.programs_per_second:8.2f} programs/s"
                 + (" (broken off)" if run.timed_out else ""))
            if run.timed_out:
                await engine.recover()
    rows = []
    for engine in engines:
        if engine.name in failed:
            rows.append({"workload": workload.name, "engine": engine.name, "concurrency": at_once, "error": failed[engine.name]})
            continue
        more = figures[engine.name]
        done: optimum.Work | None = more.pop("work", None)
        if done is not None:
            assert model is not None
            more |= {"optimal_hit_rate": done.hit_rate, "ideal_seconds": optimum.ideal_seconds(done, model, limits),
                     "chain": done.chain}
        rows.append(results.row(workload.name, engine.name, runs[engine.name], concurrency=at_once, **more))
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
