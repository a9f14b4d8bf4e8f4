"""The Runtime: opens a model, and gives prompts that are served by it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from asgl import checks
from asgl.errors import ConfigError, EngineClosedError, EngineError
from asgl.language.session import Session
from asgl.language.stream import PromptStream
from asgl.sampling import LIBRARY_DEFAULTS, SamplingParams
from asgl.scheduling.scheduler import Scheduler
from asgl.trace import RuntimeEvent, Tracer, Tracers, checked_tracers, default_tracers
from asgl.trace.logs import LogTracer, logger
from asgl.types import EngineStatistics, ModelInfo

if TYPE_CHECKING:
    from asgl.engine.engine import Engine
    from asgl.execution.runner import Runner
    from asgl.kernels.api import ActivationFormat, Kernels, WeightFormat
    from asgl.kernels.select import DTypeName, KernelName
    from asgl.language.budget import Budget
    from asgl.language.message_list import Messages
    from asgl.models.checkpoint import Checkpoint
    from asgl.models.tokenizer import Tokenizer

_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 512, 8192
_STEP_SECONDS = 0.12
"""About how long requests that decode may wait for a piece of somebody's prompt."""
_SHOWN_FAILURES = 16


class OpenResources(NamedTuple):
    """What a Runtime has while its block is open."""

    engine: Engine
    session: Session
    tokenizer: Tokenizer
    model: ModelInfo
    close: Callable[[], Awaitable[None]]
    """Closes the engine and frees what it used."""


