"""A request as the scheduler sees it: what is to be computed, and how far it is."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from asgl.plan import INT, SampledToken
from asgl.sampling import SamplingSpec
from asgl.types import FinishReason

if TYPE_CHECKING:
    from asgl.scheduling.branches import Branches
    from asgl.scheduling.radix_cache import Node

State = Literal["waiting", "running", "ended"]


class Output(Protocol):
    """Watches the tokens of a generation for its end."""

    def push(self, token_id: int, /) -> FinishReason | None: ...


class Grammar(Protocol):
    """What the tokens of a generation must be: see `asgl.execution.grammar.Matcher`."""

    @property
    def error(self) -> str | None:
        """Why the generation cannot go on, if it is complete for another reason than that its text
        is whole."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether the text so far is whole."""
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing may follow. Asked after each token, and once before the first."""
        ...

    @property
    def free(self) -> bool:
        """Whether it asks for nothing more, whatever comes: the generation then goes on without it.
        Asked after each token."""
        ...

    def ends(self, token_id: int, /) -> bool:
        """Whether a sampled token is none of the text, but says that it ends here."""
        ...

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, if it is known that they must. The same until the next
        `push`."""
        ...

    def mask(self, banned: Iterable[int], /) -> bytes | None:
        """The tokens that may come next, as `plan.SampleRow.mask`: not those in `banned`, unless
        none remains. None: all."""
        ...

    def push(self, token_id: int, /) -> None:
        """Goes on by a token that does not end the generation."""
        ...


class Request:
    """One piece of work: to extend the cache by a prompt, and then to generate tokens, or to score
    branches, or neither.

    `tokens` is the prompt and what was generated. `slots` are those of the tokens whose keys and
    values are computed, or are being computed by a step in flight; `node` is the locked node of the
    radix cache that covers the first `covered` of them, the rest is the request's own:

        tokens  p p p p p p p p g g g
        slots   s s s s s s s s s s          the last sampled token has none yet
                |- covered -|- own -|

    The first of its own may be `borrowed`: they are those of another request whose step computes
    what both share.

    While a step in flight samples a token for it, the token is `pending`: the sequence has it, but
    nobody knows it yet.
    """

    __slots__ = (
        "admissions",
        "arrival",
        "arrived_at",
        "banned",
        "borrowed",
        "borrowers",
        "branches",
        "cached_tokens",
        "computed",
        "covered",
        "grammar",
        "id",
        "lender",
        "matched",
        "max_tokens",
        "min_tokens",
        "namespace",
        "node",
        "output",
        "pending",
        "priority",
        "prompt",
        "retracted",
        "slots",
        "spec",
        "state",
        "tokens",
        "watched_at",
    )

    def __init__(
        self,
        id: int,
        prompt: Sequence[int],
        *,
        max_tokens: int = 0,
        spec: SamplingSpec | None = None,
        output: Output | None = None,
        min_tokens: int = 0,
        banned: Sequence[int] = (),
        branches: Branches | None = None,
        grammar: Grammar | None = None,
        namespace: str | None = None,
        priority: int = 0,
    ) -> None:
        self.id = id
        self.prompt = array(INT, prompt)
        self.max_tokens = max_tokens
        """How many tokens to generate at most; 0: the prompt's keys and values are all that is
        wanted."""
        self.spec = spec or SamplingSpec()
        self.output = output
        self.min_tokens = min_tokens
        self.banned = tuple(banned)
        """Tokens that may not be sampled before `min_tokens` are generated."""
        self.branches = branches
        """The tree of continuations to score, for a select."""
        self.grammar = grammar
        """What the generated tokens must be; None once it asks for nothing more."""
        self.namespace = namespace
        self.priority = priority

        self.state: State = "waiting"
        self.tokens = array(INT, prompt)
        self.slots = array(INT)
        self.computed = 0
        """How many tokens have keys and values; more slots than that are being written by steps in
        flight."""
        self.pending = 0
        """How many tokens steps in flight sample for it."""
        self.node: Node | None = None
        self.covered = 0
        self.lender: Request | None = None
        """The request whose slots it borrows until a step in flight has computed them."""
        self.borrowed = 0
        """How many."""
        self.borrowers: list[Request] = []
        """The requests that borrow slots of this one."""
        self.cached_tokens = 0
        """How many tokens of the prompt were in the cache at the first admission, or borrowed, and
        so were not computed."""
        self.admissions = 0
        self.retracted = False
        """It was retracted once; from then on its whole need is reserved, so that it never is
        again."""
        self.arrival = 0
        """Its place in the order of submission."""
        self.arrived_at = 0
        """How many tokens the scheduler had computed then: its age is counted in tokens computed
        since."""
        self.matched = 0
        """While it waits: how many of its tokens are in the cache. Kept by the cache."""
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
        last = len(self.prompt) + max(
            self.max_tokens - 1, 0
        )  # the last token of a generation is not computed
        return min(len(self.tokens) + self.pending, last) - len(self.slots)

    @property
    def is_written(self) -> bool:
        """Whether steps in flight write slots of it."""
        return len(self.slots) > self.computed or (
            self.branches is not None and bool(self.branches.holding)
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
            and (self.grammar is not None or self.spec.needs_history)
        )

    @property
    def wants_logits(self) -> bool:
        """Whether the last token of the sequence must be computed even if it is in the cache."""
        return self.max_tokens > 0 or self.branches is not None

    @property
    def need(self) -> int:
        """The most slots that the request can ever hold at once. The last token of a generation
        needs none."""
        branches = self.branches.depth if self.branches is not None else 0
        return len(self.prompt) + max(self.max_tokens - 1, 0) + branches

    def __repr__(self) -> str:
        return (
            f"<Request {self.id} {self.state}: {len(self.prompt)} prompt + {self.generated} "
            "generated tokens, "
            f"{self.computed} computed, {self.covered} covered>"
        )


class Update(NamedTuple):
    """News of a request: a token was sampled, or it ended, or both; or it was admitted or
    retracted."""

    request: Request
    token: SampledToken | None = None
    reason: FinishReason | None = None
    ended: bool = False
    event: Literal["admitted", "retracted"] | None = None
