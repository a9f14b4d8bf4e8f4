"""How far a request is: its tokens, and the slots that hold their keys and values."""

from __future__ import annotations

from array import array
from typing import Literal, NamedTuple

from asgl.errors import RequestError
from asgl.plan import INT, SampledToken
from asgl.scheduling.radix_cache import Node
from asgl.scheduling.request import Grammar, Request
from asgl.scheduling.select_tree import SelectTree
from asgl.types import FinishReason

State = Literal["waiting", "running", "ended"]


class SequenceState:
    """The state of a request, from its submission to its end.

        tokens  p p p p p p p p g g g       the prompt, and what was generated
        slots   s s s s s s s s s s         the last sampled token has none yet
                |- covered -|- own -|
                |--- computed ---|          the rest is written by steps in flight

    `node` is the locked node of the radix cache that covers the first `covered` slots; the others
    are the request's own, but the first `borrowed` of them: those are of another request, whose
    step computes what both share.

    While a step in flight samples a token for it, the token is *pending*: the sequence has it, but
    nobody knows it yet.

    Each field has one writer:

        KVCache       slots, computed, node, covered, lender, borrowed, borrowers
        Generation    tokens, grammar
        StepInFlight  pending
        RadixCache    matched, watched_at
        Scheduler     the rest
    """

    __slots__ = (
        "admissions",
        "arrival",
        "arrived_at",
        "borrowed",
        "borrowers",
        "cached_tokens",
        "computed",
        "covered",
        "grammar",
        "id",
        "lender",
        "matched",
        "most_computed",
        "namespace",
        "node",
        "pending",
        "poisoned",
        "prompt",
        "request",
        "retracted",
        "slots",
        "state",
        "tokens",
        "tree",
        "watched_at",
    )

    def __init__(self, request: Request, *, arrival: int = 0, arrived_at: int = 0) -> None:
        self.request = request
        # said again, because every step reads them of every request
        self.id, self.prompt, self.namespace = request.id, request.prompt, request.namespace
        self.most_computed = len(request.prompt) + max(request.max_tokens - 1, 0)
        """How many of its tokens are ever computed: the last one of a generation is not."""
        self.tree = SelectTree(request.options) if request.options is not None else None
        """The options of a select, and how far they are scored."""
        self.arrival = arrival
        """Its place in the order of submission."""
        self.arrived_at = arrived_at
        """How many tokens the scheduler had computed then: its age is counted in tokens computed
        since."""
        self.state: State = "waiting"
        self.admissions = 0
        self.retracted = False
        """It was retracted once; from then on its whole need is reserved, so that it never is
        again."""
        self.cached_tokens = 0
        """How many tokens of the prompt were in the cache at the first admission, or borrowed, and
        so were not computed."""
        self.poisoned = False
        """A step computed NaN or infinity for it: what it computed must not be cached."""

        self.tokens = array(INT, request.prompt)
        self.grammar: Grammar | None = request.grammar
        """None once it asks for nothing more."""
        self.pending = 0

        self.slots = array(INT)
        self.computed = 0
        self.node: Node | None = None
        self.covered = 0
        self.lender: SequenceState | None = None
        """Whose slots it borrows until a step in flight has computed them."""
        self.borrowed = 0
        self.borrowers: list[SequenceState] = []
        """Those that borrow slots of this one."""

        self.matched = 0
        """While it waits: how many of its tokens are in the cache."""
        self.watched_at: Node | None = None

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def remaining(self) -> int:
        """Tokens whose keys and values are not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def unplanned(self) -> int:
        """Tokens that have no slot yet and need one, those pending included: what the next step may
        compute."""
        known = len(self.tokens) + self.pending
        return (known if known < self.most_computed else self.most_computed) - len(self.slots)

    @property
    def is_written(self) -> bool:
        """Whether steps in flight write slots of it."""
        return len(self.slots) > self.computed or (
            self.tree is not None and bool(self.tree.holding)
        )

    @property
    def lends(self) -> bool:
        """Whether steps in flight, or in planning, compute some of its prompt."""
        return self.computed < len(self.prompt) and len(self.slots) > self.computed

    @property
    def needs_its_token(self) -> bool:
        """Whether the next step can only be planned once it is known what the step in flight
        samples."""
        return (
            self.pending > 0
            and self.unplanned > 0
            and (self.grammar is not None or self.request.spec.needs_history)
        )

    @property
    def wants_logits(self) -> bool:
        """Whether the last token of the sequence must be computed even if it is in the cache."""
        return self.request.max_tokens > 0 or self.tree is not None

    @property
    def is_complete(self) -> bool:
        """Whether a request that generates nothing has all that it wants."""
        if self.request.max_tokens > 0 or self.remaining:
            return False
        return self.tree is None or not self.tree.unfinished

    @property
    def need(self) -> int:
        """The most slots that the request can ever hold at once."""
        return self.most_computed + (self.tree.depth if self.tree is not None else 0)

    def __repr__(self) -> str:
        return (
            f"<SequenceState of request {self.id}, {self.state}: {len(self.prompt)} prompt "
            f"+ {self.generated} generated tokens, {self.computed} computed, {self.covered} "
            "covered>"
        )


class Update(NamedTuple):
    """News of a request: a token was sampled, or it ended, or both; or it was admitted or
    retracted."""

    sequence: SequenceState
    token: SampledToken | None = None
    reason: FinishReason | None = None
    ended: bool = False
    event: Literal["admitted", "retracted"] | None = None
    error: RequestError | None = None
    """Why it ended, if that is no finish."""
    cause: str = ""
    """Why it was retracted."""
