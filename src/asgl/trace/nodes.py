"""What a model of a run is made of: streams, their ops, the requests of these, and their tokens."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from asgl.trace.events import BudgetEvent, EvictionEvent, StepEvent
from asgl.types import TokenLogprob

State: TypeAlias = Literal[
    "waiting",
    "computing",
    "generating",
    "tool",
    "retrying",
    "idle",
    "done",
    "failed",
    "cancelled",
]
STATES: tuple[State, ...] = (
    "generating",
    "computing",
    "retrying",
    "tool",
    "waiting",
    "idle",
    "done",
    "cancelled",
    "failed",
)
ACTIVE = frozenset[State](("waiting", "computing", "generating", "tool", "retrying"))
"""The states of what is not over, and does not only wait for its program."""

ENDED: dict[str, State] = {"finished": "done", "failed": "failed", "cancelled": "cancelled"}
"""The states that kinds of events end in."""


RATE_SECONDS = 0.5
"""How long a slot of `Run.rates` is."""


class Token(NamedTuple):
    """A token that a request generated."""

    time: float
    token_id: int
    text: str
    source: str
    """"sampled", "constrained" or "forced"."""
    logprob: float | None
    top: tuple[TokenLogprob, ...]


@dataclass(slots=True, eq=False)
class Request:
    """A request of the engine, and where its time went."""

    id: int
    work: str = "generate"
    state: State = "waiting"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    reason: str = ""
    submitted_at: float | None = None
    admitted_at: float | None = None
    """When it was admitted last."""
    first_token_at: float | None = None
    ended_at: float | None = None
    waited: float = 0.0
    """Seconds in the queue, of all its stays there that are over."""
    waited_before: float = 0.0
    """The part of `waited` that was before the first token."""
    queued_at: float | None = None
    """Since when it is in the queue."""
    retractions: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """When, and why."""
    tokens: list[Token] = field(default_factory=list[Token])
    tail: str = ""
    """The end of its text."""
    steps: int = 0
    """How many steps it was in."""
    op: Op | None = None

    def seconds(self, now: float) -> dict[str, float]:
        """Where its time went by `now`: "waiting", "computing", "generating"."""
        end = now if self.ended_at is None else self.ended_at
        waiting = self.waited + (end - self.queued_at if self.queued_at is not None else 0.0)
        start = end if self.submitted_at is None else self.submitted_at
        first = end if self.first_token_at is None else self.first_token_at
        before = waiting if self.first_token_at is None else self.waited_before
        generating = max(end - first - (waiting - before), 0.0)
        return {
            "waiting": waiting,
            "computing": max(end - start - waiting - generating, 0.0),
            "generating": generating,
        }

    def rate(self, now: float) -> float:
        """Generated tokens a second since the first."""
        end = now if self.ended_at is None else self.ended_at
        if self.first_token_at is None or self.generated < 2 or end <= self.first_token_at:
            return 0.0
        return (self.generated - 1) / (end - self.first_token_at)


@dataclass(slots=True, eq=False)
class ToolCall:
    """A call of a tool."""

    number: int
    tool: str
    arguments: dict[str, Any]
    state: State = "tool"
    began_at: float = 0.0
    seconds: float = 0.0
    result: str = ""
    error: str = ""


class Rejected(NamedTuple):
    """A text that was not valid."""

    time: float
    attempt: int
    text: str
    reason: str


@dataclass(slots=True, eq=False)
class Op:
    """An op of a stream."""

    stream: Stream
    number: int
    kind: str = "op"
    name: str | None = None
    state: State = "waiting"
    submitted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    text: str = ""
    reason: str = ""
    requests: list[Request] = field(default_factory=list[Request])
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    tools: list[ToolCall] = field(default_factory=list[ToolCall])
    budgets: list[BudgetEvent] = field(default_factory=list[BudgetEvent])
    waited: float = 0.0
    """Seconds that its stream waited for others while it was the next."""

    @property
    def request(self) -> Request | None:
        """The last one."""
        return self.requests[-1] if self.requests else None

    @property
    def running(self) -> bool:
        return self.started_at is not None and self.ended_at is None

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.kind

    @property
    def shown(self) -> str:
        """What it says, or has said so far."""
        return self.text or (self.request.tail if self.request is not None else "")

    def seconds(self, now: float) -> float:
        if self.started_at is None:
            return 0.0
        return max((now if self.ended_at is None else self.ended_at) - self.started_at, 0.0)


@dataclass(slots=True, eq=False)
class Segment:
    """A part of what a stream says, from the token `position` on."""

    position: int
    count: int
    source: str
    """"prompt", "generated", "selected", "joined" or "loaded"."""
    text: str
    pieces: tuple[str, ...]
    request: Request | None


class Span(NamedTuple):
    """Text of a stream whose tokens came the same way."""

    text: str
    how: str
    """"cached", "computed", "sampled", "constrained", "forced", "selected", "joined"; "given" if it
    is not known whether it was cached."""
    token: Token | None = None
    """If it is one, and was generated."""


@dataclass(slots=True, eq=False)
class Stream:
    """A prompt stream: what it says, what it does, and what was forked from it."""

    id: int
    run: Run
    index: int = 0
    """Its place among the children of its parent."""
    parent: Stream | None = None
    name: str | None = None
    opened_at: float = 0.0
    ended_at: float | None = None
    closed: bool = False
    program: str | None = None
    item: int | None = None
    program_state: State | None = None
    """None while it runs, or if the stream is no program's."""
    reason: str = ""
    """Why it failed."""
    state: State = "idle"
    children: list[Stream] = field(default_factory=list["Stream"])
    child_states: Counter[State] = field(default_factory=Counter[State])
    active_below: int = 0
    """How many streams below it are active, at any depth."""
    ops: dict[int, Op] = field(default_factory=dict[int, Op])
    open_ops: dict[int, Op] = field(default_factory=dict[int, Op])
    """Those that have not ended."""
    last_op: Op | None = None
    """The op that changed last."""
    waits: list[tuple[int, str, float]] = field(default_factory=list[tuple[int, str, float]])
    """What it waits for: stream, op, and since when."""
    waited: float = 0.0
    """Seconds that it has waited for other streams."""
    open_tools: int = 0
    prompt_total: int = 0
    cached_total: int = 0
    """Tokens of the prompts of all its requests, and those that were cached."""
    generated: int = 0
    """Tokens that all its requests have generated, and those of what was forked from it."""
    segments: list[Segment] = field(default_factory=list[Segment])
    joined_to: int | None = None

    @property
    def title(self) -> str:
        if self.program is not None:
            return self.program if self.item is None else f"{self.program}[{self.item}]"
        if self.parent is not None:
            return f"branch {self.index}"
        return self.name or f"stream {self.id}"

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def op(self) -> Op | None:
        """The op that runs; the next one if none does; the last one if there is none."""
        for op in self.open_ops.values():
            return op
        return self.last_op

    def seconds(self, now: float) -> float:
        """How long it was at work: from its beginning to the end of its last op."""
        over = self.state not in ACTIVE and not self.active_below and self.ended_at is not None
        end = self.ended_at if over and self.ended_at is not None else now
        return max(end - self.opened_at, 0.0)

    @property
    def prompt_tokens(self) -> int:
        """Of its last request."""
        request = self.op.request if self.op is not None else None
        return request.prompt_tokens if request is not None else 0

    @property
    def cached_share(self) -> float | None:
        """The share of the prompt tokens of its requests that was cached; None without any."""
        return self.cached_total / self.prompt_total if self.prompt_total else None

    @property
    def text(self) -> str:
        """What it says beyond what it was forked from."""
        return "".join(span.text for span in self.spans())

    def spans(self) -> Iterator[Span]:
        """What it says beyond what it was forked from, and where each part came from."""
        admitted = [
            request
            for op in self.ops.values()
            for request in op.requests
            if request.admitted_at is not None
        ]
        for segment in self.segments:
            if segment.source == "generated":
                yield from _generated(segment)
            elif segment.source in ("selected", "joined"):
                yield Span(segment.text or "".join(segment.pieces), segment.source)
            else:
                yield from _given(segment, admitted)

    def walk(self) -> Iterator[Stream]:
        """It and all below it, parents first."""
        stack: list[Stream] = [self]
        while stack:
            stream = stack.pop()
            yield stream
            stack.extend(reversed(stream.children))


