"""A run as its events tell it: events in, tree and series out. Pure: no clock, no terminal.

    Model ── Run ── Stream ── Op ── Request ── Token
                      │ └─ children: what was forked from it
                      └─ segments: what it says, by tokens

The viewer, the page and the statistics read this, and nothing else. Any prefix of a trace, and any
part of one, makes a model: what an event refers to and was not told of is made up as it is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from asgl.trace.events import (
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
from asgl.trace.nodes import (
    ACTIVE,
    ENDED,
    RATE_SECONDS,
    Op,
    Rejected,
    Request,
    Run,
    Segment,
    Stream,
    Token,
    ToolCall,
    shortened,
    state_of,
)

_TAIL = 400
"""So many characters are kept of what a live request says."""
_LIVE_STEPS, _LIVE_RATES, _LIVE_ENDED, _LIVE_OPS = 1024, 256, 1000, 64
"""What a live model keeps: steps, rates, programs that are over, and ops of each stream."""


class Model:
    """Takes events, in the order in which they happened.

    live: keeps what a view of a running program needs, and no more: the last steps, the ends of
    texts, and a thousand programs that are over, besides those that failed.
    """

    def __init__(self, events: Iterable[Event] = (), *, live: bool = False) -> None:
        self.live = live
        self.runs: dict[int, Run] = {}
        self.now = 0.0
        """The time of the last event."""
        self.events = 0
        self._take: dict[type[Any], Callable[[Run, Any], None]] = {
            RuntimeEvent: self._runtime,
            ProgramEvent: self._program,
            StreamEvent: self._stream,
            OpEvent: self._op,
            TextEvent: self._text,
            WaitEvent: self._wait,
            ToolEvent: self._tool,
            ValidationEvent: self._validation,
            BudgetEvent: self._budget,
            RequestEvent: self._request,
            TokenEvent: self._token,
            StepEvent: self._step,
            EvictionEvent: self._eviction,
        }
        for event in events:
            self.apply(event)

    @property
    def run(self) -> Run | None:
        """The one that was opened last."""
        return next(reversed(self.runs.values()), None)

    def apply(self, event: Event) -> None:
        """Takes an event. An event of a kind that it does not know is passed over."""
        run = self.runs.get(event.run)
        if run is None:
            run = self._new_run(event)
        self.now = max(self.now, event.time)
        run.now = max(run.now, event.time)
        self.events += 1
        take = self._take.get(type(event))
        if take is not None:
            take(run, event)

    def _new_run(self, event: Event) -> Run:
        run = Run(event.run, self.live, opened_at=event.time, now=event.time)
        if self.live:
            run.steps = deque(maxlen=_LIVE_STEPS)
        self.runs[event.run] = run
        return run

    # --- what there is

    def _stream_of(self, run: Run, number: int, time: float) -> Stream:
        stream = run.streams.get(number)
        if stream is None:
            stream = Stream(number, run, opened_at=time)
            run.streams[number] = stream
            run.roots.append(stream)
            run.counts[stream.state] += 1
            run.root_states[stream.state] += 1
        return stream

    def _op_of(self, run: Run, stream_id: int, number: int, time: float) -> Op:
        stream = self._stream_of(run, stream_id, time)
        op = stream.ops.get(number)
        if op is None:
            op = stream.ops[number] = Op(stream, number, submitted_at=time)
            stream.open_ops[number] = op
        return op

    def _request_of(self, run: Run, number: int) -> Request:
        request = run.requests.get(number)
        if request is None:
            request = run.requests[number] = Request(number)
        return request

    # --- what happens

    def _runtime(self, run: Run, event: RuntimeEvent) -> None:
        if event.kind == "closed":
            run.closed_at = event.time
            for stream in run.streams.values():
                self._settle(stream)
            return
        run.model, run.device, run.kernels = event.model, event.device, event.kernels
        run.capacity, run.max_running = event.capacity, event.max_running
        run.started_at, run.opened_at = event.started_at, event.time

    def _program(self, run: Run, event: ProgramEvent) -> None:
        stream = self._stream_of(run, event.stream_id, event.time)
        stream.program, stream.item = event.program, event.item
        stream.program_state = ENDED.get(event.kind)
        if stream.program_state is not None:
            stream.ended_at = event.time
            stream.reason = event.reason
        self._settle(stream)

    def _stream(self, run: Run, event: StreamEvent) -> None:
        known = event.stream_id in run.streams
        stream = self._stream_of(run, event.stream_id, event.time)
        if event.name is not None:
            stream.name = event.name
        if event.kind == "closed":
            stream.closed = True
        elif event.kind == "joined":
            stream.joined_to = event.parent_id
        elif (
            event.kind == "forked"
            and not known
            and event.parent_id is not None
            and event.parent_id != event.stream_id
        ):
            run.roots.pop()  # it was just made
            run.root_states[stream.state] -= 1
            parent = self._stream_of(run, event.parent_id, event.time)
            stream.parent, stream.index = parent, len(parent.children)
            parent.children.append(stream)
            parent.child_states[stream.state] += 1
        self._settle(stream)

    def _op(self, run: Run, event: OpEvent) -> None:
        op = self._op_of(run, event.stream_id, event.number, event.time)
        stream = op.stream
        op.kind, op.name = event.op, event.name
        stream.last_op = op
        if event.request_id is not None and event.kind == "requested":
            request = self._request_of(run, event.request_id)
            request.op = op
            if request not in op.requests[-2:]:
                op.requests.append(request)
                _count(stream, request)
        if event.kind in ("started", "requested") and op.started_at is None:
            op.started_at = event.time
        if event.kind in ENDED:
            op.state, op.ended_at = ENDED[event.kind], event.time
            op.text, op.reason = event.text, event.reason
            stream.open_ops.pop(op.number, None)
            stream.ended_at = event.time
            if event.kind == "failed":
                stream.reason = event.reason
            if self.live:
                op.text = op.text[-_TAIL:]
                _forget_ops(run, stream)
        self._settle(stream)

    def _text(self, run: Run, event: TextEvent) -> None:
        stream = self._stream_of(run, event.stream_id, event.time)
        if self.live:
            return  # what is shown is what ops say
        segments = stream.segments
        while segments and segments[-1].position + segments[-1].count > event.position:
            last = segments.pop()
            if last.position < event.position:
                segments.append(shortened(last, event.position - last.position))
                break
        if event.tokens:
            request = None
            if event.request_id is not None:
                request = self._request_of(run, event.request_id)
            segments.append(
                Segment(
                    event.position, event.tokens, event.source, event.text, event.pieces, request
                )
            )

    def _wait(self, run: Run, event: WaitEvent) -> None:
        stream = self._stream_of(run, event.stream_id, event.time)
        if event.kind == "waits":
            stream.waits.append((event.for_stream, event.for_op, event.time))
        else:
            for index, (other, op, since) in enumerate(stream.waits):
                if (other, op) == (event.for_stream, event.for_op):
                    stream.waited += event.time - since
                    for op_behind in stream.open_ops.values():
                        op_behind.waited += event.time - since
                        break
                    del stream.waits[index]
                    break
        self._settle(stream)

    def _tool(self, run: Run, event: ToolEvent) -> None:
        op = self._op_of(run, event.stream_id, event.op, event.time)
        call = next((one for one in op.tools if one.number == event.call), None)
        if call is None:
            call = ToolCall(event.call, event.tool, dict(event.arguments), began_at=event.time)
            op.tools.append(call)
            op.stream.open_tools += 1
        if event.kind in ENDED and call.state == "tool":
            call.state, call.seconds = ENDED[event.kind], event.seconds
            call.result, call.error = event.result, event.error
            op.stream.open_tools -= 1
            op.stream.ended_at = event.time
        self._settle(op.stream)

    def _validation(self, run: Run, event: ValidationEvent) -> None:
        op = self._op_of(run, event.stream_id, event.number, event.time)
        op.rejected.append(Rejected(event.time, event.attempt, event.text, event.reason))
        self._settle(op.stream)

    def _budget(self, run: Run, event: BudgetEvent) -> None:
        self._op_of(run, event.stream_id, event.number, event.time).budgets.append(event)

    def _request(self, run: Run, event: RequestEvent) -> None:
        request = self._request_of(run, event.request_id)
        if request.ended_at is not None:
            return  # what has ended does not change; a part of a trace may say so
        request.work, request.prompt_tokens = event.work, event.prompt_tokens
        if event.kind == "submitted":
            request.submitted_at = request.queued_at = event.time
        elif event.kind == "admitted":
            if request.admitted_at is None:
                request.cached_tokens = event.cached_tokens
                run.prompt_tokens += event.prompt_tokens
                run.cached_tokens += event.cached_tokens
                if request.op is not None:
                    request.op.stream.prompt_total += event.prompt_tokens
                    request.op.stream.cached_total += event.cached_tokens
            if request.queued_at is not None:
                request.waited += event.time - request.queued_at
            request.admitted_at, request.queued_at = event.time, None
            request.state = "generating" if request.generated else "computing"
        elif event.kind == "retracted":
            run.retractions += 1
            request.retractions.append((event.time, event.reason))
            request.state, request.queued_at = "waiting", event.time
        else:
            if request.queued_at is not None:
                request.waited += event.time - request.queued_at
                request.queued_at = None
            request.state, request.ended_at = ENDED.get(event.kind, "done"), event.time
            request.reason = event.reason
            request.generated = max(request.generated, event.generated_tokens)
        if request.op is not None:
            self._settle(request.op.stream)
        elif self.live and request.ended_at is not None:
            run.requests.pop(request.id, None)

    def _token(self, run: Run, event: TokenEvent) -> None:
        request = self._request_of(run, event.request_id)
        run.generated += 1
        run.forced += event.source == "forced"
        slot = int(event.time / RATE_SECONDS)
        run.rates[slot] = run.rates.get(slot, 0) + 1
        if self.live and len(run.rates) > _LIVE_RATES:
            del run.rates[next(iter(run.rates))]
        if request.first_token_at is None:
            request.first_token_at = event.time
            request.waited_before = request.waited
        request.generated += 1
        if request.op is not None:
            _add_generated(request.op.stream, 1)
        request.tail = (request.tail + event.text)[-_TAIL:]
        if not self.live:
            request.tokens.append(
                Token(
                    event.time, event.token_id, event.text, event.source, event.logprob, event.top
                )
            )
        if request.state in ("waiting", "computing"):
            request.state = "generating"
            if request.op is not None:
                self._settle(request.op.stream)

    def _step(self, run: Run, event: StepEvent) -> None:
        run.steps.append(event)
        for number, _ in event.rows:
            request = run.requests.get(number)
            if request is not None:
                request.steps += 1

    def _eviction(self, run: Run, event: EvictionEvent) -> None:
        run.evicted += event.tokens
        if not self.live:
            run.evictions.append(event)

    # --- what follows of it

    def _settle(self, stream: Stream) -> None:
        """Works out the state of a stream again, and what is counted of it."""
        run, old = stream.run, stream.state
        new = state_of(stream)
        if new == old:
            if self.live and new not in ACTIVE:
                self._over(stream)
            return
        stream.state = new
        run.counts[old] -= 1
        run.counts[new] += 1
        parent = stream.parent
        states = run.root_states if parent is None else parent.child_states
        states[old] -= 1
        states[new] += 1
        if (new in ACTIVE) != (old in ACTIVE):
            change = 1 if new in ACTIVE else -1
            if change > 0:
                run.active[stream.id] = stream
                run.ended.pop(stream.id, None)
            else:
                run.active.pop(stream.id, None)
            above = parent
            while above is not None:
                above.active_below += change
                above = above.parent
            if parent is not None:
                self._settle(parent)
        if new == "failed":
            run.failed[stream.id] = stream
        elif old == "failed":
            run.failed.pop(stream.id, None)
        if new not in ACTIVE:
            self._over(stream)

    def _over(self, stream: Stream) -> None:
        """Notes a tree that is over; a live model forgets the oldest of those that did not fail."""
        root = stream
        while root.parent is not None:
            root = root.parent
        run = root.run
        runs = root.state == "idle" and root.program is not None
        if runs or root.state not in ("done", "cancelled", "idle") or root.active_below:
            run.ended.pop(root.id, None)
            return
        run.ended.pop(root.id, None)
        run.ended[root.id] = root
        if not self.live or len(run.ended) <= _LIVE_ENDED:
            return
        oldest = run.ended.pop(next(iter(run.ended)))
        run.roots.remove(oldest)
        for below in oldest.walk():
            run.streams.pop(below.id, None)
            run.failed.pop(below.id, None)
            for op in below.ops.values():
                for request in op.requests:
                    run.requests.pop(request.id, None)


def _count(stream: Stream, request: Request) -> None:
    """Counts for its stream what a request was told of before it was known whose it is."""
    if request.admitted_at is not None:
        stream.prompt_total += request.prompt_tokens
        stream.cached_total += request.cached_tokens
    _add_generated(stream, request.generated)


def _add_generated(stream: Stream | None, tokens: int) -> None:
    while stream is not None:
        stream.generated += tokens
        stream = stream.parent


def _forget_ops(run: Run, stream: Stream) -> None:
    """Keeps the last ops of a stream."""
    while len(stream.ops) > _LIVE_OPS:
        oldest = next(iter(stream.ops.values()))
        if oldest.ended_at is None:
            return
        del stream.ops[oldest.number]
        for request in oldest.requests:
            run.requests.pop(request.id, None)
