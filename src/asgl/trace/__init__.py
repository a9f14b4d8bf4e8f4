"""Events that the engine and the streams emit, the tracers that listen, and traces on disk.

A tracer is anything with an `event` method. It is called on the event loop, so it must be quick.
With no tracer attached nothing is built and nothing is called: emitters test `if tracers:` first.
"""

from asgl.trace.events import (
    VERSION,
    BudgetEvent,
    Event,
    EvictionEvent,
    OpEvent,
    ProgramEvent,
    RequestEvent,
    RuntimeEvent,
    StepEvent,
    StreamEvent,
    TextEvent,
    TokenEvent,
    ToolEvent,
    ValidationEvent,
    WaitEvent,
)
from asgl.trace.jsonl import JsonlTracer, Trace, read
from asgl.trace.tracers import Tracer, Tracers, checked_tracers, default_tracers

__all__ = [
    "VERSION",
    "BudgetEvent",
    "Event",
    "EvictionEvent",
    "JsonlTracer",
    "OpEvent",
    "ProgramEvent",
    "RequestEvent",
    "RuntimeEvent",
    "StepEvent",
    "StreamEvent",
    "TextEvent",
    "TokenEvent",
    "ToolEvent",
    "Trace",
    "Tracer",
    "Tracers",
    "ValidationEvent",
    "WaitEvent",
    "checked_tracers",
    "default_tracers",
    "read",
]
