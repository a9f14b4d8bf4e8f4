"""What is asked of the scheduler, and what it asks of whoever watches a generation."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from asgl.plan import INT
from asgl.sampling import SamplingSpec
from asgl.types import FinishReason


class Output(Protocol):
    """Watches the tokens of a generation for its end."""

    def push(self, token_id: int, /) -> FinishReason | None:
        """Takes the next token; the reason if the generation ends with it."""
        ...


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


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One piece of work: to cache a prompt, and then to generate tokens, or to score options, or
    neither. How far it is: see `SequenceState`."""

    id: int
    """Unique among the requests of a scheduler."""
    prompt: Sequence[int]
    """Token ids; copied."""
    max_tokens: int = field(default=0, kw_only=True)
    """How many tokens to generate at most; 0: the prompt's keys and values, and the scores of the
    options, are all that is wanted."""
    spec: SamplingSpec = field(default=SamplingSpec(), kw_only=True)
    """How to sample them."""
    output: Output | None = field(default=None, kw_only=True)
    """Says where the generation ends; None: at `max_tokens`."""
    min_tokens: int = field(default=0, kw_only=True)
    """Until so many tokens are generated, none of `banned` is sampled."""
    banned: tuple[int, ...] = field(default=(), kw_only=True)
    options: Sequence[Sequence[int]] | None = field(default=None, kw_only=True)
    """The continuations to score, for a select."""
    grammar: Grammar | None = field(default=None, kw_only=True)
    """What the generated tokens must be."""
    namespace: str | None = field(default=None, kw_only=True)
    """No cached prefix is shared with another namespace."""
    priority: int = field(default=0, kw_only=True)
    """Higher ones are admitted first, and retracted last."""

    def __post_init__(self) -> None:
        # copied once, so that a list that its caller changes later does not change the request
        object.__setattr__(self, "prompt", array(INT, self.prompt))