class Runtime:
    """A model and its engine, open inside `async with`.

    Leaving the block cancels what still runs and frees everything. Failures of ops that nobody saw
    are raised there as an ExceptionGroup, unless the block itself raised. Raises ConfigError at
    once for a bad argument, and when it is entered ModelError for a model that cannot be loaded. It
    is entered once, and belongs to the event loop that it is entered on.

    Args:
        model: A registered name such as "smollm2-135m", a directory in Hugging Face's layout, a
            .gguf file (of one in several parts any), or a model of the Hugging Face hub:
            "org/repo", "org/repo:Q4_K_M" or "org/repo/file.gguf". What has to be fetched is fetched
            on first use.
        device: "auto", "cpu", "cuda" or "cuda:1".
        dtype: Of activations, keys and values.
        weights: How the weights of the linear layers are held.
        activations: "int8" lets the inputs of linear layers with quantized weights be rounded to 8
            bits, as llama.cpp and OpenVINO do, where that is faster: on CPUs with VNNI, and with
            AVX2 for weights of fewer than 8 bits. `rt.model.activations` tells whether they are.
        kernels: What is asked for by name and cannot be had raises ConfigError.
        kv_cache_tokens: Capacity of the KV cache in tokens; None takes what the memory allows.
        max_running: At most so many requests in a step.
        max_batch_tokens: At most so many new tokens in a step; None is 512 on CPUs and 8192 on
            GPUs. Longer prompts are computed in pieces, and in smaller ones while others decode.
        max_waiting: At most so many requests wait for admission, the next fails with
            QueueFullError; None for no limit.
        policy: The order in which waiting requests are admitted: "lpm" (longest cached prefix
            first), "aged-lpm" (the same with a bounded wait), "dfs-weight", "fcfs" or "random"; see
            docs/scheduling.md.
        deterministic: Logits that do not depend on what else is computed, to the last bit, at some
            cost.
        sampling: Defaults for all prompts; None takes what the model's makers recommend
            (generation_config.json, general.sampling of a GGUF file), and SamplingParams() the
            library's own, temperature 1.
        tracers: Hear of every event, see `asgl.trace`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        weights: Literal["auto", "int4", "int8", "dense"] = "auto",
        activations: Literal["auto", "int8"] = "auto",
        kernels: Literal["auto", "reference", "cpu", "triton"] = "auto",
        kv_cache_tokens: int | None = None,
        max_running: int = 64,
        max_batch_tokens: int | None = None,
        max_waiting: int | None = None,
        policy: Literal["lpm", "dfs-weight", "fcfs", "random", "aged-lpm"] = "lpm",
        deterministic: bool = False,
        sampling: SamplingParams | None = None,
        tracers: Iterable[Tracer] = (),
    ) -> None:
        checks.choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
        checks.choice("weights", weights, ("auto", "int4", "int8", "dense"))
        checks.choice("activations", activations, ("auto", "int8"))
        checks.choice("kernels", kernels, ("auto", "reference", "cpu", "triton"))
        checks.choice("policy", policy, ("lpm", "dfs-weight", "fcfs", "random", "aged-lpm"))
        checks.integer("max_running", max_running, 1)
        for name, number in (
            ("kv_cache_tokens", kv_cache_tokens),
            ("max_batch_tokens", max_batch_tokens),
            ("max_waiting", max_waiting),
        ):
            if number is not None:
                checks.integer(name, number, 1)
        if not isinstance(model, str | os.PathLike):
            raise ConfigError(
                "model must be a registered name such as 'smollm2-135m', a path, or a repo id of "
                f"the Hugging Face hub, as a str or a Path, not {model!r}"
            )
        if not isinstance(device, str):
            raise ConfigError(f"device must be a str such as 'auto' or 'cuda:1', not {device!r}")
        if sampling is not None and not isinstance(sampling, SamplingParams):
            raise ConfigError(f"sampling must be a SamplingParams, not {sampling!r}")
        self._model = model
        self._kernels: KernelName = kernels
        self._device = device
        self._dtype: DTypeName = dtype
        self._weights: WeightFormat | Literal["auto"] = weights
        self._activations: ActivationFormat = activations
        self._deterministic = checks.flag("deterministic", deterministic)
        self._capacity = kv_cache_tokens
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._policy = policy
        self._sampling = sampling
        self._tracers = checked_tracers(tracers)
        self._resources: OpenResources | None = None
        self._entered = False

    # --- opening and closing ----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise EngineError("a Runtime is entered once; make another one")
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise EngineError(
                "a Runtime needs an event loop of asyncio, and none runs here: open it in a "
                "coroutine that asyncio.run or anyio's asyncio backend runs"
            ) from error
        self._entered = True
        self._resources = await self._open()
        return self

    async def _open(self) -> OpenResources:
        # here, as it needs torch: `import asgl` is to be quick
        from asgl.engine.device import DeviceThread
        from asgl.engine.engine import Engine

        tracers = Tracers(self._tracers_attached, clock=time.perf_counter)
        device = DeviceThread()
        try:
            checkpoint, kernels, runner, fingerprint = await device.run(self._load)
            batch_tokens = self._max_batch_tokens or (
                _GPU_BATCH_TOKENS if kernels.device.type == "cuda" else _CPU_BATCH_TOKENS
            )
            recommended = checkpoint.sampling if self._sampling is None else self._sampling
            defaults = recommended.over(LIBRARY_DEFAULTS)
            engine = Engine(
                runner,
                Scheduler(
                    capacity=runner.capacity,
                    max_running=self._max_running,
                    max_batch_tokens=batch_tokens,
                    max_waiting=self._max_waiting,
                    policy=self._policy,
                    step_seconds=_STEP_SECONDS,
                    steps_in_flight=runner.steps_in_flight,
                ),
                device,
                tokenizer=checkpoint.tokenizer,
                context_length=checkpoint.config.context_length,
                chat_template=checkpoint.chat_template,
                defaults=defaults,
                tracers=tracers,
                fingerprint=fingerprint,
                clock=time.perf_counter,
            )
            engine.check_sampling(defaults)
        except BaseException:
            await device.close()
            raise
        engine.start()
        tell_opened(tracers, runner.info, runner.capacity, engine.scheduler.max_running)

        async def close() -> None:
            try:
                await engine.close()
            finally:
                tell_closed(tracers)
                await device.close()

        return OpenResources(engine, Session(engine), checkpoint.tokenizer, runner.info, close)

    def _load(self) -> tuple[Checkpoint, Kernels, Runner, str]:
        """Reads the model and packs its weights. On the device thread."""
        # here, as they need torch, and rich: `import asgl` is to be quick
        from asgl.execution.runner import make_runner
        from asgl.kernels.select import make_kernels
        from asgl.models.fingerprint import fingerprint
        from asgl.models.registry import open_checkpoint
        from asgl.progress import ProgressBar

        with ProgressBar() as progress:
            checkpoint = open_checkpoint(self._model, progress=progress)
        try:
            with ProgressBar(counts="things") as progress:
                config = checkpoint.config
                shape = config.shape
                kernels = make_kernels(
                    self._kernels,
                    self._device,
                    self._dtype,
                    self._weights,
                    self._deterministic,
                    self._activations,
                    progress=lambda name, ready, count: progress(
                        ready, count, "compiling kernels, once"
                    ),
                    shape=shape,
                )
            runner = make_runner(checkpoint, kernels, self._capacity)
            runner.warm_up()
            return checkpoint, kernels, runner, fingerprint(checkpoint)
        finally:
            checkpoint.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        opened = self._running
        self._resources = None
        try:
            await opened.session.aclose()
        finally:
            await opened.close()
        failures = opened.session.unseen_failures()
        if isinstance(end := opened.engine.end, EngineClosedError):
            # an engine that was cancelled: its ops ended as all do that are left running here
            failures = [failure for failure in failures if failure is not end]
        if not failures:
            return
        lost = opened.session.lost_failures
        many = (
            f"{len(failures)} failure{'s' if len(failures) > 1 else ''} of ops that nobody awaited"
            + (f" (and {lost} more, not kept)" if lost else "")
        )
        if error is None:
            shown = (
                f", the first {_SHOWN_FAILURES} of them" if len(failures) > _SHOWN_FAILURES else ""
            )
            raise BaseExceptionGroup(many + shown, failures[:_SHOWN_FAILURES])
        error.add_note(f"{many}; the first: {failures[0]!r}")

    @property
    def _running(self) -> OpenResources:
        if self._resources is None:
            raise EngineClosedError(
                "the Runtime is not open: use it inside `async with asgl.Runtime(...) as rt:`"
            )
        return self._resources

    # --- use --------------------------------------------------------------------------------------

    def prompt(
        self,
        text: str | Messages = "",
        *,
        sampling: SamplingParams | None = None,
        cache_salt: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        budget: Budget | None = None,
        template: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> PromptStream:
        """A new prompt stream that begins with `text`, or with a list of messages.

        Raises ConfigError for a bad argument, and EngineClosedError if the Runtime is not open.

        Args:
            text: Taken as data: what looks like a control token in it is none. A list has
                messages in the shape of the OpenAI API, see `asgl.messages`.
            sampling: Defaults for its ops.
            cache_salt: Prompts share cached prefixes only with those of the same salt.
            priority: Higher is admitted first.
            deadline: Seconds from the moment that an op asks the engine: a request that has not
                ended by then is cancelled, and the op ends with BudgetError.
            budget: Bounds all ops of the prompt and its forks, see `asgl.budget`.
            template: Values for variables that the model's chat template reads, such as
                {"enable_thinking": False}. One that it does not read raises ConfigError.
            name: For traces and error messages, and part of what seeds of its ops derive from.
        """
        return self._running.session.prompt(
            text,
            sampling=sampling,
            cache_salt=cache_salt,
            priority=priority,
            deadline=deadline,
            budget=budget,
            template=template,
            name=name,
        )

    @property
    def _tracers_attached(self) -> tuple[Tracer, ...]:
        logs = (LogTracer(),) if logger.isEnabledFor(logging.INFO) else ()
        return (*self._tracers, *default_tracers.get(), *logs)

    def statistics(self) -> EngineStatistics:
        """A snapshot of the engine. Raises EngineClosedError if the Runtime is not open."""
        return self._running.engine.statistics()

    def metrics(self) -> str:
        """What `asgl.telemetry.Metrics`, one of the tracers, has counted, in Prometheus' text
        format. ConfigError if there is none among them: nothing is counted that nobody asked
        for."""
        from asgl.telemetry.metrics import Metrics  # here: who does not ask need not wait for it

        for tracer in self._tracers_attached:
            if isinstance(tracer, Metrics):
                return tracer.text()
        raise ConfigError(
            "this Runtime counts nothing: open it with "
            "asgl.Runtime(..., tracers=[asgl.telemetry.Metrics()])"
        )

    def batch_progress(
        self, total: int, what: str, /
    ) -> AbstractContextManager[Callable[[], object]]:
        """A bar in the terminal for a batch of `total` programs; what entering it gives is called
        after each of them."""
        if any(getattr(tracer, "shows_progress", False) for tracer in self._tracers_attached):
            return nullcontext(lambda: None)
        from asgl.progress import BatchBar  # here, as it needs rich: `import asgl` is to be quick

        return BatchBar(total, what, self.statistics)

    async def flush_cache(self) -> int:
        """Drops all cached prefixes that no running request reads; how many tokens that was."""
        return self._running.engine.flush_cache()

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        kv: bool = True,
        sampling: SamplingParams | None = None,
        cache_salt: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        budget: Budget | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> PromptStream:
        """The prompt that `PromptStream.save` wrote: its text, tokens, variables and messages, and
        its place in the derivation of seeds, so that it goes on as the one that was saved would
        have.

        The other arguments are those of `prompt`. If the file has keys and values they are cached
        first, as far as slots are free, and the first op waits for that; with kv=False they are
        left alone. Raises ModelError if the file cannot be read or was saved by another model; keys
        and values that turn out damaged are a failure of the stream, which it then ends with.
        """
        return self._running.session.load(
            checks.path("path", path),
            kv=kv,
            sampling=sampling,
            cache_salt=cache_salt,
            priority=priority,
            deadline=deadline,
            budget=budget,
            template=template,
        )

    async def save_cache(self, path: str | os.PathLike[str]) -> int:
        """Writes the whole prefix cache to a file, for a warm start; how many tokens that was.

        The file has the tokens of all prompts that are cached, and the names of their namespaces.
        It appears whole or not at all. Raises ConfigError if it cannot be written.
        """
        return await self._running.engine.saved.save_cache(checks.path("path", path))

    async def load_cache(self, path: str | os.PathLike[str]) -> int:
        """Adds what `save_cache` wrote to the prefix cache; how many tokens that was.

        If there are fewer free slots than the file has tokens, besides those that running requests
        may need, those prefixes are loaded that had been used last; nothing is evicted for it.
        Raises ModelError if the file cannot be read or was saved by another model, dtype or format
        of weights.
        """
        return await self._running.engine.saved.load_cache(checks.path("path", path))

    async def pin(self, s: PromptStream, *, seconds: float = 600) -> None:
        """Computes what `s` says by now, and keeps it in the cache for that long, whatever else is
        asked for.

        A pin yields only where a request could not run at all otherwise, oldest first. It does not
        keep the stream, which may go on, or go away. Raises ConfigError for a bad argument or a
        stream of another Runtime, CapacityError for a prompt larger than the cache.

        Args:
            s: A stream of this Runtime.
            seconds: How long from now.
        """
        if not isinstance(s, PromptStream):
            raise ConfigError(f"pin takes a prompt stream, not {s!r}")
        checks.number("seconds", seconds, 0, above=True)
        engine = self._running.engine
        self._running.session.check_owns(s)
        # twice: what others took before the pin held it is computed once more, while the pin holds
        # the rest
        for _ in range(2):
            tokens = await s.prefetch()
            if engine.pin(tokens, namespace=s.cache_salt, seconds=seconds) == len(tokens):
                break

    @property
    def model(self) -> ModelInfo:
        """What was loaded. Raises EngineClosedError if the Runtime is not open."""
        return self._running.model

    @property
    def tokenizer(self) -> Tokenizer:
        """`encode(text)` gives the token ids of text, which it takes as data; `decode(ids)` the
        text of tokens; `special_tokens` the ids of control tokens by their texts."""
        return self._running.tokenizer


def tell_opened(tracers: Tracers, model: ModelInfo, capacity: int, max_running: int) -> None:
    """Tells tracers that a Runtime is open. capacity: of its KV cache, in tokens."""
    if tracers:
        tracers.emit(
            RuntimeEvent(
                "opened",
                model.name,
                model.device,
                model.kernels,
                capacity,
                max_running,
                time.time(),
            )
        )


def tell_closed(tracers: Tracers) -> None:
    """Tells tracers that the Runtime is closed: nothing follows."""
    if tracers:
        tracers.emit(RuntimeEvent("closed"))