def _generated(segment: Segment) -> Iterator[Span]:
    """The tokens of the request, as far as they are the segment's text: a stop cuts the last."""
    left = segment.text
    tokens = segment.request.tokens if segment.request is not None else []
    for token in tokens:
        if not left:
            return
        if not token.text:
            continue
        if not left.startswith(token.text):
            break
        yield Span(token.text, token.source, token)
        left = left[len(token.text) :]
    if left:
        yield Span(left, "sampled")


def _given(segment: Segment, admitted: list[Request]) -> Iterator[Span]:
    """The text of a program: cached as far as the first request that has it found it so."""
    end = segment.position + segment.count
    request = next((one for one in admitted if one.prompt_tokens >= end), None)
    if request is None:
        yield Span(segment.text or "".join(segment.pieces), "given")
        return
    cached = min(max(request.cached_tokens - segment.position, 0), segment.count)
    if not segment.pieces:
        how = "cached" if cached >= segment.count else "computed"
        yield Span(segment.text, how)
        return
    for text, how in (
        ("".join(segment.pieces[:cached]), "cached"),
        ("".join(segment.pieces[cached:]), "computed"),
    ):
        if text:
            yield Span(text, how)


@dataclass(slots=True, eq=False)
class Run:
    """What one Runtime did."""

    key: int
    live: bool
    model: str = ""
    device: str = ""
    kernels: str = ""
    capacity: int = 0
    max_running: int = 0
    started_at: float = 0.0
    opened_at: float = 0.0
    closed_at: float | None = None
    now: float = 0.0
    """The time of its last event."""
    streams: dict[int, Stream] = field(default_factory=dict[int, Stream])
    roots: list[Stream] = field(default_factory=list[Stream])
    requests: dict[int, Request] = field(default_factory=dict[int, Request])
    steps: deque[StepEvent] = field(default_factory=deque[StepEvent])
    rates: dict[int, int] = field(default_factory=dict[int, int])
    """Generated tokens for each half second, by number: int(time / RATE_SECONDS)."""
    counts: Counter[State] = field(default_factory=Counter[State])
    """Of all streams, those that were forgotten included."""
    root_states: Counter[State] = field(default_factory=Counter[State])
    """Of those that were not forked from another."""
    active: dict[int, Stream] = field(default_factory=dict[int, Stream])
    failed: dict[int, Stream] = field(default_factory=dict[int, Stream])
    ended: dict[int, Stream] = field(default_factory=dict[int, Stream])
    """Roots that are over, and all below them is: the oldest first."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    forced: int = 0
    evicted: int = 0
    retractions: int = 0
    evictions: list[EvictionEvent] = field(default_factory=list[EvictionEvent])

    @property
    def hit_rate(self) -> float | None:
        """The share of the prompt tokens of admitted requests that was cached."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def last_step(self) -> StepEvent | None:
        return self.steps[-1] if self.steps else None

    def rate(self, seconds: float = 2.0) -> float:
        """Generated tokens a second, over the last whole half seconds."""
        last, count = int(self.now / RATE_SECONDS), max(int(seconds / RATE_SECONDS), 1)
        first = max(last - count, int(self.opened_at / RATE_SECONDS))
        if last <= first:
            return self.rates.get(last, 0) / RATE_SECONDS
        slots = sum(self.rates.get(slot, 0) for slot in range(first, last))
        return slots / ((last - first) * RATE_SECONDS)

    def ops(self) -> Iterator[Op]:
        for stream in self.streams.values():
            yield from stream.ops.values()


