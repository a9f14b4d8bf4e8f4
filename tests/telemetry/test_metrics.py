"""Metrics: in Prometheus' text format, under names that dashboards know."""

from __future__ import annotations

import logging
import sys

import pytest
from any_events import random_events
from demo_run import demo_events
from engine_harness import generate, opened, settled
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import asgl
from asgl.errors import ConfigError
from asgl.telemetry import Metrics
from asgl.testing import ScriptedRuntime
from asgl.trace.logs import LogTracer


def values(text: str) -> dict[str, float]:
    """The samples, by name and by labels but the model's."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "model_name"}
            if "le" not in labels:
                found[sample.name + "".join(f" {value}" for value in labels.values())] = (
                    sample.value
                )
    return found


def test_the_metrics_of_a_run():
    metrics = Metrics()
    for event in demo_events():
        metrics.event(event)
    seen = values(metrics.text())
    assert seen["asgl:num_requests_running"] == seen["asgl:num_running_reqs"] == 3
    assert seen["asgl:num_requests_waiting"] == seen["asgl:num_queue_reqs"] == 1
    assert seen["asgl:generation_tokens_total"] == 22
    assert seen["asgl:prompt_tokens_total"] == seen["asgl:prefix_cache_queries_total"] == 43
    assert seen["asgl:prefix_cache_hits_total"] == 20
    assert seen["asgl:cache_hit_rate"] == pytest.approx(20 / 43)
    assert seen["asgl:num_preemptions_total"] == 1
    assert seen["asgl:request_success_total stop"] == 4
    assert seen["asgl:request_success_total failed"] == 1
    assert seen["asgl:kv_cache_usage_perc"] == pytest.approx(1300 / 4000)
    assert seen["asgl:num_used_tokens"] == 1300
    assert seen["asgl:evicted_tokens_total room"] == 120
    assert seen["asgl:time_to_first_token_seconds_count"] == 8
    assert seen["asgl:e2e_request_latency_seconds_count"] == 5
    assert seen["asgl:tool_seconds_count look"] == 1
    for event in demo_events(closed=True)[-1:]:
        metrics.event(event)
    assert values(metrics.text())["asgl:num_requests_running"] == 0


async def test_they_agree_with_the_engine():
    metrics = Metrics()
    async with opened(capacity=60, tracers=[metrics]) as engine:
        tickets = [generate(engine, range(9 + n), max_tokens=7) for n in range(6)]
        await settled(*tickets)
        engine.cancel(generate(engine, [1, 2], max_tokens=5))
        told, seen = values(metrics.text()), engine.statistics()
    assert told["asgl:generation_tokens_total"] == seen.generated_tokens
    assert told["asgl:prompt_tokens_total"] == seen.prompt_tokens
    assert told["asgl:prefix_cache_hits_total"] == seen.cached_tokens
    assert told.get("asgl:num_preemptions_total", 0) == seen.retractions
    assert told["asgl:iteration_tokens_total_count"] == seen.steps
    assert told["asgl:num_requests_running"] == told["asgl:num_requests_waiting"] == 0
    assert told["asgl:request_success_total cancelled"] == 1


async def test_a_runtime_gives_its_metrics():
    async with ScriptedRuntime({"x": "a b"}, tracers=[Metrics()]) as rt:
        await rt.prompt("Say:").gen("x")
        text = rt.metrics()
    assert 'asgl:generation_tokens_total{model_name="scripted"} 3.0' in text
    async with ScriptedRuntime({}) as rt:
        with pytest.raises(ConfigError, match=r"tracers=\[asgl.telemetry.Metrics\(\)\]"):
            rt.metrics()


def test_a_registry_of_the_user():
    registry = CollectorRegistry()
    assert Metrics(registry).registry is registry


@pytest.mark.parametrize("seed", range(30))
def test_any_events(seed):
    metrics = Metrics()
    for event in random_events(seed, 150):
        metrics.event(event)
    assert all(
        value >= 0 for name, value in values(metrics.text()).items() if "created" not in name
    )


def test_without_the_client_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'asgl-lang\[metrics\]'"):
        Metrics()


async def test_lines_of_the_logger(caplog):
    @asgl.function
    async def say(s, x):
        if x == "bad":
            raise ValueError("a secret")
        await s.gen("x")

    with caplog.at_level(logging.DEBUG, logger="asgl"):
        async with ScriptedRuntime({"x": "words"}) as rt:
            await say.batch(rt, ["a", "bad"], on_error="return", progress=False)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines[0][0] == "INFO"
    assert lines[0][1].startswith("opened scripted on none")
    assert ("INFO", "program say[1] failed ValueError") in lines
    assert ("DEBUG", "stream 0: gen 0 finished") in lines
    assert lines[-1] == ("INFO", "closed")
    assert "secret" not in caplog.text
    assert "words" not in caplog.text


async def test_nothing_is_logged_unless_it_is_asked_for(caplog):
    async with ScriptedRuntime({"x": "words"}) as rt:
        assert not rt._running.engine.tracers
        await rt.prompt("Say:").gen("x")
    assert caplog.records == []


async def test_a_retraction_is_a_warning(caplog):
    with caplog.at_level(logging.INFO, logger="asgl"):
        for event in demo_events():
            LogTracer().event(event)
    told = {record.levelname: record.getMessage() for record in caplog.records}
    assert told["WARNING"] == "request 7 was retracted: 8 running requests need a slot"
    assert "120 cached tokens were dropped: room" in caplog.text
