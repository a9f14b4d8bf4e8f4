"""Spans, read back from an exporter in memory, against the list of the semantic conventions."""

from __future__ import annotations

import json
import sys

import pytest
from any_events import random_events
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import StatusCode

import asgl
from asgl.errors import ConfigError
from asgl.telemetry import Spans
from asgl.testing import ScriptedRuntime

KNOWN = {
    value
    for name, value in vars(gen_ai_attributes).items()
    if name.startswith("GEN_AI_") and isinstance(value, str)
} | {error_attributes.ERROR_TYPE}
OPERATIONS = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}


class Exported:
    def __init__(self) -> None:
        self.provider = TracerProvider()
        self._memory = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    @property
    def spans(self):
        return self._memory.get_finished_spans()

    def named(self, name):
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def check(self) -> None:
        """What holds of all spans."""
        by_id = {span.context.span_id: span for span in self.spans}
        for span in self.spans:
            if span.instrumentation_scope.name != "asgl":
                continue
            assert span.start_time <= span.end_time
            for name in span.attributes:
                assert name in KNOWN or name.startswith("asgl."), name
            operation = span.attributes.get("gen_ai.operation.name")
            if operation in ("text_completion", "chat", "execute_tool", "invoke_workflow"):
                assert operation in OPERATIONS
                assert span.name.startswith(f"{operation} ")
            if span.status.status_code is StatusCode.ERROR:
                assert span.attributes["error.type"]
            parent = by_id.get(span.parent.span_id) if span.parent is not None else None
            if parent is not None:
                assert parent.context.trace_id == span.context.trace_id
                assert parent.start_time <= span.start_time


@pytest.fixture
def exported():
    exported = Exported()
    yield exported
    exported.check()


@asgl.tool
async def look(where: str) -> str:
    """Looks.

    Args:
        where: Where.
    """
    with trace.get_tracer("mine").start_as_current_span("inside the tool"):
        if where == "away":
            raise LookupError("a secret")
        return "seen"


@asgl.function
async def tips(s, topic):
    s += f"Tips for {topic}:"
    await s.gen("tip", max_tokens=5)
    with trace.get_tracer("mine").start_as_current_span("inside the program"):
        async with s.fork(2) as branches:
            for branch in branches:
                branch += " more:"
                branch.gen("more", max_tokens=5)
    if topic == "bad":
        raise ValueError("a secret")


SCRIPT = {"tip": " a tip", "more": " and more"}


def below(exported, span):
    return {
        one.name
        for one in exported.spans
        if one.parent is not None and one.parent.span_id == span.context.span_id
    }


async def test_one_trace_a_program_with_forks_as_children(exported, monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", exported.provider)
    async with ScriptedRuntime(SCRIPT, tracers=[Spans(exported.provider)]) as rt:
        with exported.provider.get_tracer("mine").start_as_current_span("the caller") as caller:
            await tips(rt, "rain")
        await tips(rt, "sun")
    programs = [span for span in exported.spans if span.name == "invoke_workflow tips"]
    assert len(programs) == 2
    assert programs[0].parent.span_id == caller.get_span_context().span_id
    assert programs[1].parent is None
    assert programs[0].context.trace_id != programs[1].context.trace_id
    assert below(exported, programs[0]) == {
        "text_completion scripted",
        "branch",
        "inside the program",
    }
    branches = [span for span in exported.spans if span.name == "branch"]
    assert len(branches) == 4
    assert below(exported, branches[0]) == {"text_completion scripted"}
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_generation_by_the_conventions(exported):
    async with ScriptedRuntime({"tip": " a tip"}, tracers=[Spans(exported.provider)]) as rt:
        await rt.prompt("Tips:", name="alone").gen("tip", max_tokens=9)
    span = exported.named("text_completion scripted")
    about = dict(span.attributes)
    assert about.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert about.pop("gen_ai.response.id")
    assert about == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "asgl",
        "gen_ai.request.model": "scripted",
        "gen_ai.response.model": "scripted",
        "gen_ai.response.finish_reasons": ("eos",),
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "asgl.op": "gen",
        "asgl.variable": "tip",
    }
    assert span.start_time > 1.6e18
    root = exported.named("invoke_workflow alone")
    assert root.attributes["gen_ai.workflow.name"] == "alone"
    assert root.end_time >= span.end_time


async def test_tools_and_what_their_code_opens(exported, monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", exported.provider)
    calls = [f'{{"name": "look", "arguments": {{"where": "{one}"}}}}' for one in ("here", "away")]
    async with ScriptedRuntime({None: calls}, tracers=[Spans(exported.provider)]) as rt:
        s = rt.prompt("Look:")
        await s.call_tools([look], max_tokens=50)
        await s.call_tools([look], max_tokens=50)
    first, second = [span for span in exported.spans if span.name == "execute_tool look"]
    assert first.attributes["gen_ai.tool.name"] == "look"
    assert first.attributes["gen_ai.tool.type"] == "function"
    assert first.status.status_code is StatusCode.UNSET
    assert second.status.status_code is StatusCode.ERROR
    assert second.attributes["error.type"] == "LookupError"
    assert below(exported, first) == {"inside the tool"}
    own = [span for span in exported.spans if span.name != "inside the tool"]
    assert "secret" not in json.dumps([span.to_json() for span in own])


async def test_what_fails_and_is_not_recorded(exported):
    async with ScriptedRuntime(SCRIPT, tracers=[Spans(exported.provider)]) as rt:
        with pytest.raises(ValueError, match="secret"):
            await tips(rt, "bad")
    span = exported.named("invoke_workflow tips")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ValueError"
    told = json.dumps([span.to_json() for span in exported.spans])
    assert "secret" not in told
    assert "a tip" not in told
    assert "Tips for" not in told


async def test_text_is_recorded_when_it_is_asked_for(exported):
    spans = Spans(exported.provider, record_text=True)
    tries = iter([False, True])
    async with ScriptedRuntime({"tip": [" bad", " good"]}, tracers=[spans]) as rt:
        s = rt.prompt("Tips:")
        await s.gen("tip", validate=lambda text: next(tries), retries=1)
    span = exported.named("text_completion scripted")
    said = json.loads(span.attributes["gen_ai.output.messages"])
    assert said == [{"role": "assistant", "parts": [{"type": "text", "content": " good"}]}]
    asked = json.loads(span.attributes["gen_ai.input.messages"])
    assert asked[0]["parts"][0]["content"] == "Tips:"
    assert [event.name for event in span.events] == ["retried"]
    assert span.events[0].attributes["text"] == " bad"


async def test_batches_leave_no_context_behind(exported):
    async with ScriptedRuntime(SCRIPT, tracers=[Spans(exported.provider)]) as rt:
        outcomes = await tips.batch(rt, ["a", "bad", "c"], on_error="return", progress=False)
    assert isinstance(outcomes[1], ValueError)
    programs = [span for span in exported.spans if span.name == "invoke_workflow tips"]
    assert {span.attributes["asgl.item"] for span in programs} == {0, 1, 2}
    assert len({span.context.trace_id for span in programs}) == 3
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("record_text", [False, True])
def test_any_events(seed, record_text):
    spans = Spans(Exported().provider, record_text=record_text)
    for event in random_events(seed, 120):
        spans.event(event)


def test_without_opentelemetry_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'asgl-lang\[otel\]'"):
        Spans()


def test_what_is_no_flag():
    with pytest.raises(ConfigError, match="record_text"):
        Spans(record_text=1)