def shortened(segment: Segment, count: int) -> Segment:
    """The first `count` tokens of a segment."""
    pieces = segment.pieces[:count]
    text = segment.text
    if not pieces and segment.count:
        tokens = segment.request.tokens if segment.request is not None else []
        known = "".join(token.text for token in tokens[:count])
        text = known if known and text.startswith(known) else text
    return Segment(segment.position, count, segment.source, text, pieces, segment.request)


def state_of(stream: Stream) -> State:
    if stream.program_state is not None:
        return stream.program_state
    if stream.run.closed_at is not None and not stream.open_ops:
        return _rest_of(stream)
    if stream.open_tools:
        return "tool"
    op = next(iter(stream.open_ops.values()), None)
    if op is not None:
        return _state_of_op(op)
    if stream.waits or stream.active_below:
        return "waiting"
    return _rest_of(stream)


def _state_of_op(op: Op) -> State:
    request = op.request
    if op.started_at is None or request is None or request.ended_at is not None:
        return "retrying" if op.rejected else "waiting"
    if op.rejected:
        return "retrying"
    return request.state


def _rest_of(stream: Stream) -> State:
    """The state of a stream on which nothing runs."""
    last = stream.last_op
    if last is not None and last.state == "failed":
        return "failed"
    over = stream.closed or stream.run.closed_at is not None or stream.parent is not None
    if last is not None and last.state == "cancelled" and over:
        return "cancelled"
    if stream.closed or stream.run.closed_at is not None or stream.joined_to is not None:
        return "done"
    if stream.parent is not None and last is not None and stream.program is None:
        return "done"  # a branch is over when its ops are; if it goes on, it is no longer
    return "idle"
