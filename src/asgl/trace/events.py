"""Events: what the engine and the streams of a Runtime tell of themselves, as data.

Every event has a `time`, in seconds of the one clock of its Runtime, and a `run`, which names the
Runtime. `Tracers.emit` writes both. What identifies a thing inside a run: a stream by `stream_id`,
an op by stream and `number`, a request of the engine by `request_id`, a step by `number`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from asgl.types import TokenLogprob

VERSION = 1
"""Of the events, as traces on disk have them. It rises when a field changes its meaning or goes
away; new events and new fields leave it as it is, since readers pass over what they do not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """What all events have."""

    time: float = field(default=0.0, compare=False)
    """When it happened: seconds of the clock of its Runtime, whose zero means nothing."""
    run: int = field(default=0, compare=False)
    """The Runtime: events of Runtimes that share a tracer differ in it."""


@dataclass(frozen=True, slots=True)
class RuntimeEvent(Stamped):
    """A Runtime was opened or closed."""

    kind: Literal["opened", "closed"]
    """What happened."""
    model: str = ""
    """What the model's files call it."""
    device: str = ""
    """"cpu", or a GPU as torch calls it."""
    kernels: str = ""
    """"reference", "cpu" or "triton"."""
    capacity: int = 0
    """Of the KV cache, in tokens."""
    max_running: int = 0
    """So many requests run at once at most; 0 for no limit."""
    started_at: float = 0.0
    """The time of day, in seconds since 1970: what ties `time` to other clocks."""


@dataclass(frozen=True, slots=True)
class ProgramEvent(Stamped):
    """A program, made by `asgl.function`, began or ended on a stream of its own."""

    kind: Literal["started", "finished", "failed", "cancelled"]
    """What happened."""
    stream_id: int
    """Its stream."""
    program: str
    """The name of the function."""
    item: int | None = None
    """Its place in the batch."""
    reason: str = ""
    """Of a failed one the error."""


@dataclass(frozen=True, slots=True)
class StreamEvent(Stamped):
    """A prompt stream was made, forked, joined or closed."""

    kind: Literal["opened", "forked", "joined", "closed"]
    """What happened."""
    stream_id: int
    """Counts from 0 in each Runtime."""
    parent_id: int | None = None
    """The stream that it was forked from, or joined to."""
    name: str | None = None
    """What `Runtime.prompt(name=...)` called it."""


@dataclass(frozen=True, slots=True)
class OpEvent(Stamped):
    """An op of a prompt stream changed its state."""

    kind: Literal["submitted", "started", "requested", "finished", "failed", "cancelled"]
    """What happened; "requested": it asked the engine for something, and `request_id` is that."""
    stream_id: int
    """The stream that it was submitted to."""
    number: int
    """The op's place in its stream, from 0."""
    op: str
    """"gen", "select", "extend", ..."""
    name: str | None = None
    """The variable it sets."""
    request_id: int | None = None
    """The last request that it made of the engine."""
    text: str = ""
    """Of a finished op what it appended."""
    reason: str = ""
    """Of a failed op the error, of a cancelled one why."""


@dataclass(frozen=True, slots=True)
class TextEvent(Stamped):
    """What a stream says changed: from the token `position` on it says this, and nothing else."""

    source: Literal["prompt", "generated", "selected", "joined", "loaded", "rewound", "undone"]
    """Where the tokens come from: the program's text, a gen, a select, the branches that were
    joined, or a file; "rewound" and "undone" (an op failed or was cancelled) only take back."""
    stream_id: int
    """The stream."""
    position: int
    """Counts tokens from the beginning of the stream, what it was forked from included."""
    tokens: int = 0
    """How many it says from there."""
    text: str = ""
    """Their text, unless it is in `pieces`."""
    pieces: tuple[str, ...] = ()
    """The text of each token. Empty for what was generated, whose tokens are TokenEvents, and for
    texts of more than 8,192 tokens."""
    request_id: int | None = None
    """The request that generated them."""


@dataclass(frozen=True, slots=True)
class WaitEvent(Stamped):
    """A stream waits for an op of another one, or goes on."""

    kind: Literal["waits", "goes on"]
    """What happened."""
    stream_id: int
    """The stream that waits."""
    op: str
    """What it is doing: "start" is the beginning of a fork."""
    for_stream: int
    """The stream that it waits for."""
    for_op: str = ""
    """The op of that stream."""


