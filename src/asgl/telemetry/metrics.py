"""Prometheus metrics, under the names that dashboards for vLLM and SGLang have, with the prefix
`asgl:` in place of theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from asgl.errors import ConfigError
from asgl.trace.events import (
    Event,
    EvictionEvent,
    RequestEvent,
    RuntimeEvent,
    StepEvent,
    TokenEvent,
    ToolEvent,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


@dataclass
class _Request:
    submitted: float
    waiting: bool = True
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass
class _Run:
    model: str = ""
    capacity: int = 0
    requests: dict[int, _Request] = field(default_factory=dict[int, _Request])
    prompt: int = 0
    cached: int = 0
    rate_from: float = 0.0
    rate_tokens: int = 0


class Metrics:
    """A tracer that counts: `Runtime.metrics()` gives what it has counted, as does `text()`.

    Raises ConfigError if prometheus_client is not installed: `pip install 'asgl-lang[metrics]'`.

    Args:
        registry: A prometheus_client.CollectorRegistry to be part of; None for one of its own.
    """

    def __init__(self, registry: Any = None) -> None:
        try:
            self._client: Any = import_module("prometheus_client")
        except ImportError as error:
            raise ConfigError(
                "metrics need prometheus_client: pip install 'asgl-lang[metrics]'"
            ) from error
        self.registry: Any = self._client.CollectorRegistry() if registry is None else registry
        self._runs: dict[int, _Run] = {}
        gauge, counter, histogram = self._gauge, self._counter, self._histogram
        # vLLM's names
        self._running = gauge("num_requests_running", "Requests that were admitted and run.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for admission.")
        self._usage = gauge("kv_cache_usage_perc", "Share of the KV cache that requests hold.")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._generated = counter("generation_tokens", "Tokens that were generated.")
        self._queries = counter("prefix_cache_queries", "Tokens that were looked up in the cache.")
        self._hits = counter("prefix_cache_hits", "Those of them that were cached.")
        self._preemptions = counter("num_preemptions", "Retractions of running requests.")
        self._success = counter("request_success", "Requests that ended.", "finished_reason")
        self._first = histogram("time_to_first_token_seconds", "From submission.", _SECONDS)
        self._gap = histogram("inter_token_latency_seconds", "Between tokens.", _GAP_SECONDS)
        self._whole = histogram("e2e_request_latency_seconds", "From submission to end.", _SECONDS)
        self._queue = histogram("request_queue_time_seconds", "Until admission.", _SECONDS)
        self._prefill = histogram("request_prefill_time_seconds", "To first token.", _SECONDS)
        self._decode = histogram("request_decode_time_seconds", "After first token.", _SECONDS)
        self._prompts = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._outputs = histogram("request_generation_tokens", "Of a request.", _TOKENS)
        self._iteration = histogram("iteration_tokens_total", "Tokens of a step.", _TOKENS)
        # SGLang's, where they differ
        self._running_too = gauge("num_running_reqs", "As num_requests_running.")
        self._waiting_too = gauge("num_queue_reqs", "As num_requests_waiting.")
        self._token_usage = gauge("token_usage", "As kv_cache_usage_perc.")
        self._used = gauge("num_used_tokens", "Tokens of the KV cache that requests hold.")
        self._hit_rate = gauge("cache_hit_rate", "Share of prompt tokens that were cached.")
        self._throughput = gauge("gen_throughput", "Generated tokens a second, of late.")
        # its own
        self._evicted = counter("evicted_tokens", "Tokens dropped from the prefix cache.", "cause")
        self._tools = histogram("tool_seconds", "How long tools ran.", _SECONDS, "tool")
        self._take: dict[type[Any], Any] = {
            RuntimeEvent: self._runtime,
            RequestEvent: self._request,
            TokenEvent: self._token,
            StepEvent: self._step,
            EvictionEvent: self._eviction,
            ToolEvent: self._tool,
        }

    def text(self) -> str:
        """All metrics in Prometheus' text format."""
        text: str = self._client.generate_latest(self.registry).decode()
        return text

    def event(self, event: Event, /) -> None:
        """Counts."""
        take = self._take.get(type(event))
        if take is not None:
            take(self._runs.setdefault(event.run, _Run()), event)

    def _gauge(self, name: str, told: str) -> Any:
        return self._client.Gauge(f"asgl:{name}", told, ["model_name"], registry=self.registry)

    def _counter(self, name: str, told: str, *labels: str) -> Any:
        names = ["model_name", *labels]
        return self._client.Counter(f"asgl:{name}", told, names, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...], *labels: str) -> Any:
        names = ["model_name", *labels]
        return self._client.Histogram(
            f"asgl:{name}", told, names, buckets=buckets, registry=self.registry
        )

    # --- what is counted

    def _runtime(self, run: _Run, event: RuntimeEvent) -> None:
        if event.kind == "opened":
            run.model, run.capacity, run.rate_from = event.model, event.capacity, event.time
            return
        run.requests.clear()
        self._count_requests(run)
        for gauge in (self._usage, self._token_usage, self._used, self._throughput):
            gauge.labels(run.model).set(0)
        del self._runs[event.run]

    def _request(self, run: _Run, event: RequestEvent) -> None:
        request = run.requests.get(event.request_id)
        if event.kind == "submitted":
            run.requests[event.request_id] = _Request(event.time)
        elif request is None:
            return
        elif event.kind == "admitted":
            if request.admitted is None:
                self._count_prompt(run, request, event)
            request.waiting = False
        elif event.kind == "retracted":
            self._preemptions.labels(run.model).inc()
            request.waiting = True
        else:
            self._count_end(run, request, event)
            del run.requests[event.request_id]
        self._count_requests(run)

    def _count_prompt(self, run: _Run, request: _Request, event: RequestEvent) -> None:
        request.admitted = event.time
        run.prompt += event.prompt_tokens
        run.cached += event.cached_tokens
        self._queue.labels(run.model).observe(event.time - request.submitted)
        self._prompt.labels(run.model).inc(event.prompt_tokens)
        self._queries.labels(run.model).inc(event.prompt_tokens)
        self._hits.labels(run.model).inc(event.cached_tokens)
        self._prompts.labels(run.model).observe(event.prompt_tokens)
        if run.prompt:
            self._hit_rate.labels(run.model).set(run.cached / run.prompt)

    def _count_end(self, run: _Run, request: _Request, event: RequestEvent) -> None:
        reason = event.reason if event.kind == "finished" else event.kind
        self._success.labels(run.model, reason or "computed").inc()
        self._whole.labels(run.model).observe(event.time - request.submitted)
        if request.first_token is not None:
            self._decode.labels(run.model).observe(event.time - request.first_token)
            self._outputs.labels(run.model).observe(event.generated_tokens)

    def _count_requests(self, run: _Run) -> None:
        waiting = sum(request.waiting for request in run.requests.values())
        for gauge in (self._waiting, self._waiting_too):
            gauge.labels(run.model).set(waiting)
        for gauge in (self._running, self._running_too):
            gauge.labels(run.model).set(len(run.requests) - waiting)

    def _token(self, run: _Run, event: TokenEvent) -> None:
        self._generated.labels(run.model).inc()
        run.rate_tokens += 1
        request = run.requests.get(event.request_id)
        if request is None:
            return
        if request.first_token is None or request.last_token is None:
            request.first_token = event.time
            self._first.labels(run.model).observe(event.time - request.submitted)
            if request.admitted is not None:
                self._prefill.labels(run.model).observe(event.time - request.admitted)
        else:
            self._gap.labels(run.model).observe(event.time - request.last_token)
        request.last_token = event.time

    def _step(self, run: _Run, event: StepEvent) -> None:
        self._iteration.labels(run.model).observe(event.tokens)
        if run.capacity:
            used = max(run.capacity - event.free - event.evictable, 0)
            self._used.labels(run.model).set(used)
            for gauge in (self._usage, self._token_usage):
                gauge.labels(run.model).set(used / run.capacity)
        if (passed := event.time - run.rate_from) >= 1.0:
            self._throughput.labels(run.model).set(run.rate_tokens / passed)
            run.rate_from, run.rate_tokens = event.time, 0

    def _eviction(self, run: _Run, event: EvictionEvent) -> None:
        self._evicted.labels(run.model, event.cause).inc(event.tokens)

    def _tool(self, run: _Run, event: ToolEvent) -> None:
        if event.kind != "started":
            self._tools.labels(run.model, event.tool).observe(event.seconds)
