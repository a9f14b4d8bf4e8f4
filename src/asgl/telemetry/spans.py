"""OpenTelemetry spans, after the semantic conventions for generative AI.

    invoke_workflow tips            a program, or a prompt without one: below the caller's span
    ├─ text_completion smollm2      a gen
    ├─ branch 0                     a fork
    │   └─ text_completion smollm2
    └─ execute_tool weather         what the tool's own code opens is below it

A program's span is the current one of its task while it runs, and a tool's of the task of the tool.
What is said is not recorded unless it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from asgl import checks
from asgl.errors import ConfigError
from asgl.trace.events import (
    Event,
    OpEvent,
    ProgramEvent,
    RequestEvent,
    RuntimeEvent,
    StreamEvent,
    TextEvent,
    TokenEvent,
    ToolEvent,
    ValidationEvent,
)

_OPERATIONS = {"gen": "text_completion", "role": "chat"}
"""The operation that an op is, by the conventions; others are called after their kind."""


@dataclass
class _Op:
    span: Any
    model: str
    requests: set[int] = field(default_factory=set[int])
    first_token: float | None = None
    began: float = 0.0


@dataclass
class _Stream:
    span: Any
    root: int
    last: float
    """The time of the last event of it."""
    token: Any = None
    """What brings back the context that was current before the program."""
    text: dict[int, str] = field(default_factory=dict[int, str])
    """What it says, by the positions of its parts; only if text is recorded."""
    ops: dict[int, _Op] = field(default_factory=dict[int, _Op])


@dataclass
class _Run:
    offset: float = 0.0
    """Seconds from the clock of the Runtime to the time of day."""
    model: str = ""
    streams: dict[int, _Stream] = field(default_factory=dict[int, _Stream])
    requests: dict[int, _Op] = field(default_factory=dict[int, _Op])
    tools: dict[tuple[int, int, int], tuple[Any, Any]] = field(
        default_factory=dict[tuple[int, int, int], tuple[Any, Any]]
    )


class Spans:
    """A tracer that makes spans: see `asgl.telemetry.spans`.

    Raises ConfigError if OpenTelemetry is not installed: `pip install 'asgl-lang[otel]'`.

    Args:
        provider: The TracerProvider to make them with; None is the global one.
        record_text: Whether spans have what was said: prompts, outputs, and arguments and results
            of tools. They may be private.
    """

    def __init__(self, provider: Any = None, *, record_text: bool = False) -> None:
        try:
            self._trace: Any = import_module("opentelemetry.trace")
            self._context: Any = import_module("opentelemetry.context")
        except ImportError as error:
            raise ConfigError("spans need OpenTelemetry: pip install 'asgl-lang[otel]'") from error
        self._record_text = checks.flag("record_text", record_text)
        self._tracer = self._trace.get_tracer("asgl", tracer_provider=provider)
        self._runs: dict[int, _Run] = {}
        self._take: dict[type[Any], Any] = {
            RuntimeEvent: self._runtime,
            StreamEvent: self._stream,
            ProgramEvent: self._program,
            OpEvent: self._op,
            RequestEvent: self._request,
            TokenEvent: self._token,
            ToolEvent: self._tool,
            ValidationEvent: self._validation,
            TextEvent: self._text,
        }

    def event(self, event: Event, /) -> None:
        """Begins and ends spans."""
        take = self._take.get(type(event))
        if take is not None:
            take(self._runs.setdefault(event.run, _Run()), event)

    def _start(self, run: _Run, name: str, time: float, parent: Any, **about: Any) -> Any:
        """A span that begins then; `parent` is a span, or None for the caller's own."""
        context = None if parent is None else self._trace.set_span_in_context(parent)
        about = {key.replace("__", "."): value for key, value in about.items()}
        return self._tracer.start_span(
            name, context=context, attributes=about, start_time=_nanoseconds(run, time)
        )

    def _fails(self, span: Any, reason: str) -> None:
        kind = reason.partition("(")[0]
        span.set_attribute("error.type", kind if kind.isidentifier() else "_OTHER")
        told = reason if self._record_text else kind
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, told))

    # --- Runtimes, streams and programs

    def _runtime(self, run: _Run, event: RuntimeEvent) -> None:
        if event.kind == "opened":
            run.offset, run.model = event.started_at - event.time, event.model
            return
        for number in [number for number, stream in run.streams.items() if stream.root == number]:
            self._end_tree(run, number)
        del self._runs[event.run]

    def _stream(self, run: _Run, event: StreamEvent) -> None:
        known = run.streams.get(event.stream_id)
        if known is not None:
            known.last = event.time
            if event.kind == "closed" and known.root == event.stream_id and known.token is None:
                self._end_tree(run, event.stream_id)
            return
        parent = run.streams.get(event.parent_id) if event.parent_id is not None else None
        if event.kind == "forked" and parent is not None:
            span = self._start(run, "branch", event.time, parent.span, asgl__stream=event.stream_id)
            run.streams[event.stream_id] = _Stream(span, parent.root, event.time)
        elif event.kind in ("opened", "forked"):
            about = {"gen_ai.operation.name": "invoke_workflow", "asgl.stream": event.stream_id}
            name = event.name or "prompt"
            span = self._start(run, f"invoke_workflow {name}", event.time, None, **about)
            span.set_attribute("gen_ai.workflow.name", name)
            run.streams[event.stream_id] = _Stream(span, event.stream_id, event.time)

    def _program(self, run: _Run, event: ProgramEvent) -> None:
        stream = run.streams.get(event.stream_id)
        if stream is None:
            return
        stream.last = event.time
        if event.kind == "started":
            stream.span.update_name(f"invoke_workflow {event.program}")
            stream.span.set_attribute("gen_ai.workflow.name", event.program)
            if event.item is not None:
                stream.span.set_attribute("asgl.item", event.item)
            stream.token = self._context.attach(self._trace.set_span_in_context(stream.span))
            return
        if event.kind != "finished":
            self._fails(stream.span, event.reason or "CancelledError()")
        if stream.token is not None:
            self._context.detach(stream.token)
        self._end_tree(run, event.stream_id)

    def _end_tree(self, run: _Run, root: int) -> None:
        """Ends the spans of a tree of streams, the outermost last."""
        tree = [(number, one) for number, one in run.streams.items() if one.root == root]
        end = max((stream.last for _, stream in tree), default=0.0)
        for number, stream in reversed(tree):
            for op in stream.ops.values():
                op.span.end(_nanoseconds(run, stream.last))
                for request in op.requests:
                    run.requests.pop(request, None)
            last = end if number == root else stream.last
            stream.span.end(_nanoseconds(run, last))
            del run.streams[number]

    # --- ops, requests and tools

    def _op(self, run: _Run, event: OpEvent) -> None:
        stream = run.streams.get(event.stream_id)
        if stream is None or event.op == "snapshot":
            return
        stream.last = event.time
        op = stream.ops.get(event.number)
        if op is None:
            if event.kind not in ("started", "requested"):
                return
            operation = _OPERATIONS.get(event.op, event.op)
            span = self._start(run, f"{operation} {run.model}", event.time, stream.span)
            about = {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "asgl",
                "gen_ai.request.model": run.model,
                "asgl.op": event.op,
            }
            span.set_attributes(about)
            if event.name is not None:
                span.set_attribute("asgl.variable", event.name)
            op = stream.ops[event.number] = _Op(span, run.model, began=event.time)
        if event.kind == "requested" and event.request_id is not None:
            op.requests.add(event.request_id)
            run.requests[event.request_id] = op
        if event.kind in ("finished", "failed", "cancelled"):
            self._end_op(run, stream, op, event)

    def _end_op(self, run: _Run, stream: _Stream, op: _Op, event: OpEvent) -> None:
        if event.kind != "finished":
            self._fails(op.span, event.reason if event.kind == "failed" else "OpCancelledError()")
        elif self._record_text:
            said = "".join(stream.text[place] for place in sorted(stream.text))
            given = said.removesuffix(event.text)
            op.span.set_attribute("gen_ai.input.messages", _message("user", given))
            op.span.set_attribute("gen_ai.output.messages", _message("assistant", event.text))
        op.span.end(_nanoseconds(run, event.time))
        del stream.ops[event.number]
        for request in op.requests:
            run.requests.pop(request, None)

    def _request(self, run: _Run, event: RequestEvent) -> None:
        op = run.requests.get(event.request_id)
        if op is None:
            return
        if event.kind == "retracted":
            op.span.add_event("retracted", {"cause": event.reason}, _nanoseconds(run, event.time))
            return
        about = {
            "gen_ai.usage.input_tokens": event.prompt_tokens,
            "gen_ai.usage.output_tokens": event.generated_tokens,
            "gen_ai.usage.cache_read.input_tokens": event.cached_tokens,
        }
        op.span.set_attributes(about)
        if event.kind == "finished" and event.reason:
            op.span.set_attribute("gen_ai.response.finish_reasons", [event.reason])
            op.span.set_attribute("gen_ai.response.model", op.model)
            op.span.set_attribute("gen_ai.response.id", str(event.request_id))

    def _token(self, run: _Run, event: TokenEvent) -> None:
        op = run.requests.get(event.request_id)
        if op is not None and op.first_token is None:
            op.first_token = event.time
            waited = event.time - op.began
            op.span.set_attribute("gen_ai.response.time_to_first_chunk", waited)

    def _tool(self, run: _Run, event: ToolEvent) -> None:
        stream, key = run.streams.get(event.stream_id), (event.stream_id, event.op, event.call)
        if event.kind == "started":
            about: dict[str, Any] = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": event.tool,
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": ".".join(map(str, key)),
            }
            if self._record_text:
                about["gen_ai.tool.call.arguments"] = _json(event.arguments)
            parent = stream.span if stream is not None else None
            span = self._start(run, f"execute_tool {event.tool}", event.time, parent, **about)
            # told from the task of the tool: what its code opens is below this span
            token = self._context.attach(self._trace.set_span_in_context(span))
            run.tools[key] = span, token
            return
        span, token = run.tools.pop(key, (None, None))
        if span is None:
            return
        self._context.detach(token)
        if event.kind != "finished":
            self._fails(span, event.error or "CancelledError()")
        elif self._record_text:
            span.set_attribute("gen_ai.tool.call.result", event.result)
        span.end(_nanoseconds(run, event.time))

    def _validation(self, run: _Run, event: ValidationEvent) -> None:
        stream = run.streams.get(event.stream_id)
        op = stream.ops.get(event.number) if stream is not None else None
        if op is not None:
            about: dict[str, Any] = {"attempt": event.attempt}
            if self._record_text:
                about |= {"text": event.text, "reason": event.reason}
            op.span.add_event(event.kind, about, _nanoseconds(run, event.time))

    def _text(self, run: _Run, event: TextEvent) -> None:
        stream = run.streams.get(event.stream_id)
        if stream is not None and self._record_text:
            for place in [place for place in stream.text if place >= event.position]:
                del stream.text[place]
            stream.text[event.position] = event.text or "".join(event.pieces)


def _nanoseconds(run: _Run, time: float) -> int:
    return int((time + run.offset) * 1e9)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


def _message(role: str, text: str) -> str:
    """A message in the shape that the conventions give messages."""
    return _json([{"role": role, "parts": [{"type": "text", "content": text}]}])