@dataclass(frozen=True, slots=True)
class ToolEvent(Stamped):
    """A tool that the model called began or ended."""

    kind: Literal["started", "finished", "failed", "cancelled"]
    """What happened."""
    stream_id: int
    """The stream of the call."""
    op: int
    """The number of the op that generated the call."""
    call: int
    """Its place among the calls of that op."""
    tool: str
    """The tool's name."""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the model gave it, as JSON values."""
    seconds: float = 0.0
    """How long it ran."""
    result: str = ""
    """Of a finished one what the model is told."""
    error: str = ""
    """Of a failed one what it raised."""


@dataclass(frozen=True, slots=True)
class ValidationEvent(Stamped):
    """A generated text was found not to be valid."""

    kind: Literal["retried", "refused"]
    """Whether the op tries again, or fails with this."""
    stream_id: int
    """The op's stream."""
    number: int
    """The op."""
    attempt: int
    """Which try it was, from 0."""
    text: str
    """The text."""
    reason: str
    """What the validator said, or raised."""


@dataclass(frozen=True, slots=True)
class BudgetEvent(Stamped):
    """An op that a budget binds has ended: what the budget has spent by then."""

    stream_id: int
    """The op's stream."""
    number: int
    """The op."""
    spent: int
    """Tokens that were generated on it."""
    tokens: int | None
    """Its limit; None for none."""
    seconds_spent: float
    """How long it has been open."""
    seconds: float | None
    """Its limit; None for none."""


@dataclass(frozen=True, slots=True)
class RequestEvent(Stamped):
    """A request of the engine changed its state."""

    kind: Literal["submitted", "admitted", "retracted", "finished", "cancelled", "failed"]
    """What happened."""
    request_id: int
    """Counts from 1 in each Runtime."""
    prompt_tokens: int
    """How long the prompt is."""
    cached_tokens: int = 0
    """How much of the prompt was in the cache; 0 before the request was admitted."""
    generated_tokens: int = 0
    """How many tokens it has generated by now."""
    reason: str = ""
    """Of a finished request its finish reason, of a failed one the error, of a retracted one the
    cause."""
    work: Literal["generate", "score", "extend"] = "generate"
    """What it is for: to generate tokens, to score the options of a select, or to compute a
    prompt."""


@dataclass(frozen=True, slots=True)
class TokenEvent(Stamped):
    """A request has generated a token."""

    request_id: int
    """The request."""
    token_id: int
    """The token in the model's vocabulary."""
    text: str = ""
    """What it adds to the request's text; "" while a character is not complete, and of a token that
    ends the generation. A stop that comes later may cut it."""
    source: Literal["sampled", "constrained", "forced"] = "sampled"
    """Drawn from all tokens, drawn from those that a grammar allows, or the only one it allows."""
    logprob: float | None = None
    """Its log-probability, if they were asked for."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens in its place, as many as were asked for."""


@dataclass(frozen=True, slots=True)
class StepEvent(Stamped):
    """The engine ran a step."""

    number: int
    """Counts from 0."""
    decode_rows: int
    """Rows of one new token: mostly requests that got their next one."""
    extend_rows: int
    """Rows of several new tokens: pieces of prompts, and what a grammar forced."""
    tokens: int
    """New tokens in all rows."""
    running: int
    """Requests that run after it."""
    waiting: int
    """Requests that wait after it."""
    free: int
    """Free slots of the KV cache after it, in tokens."""
    evictable: int
    """Slots of the prefix cache that no running request needs, after it."""
    plan_seconds: float
    """How long planning it took."""
    run_seconds: float
    """How long it ran; where two are in flight, the time in which both run is that of the older
    one."""
    rows: tuple[tuple[int, int], ...] = ()
    """The requests that were in it, each with how many of its tokens were computed: who is not here
    has waited."""


@dataclass(frozen=True, slots=True)
class EvictionEvent(Stamped):
    """Cached prefixes were dropped."""

    tokens: int
    """How many tokens."""
    cause: Literal["room", "flush", "poisoned"]
    """A step needed slots, `Runtime.flush_cache` was called, or what was cached was NaN."""
    step: int | None = None
    """The step that needed room."""


Event: TypeAlias = (
    RuntimeEvent
    | ProgramEvent
    | StreamEvent
    | OpEvent
    | TextEvent
    | WaitEvent
    | ToolEvent
    | ValidationEvent
    | BudgetEvent
    | RequestEvent
    | TokenEvent
    | StepEvent
    | EvictionEvent
)
