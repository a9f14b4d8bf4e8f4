"""A run that has everything in it, as events: programs in every state, forks, tools, retries,
waits, budgets, retraction, eviction, and tokens of all kinds."""

from __future__ import annotations

from asgl.trace import (
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
from asgl.types import TokenLogprob


class Demo:
    """Writes events, a tenth of a second apart."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now = 0.0
        self._requests = 0
        self._tell(RuntimeEvent("opened", "demo-135m", "cpu", "cpu", 4000, 8, 1_764_355_500.0))

    def _tell(self, event: Event, seconds: float = 0.1) -> None:
        self.now += seconds
        object.__setattr__(event, "time", round(self.now, 3))
        self.events.append(event)

    def program(self, stream: int, name: str, item: int | None = None) -> None:
        self._tell(StreamEvent("opened", stream, None, f"{name}[{item}]"))
        self._tell(ProgramEvent("started", stream, name, item), 0)

    def ends(self, stream: int, name: str, item: int | None, kind, reason: str = "") -> None:
        self._tell(ProgramEvent(kind, stream, name, item, reason))

    def asks(self, stream: int, number: int, op: str, name: str | None, prompt=(), start=0) -> int:
        """An op is submitted, and asks the engine; the request."""
        self._requests += 1
        request, end = self._requests, start + len(prompt)
        self._tell(OpEvent("submitted", stream, number, op, name))
        self._tell(OpEvent("started", stream, number, op, name), 0)
        if prompt:
            self._tell(TextEvent("prompt", stream, start, len(prompt), "", tuple(prompt)), 0)
        work = "score" if op == "select" else "generate"
        self._tell(RequestEvent("submitted", request, end, work=work), 0)
        self._tell(OpEvent("requested", stream, number, op, name, request), 0)
        return request

    def admits(self, request: int, prompt: int, cached: int) -> None:
        self._tell(RequestEvent("admitted", request, prompt, cached))

    def says(self, request: int, *tokens: str, source="sampled") -> None:
        for number, text in enumerate(tokens):
            top = (TokenLogprob(7, text, -0.25), TokenLogprob(8, " other", -1.5))
            self._tell(TokenEvent(request, 100 + number, text, source, -0.25, top), 0.05)

    def step(
        self, number: int, rows, waiting: int = 0, free: int = 2000, cached: int = 900
    ) -> None:
        tokens = sum(count for _, count in rows)
        decode = sum(count == 1 for _, count in rows)
        self._tell(
            StepEvent(
                number,
                decode,
                len(rows) - decode,
                tokens,
                len(rows),
                waiting,
                free,
                cached,
                0.001,
                0.09,
                tuple(rows),
            )
        )

    def finishes(self, stream, number, op, name, request, position, text, tokens) -> None:
        self._tell(RequestEvent("finished", request, position, 0, tokens, "stop"))
        source = "selected" if op == "select" else "generated"
        self._tell(TextEvent(source, stream, position, tokens, text, (), request), 0)
        self._tell(OpEvent("finished", stream, number, op, name, request, text), 0)

    def whole(self) -> list[Event]:
        """The run, up to the point where nothing has to end any more."""
        # a program that forks, and is done
        self.program(0, "ideas", 0)
        first = self.asks(0, 0, "gen", "topic", ["Think", " of", " rain", "."])
        self.admits(first, 4, 0)
        self.step(0, [(first, 4)])
        self.says(first, " Water", " falls", ".\n")
        self.step(1, [(first, 1)])
        self.finishes(0, 0, "gen", "topic", first, 4, " Water falls.", 3)
        for branch in (1, 2):
            self._tell(StreamEvent("forked", branch, 0, "ideas[0]"))
            self._tell(WaitEvent("waits", branch, "start", 0, "snapshot"), 0)
            self._tell(WaitEvent("goes on", branch, "start", 0, "snapshot"))
        second = self.asks(1, 0, "gen", "idea", [" First", ":"], 7)
        third = self.asks(2, 0, "gen", "idea", [" Second", ":"], 7)
        self.admits(second, 9, 7)
        self.admits(third, 9, 7)
        self.step(2, [(second, 2), (third, 2)])
        self.says(second, " um", "brellas", source="constrained")
        self.says(third, " puddles", " 日本")
        self.finishes(1, 0, "gen", "idea", second, 9, " umbrellas", 2)
        self.finishes(2, 0, "gen", "idea", third, 9, " puddles 日本", 2)
        self._tell(TextEvent("joined", 0, 7, 8, "", (" First", ":", " um", "brellas")))
        self._tell(BudgetEvent(0, 0, 7, 100, 1.5, 30.0))
        self.ends(0, "ideas", 0, "finished")
        # one that fails
        self.program(3, "ideas", 1)
        fourth = self.asks(3, 0, "gen", "topic", ["Think", " of", " fire", "."])
        self.admits(fourth, 4, 2)
        self.step(3, [(fourth, 2)])
        self.says(fourth, "{", '"a"', source="forced")
        self._tell(RequestEvent("failed", fourth, 4, 2, 2, "ContextLengthError('too long')"))
        self._tell(TextEvent("undone", 3, 0))
        self._tell(
            OpEvent("failed", 3, 0, "gen", "topic", fourth, "", "ContextLengthError('too long')")
        )
        self.ends(3, "ideas", 1, "failed", "ContextLengthError('too long')")
        # an agent whose tool runs, after one that raised
        self.program(4, "agent")
        fifth = self.asks(4, 0, "gen", None, ["Look", " it", " up"])
        self.admits(fifth, 3, 0)
        self.says(fifth, "look(", "Oslo", ")", source="constrained")
        self.finishes(4, 0, "gen", None, fifth, 3, "look(Oslo)", 3)
        self._tell(ToolEvent("started", 4, 0, 0, "look", {"city": "Lyon"}))
        self._tell(
            ToolEvent("failed", 4, 0, 0, "look", {"city": "Lyon"}, 0.2, "", "KeyError('Lyon')")
        )
        self._tell(ToolEvent("started", 4, 0, 1, "look", {"city": "Oslo", "day": "today"}))
        # one that tries again, one that waits for it, one in the queue after a retraction
        self.program(5, "judge", 0)
        sixth = self.asks(5, 0, "gen", "grade", ["Grade", ":"])
        self.admits(sixth, 2, 0)
        self.says(sixth, " seven", "teen")
        self._tell(ValidationEvent("retried", 5, 0, 0, " seventeen", "more than ten"))
        self.program(6, "judge", 1)
        self._tell(WaitEvent("waits", 6, "text of", 5, "gen 'grade'"))
        self.program(7, "judge", 2)
        seventh = self.asks(7, 0, "gen", "grade", ["Grade", ":"])
        self.admits(seventh, 2, 1)
        self.says(seventh, " ten")
        self._tell(EvictionEvent(120, "room", 4))
        self._tell(RequestEvent("retracted", seventh, 2, 1, 1, "8 running requests need a slot"))
        # one that computes its prompt, one that generates, one that was cancelled
        self.program(8, "tips", 0)
        eighth = self.asks(8, 0, "gen", "tip", ["Tips", " for", " a", " long", " day", ":"])
        self.admits(eighth, 6, 0)
        self.program(9, "tips", 1)
        ninth = self.asks(9, 0, "gen", "tip", ["Tips", " for", " rain", ":"])
        self.admits(ninth, 4, 3)
        self.says(ninth, " Take", " a", " coat", ",\n", " and", " walk", " slowly")
        self.step(4, [(ninth, 1), (eighth, 3)], waiting=1, free=1500, cached=1200)
        self.program(10, "tips", 2)
        self.ends(10, "tips", 2, "cancelled")
        return self.events


def demo_events(*, closed: bool = False) -> list[Event]:
    demo = Demo()
    demo.whole()
    if closed:
        demo._tell(RuntimeEvent("closed"))
    return demo.events
