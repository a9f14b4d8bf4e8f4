"""What a prompt stream says: tokens, which are the truth, and the text, variables and messages that
go with them.

Texts appended one after the other are one run, whatever calls they came from, and are tokenized
together, once, when an op seals the run. Control tokens stand between runs:

    appended       <|im_start|>   "user\\n"  "Hi "  "there"   <|im_end|>   "\\n"
    tokenized      1            | "user\\nHi there"         | 2          | "\\n"
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from asgl.errors import StreamError
from asgl.language.backend import Tokenizer
from asgl.language.op_info import OpInfo
from asgl.types import Message

Part: TypeAlias = str | int
"""Text, or the id of a control token."""

SYNCHRONOUS_BYTES = 32 * 1024
"""A longer run is tokenized off the event loop, which it would hold up for milliseconds."""

_CHARACTER = 4
"""The most bytes, and so the most tokens, that a character has."""
_HEALED = 8
"""Token healing takes away at most so many tokens (`asgl.engine.healing.MOST`)."""


class Run:
    """What was appended and not yet tokenized. Neighbouring texts are joined."""

    __slots__ = ("_known", "_parts", "_tail", "of_template")

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self._parts: list[Part] = list(parts)
        self._tail: list[str] = []
        """Texts after the parts, not joined yet: a thousand appends are joined once."""
        self._known: tuple[tuple[Part, ...], int | None, list[int]] | None = None
        self.of_template = False
        """Whether it begins with what a chat template writes."""

    def append(self, part: Part) -> None:
        if isinstance(part, str):
            if part:
                self._tail.append(part)
        else:
            self._join()
            self._parts.append(part)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Texts and control tokens, no two texts next to each other."""
        self._join()
        return tuple(self._parts)

    @property
    def size(self) -> int:
        """How much text there is to tokenize, in bytes of UTF-8."""
        return sum(len(part.encode()) for part in self.parts if isinstance(part, str))

    def clear(self) -> None:
        self.of_template = False
        self._parts.clear()
        self._tail.clear()

    def reset(self, parts: Sequence[Part]) -> None:
        """Back to what `parts` were."""
        self._parts = list(parts)
        self._tail.clear()

    def token_ids(self, tokenizer: Tokenizer, after: int | None) -> list[int]:
        """The tokens of the run after the token `after`. What was once tokenized is remembered as
        long as nothing is added."""
        parts = self.parts
        if self._known is None or not self.knows(parts, after):
            self.learn(parts, after, tokenizer.encode_run(parts, after))
            assert self._known is not None
        return self._known[2]

    def learn(self, parts: tuple[Part, ...], after: int | None, token_ids: list[int]) -> None:
        """Remembers the tokens of `parts`."""
        self._known = (parts, after, token_ids)

    def knows(self, parts: tuple[Part, ...], after: int | None) -> bool:
        return self._known is not None and self._known[:2] == (parts, after)

    def _join(self) -> None:
        if not self._tail:
            return
        text = "".join(self._tail)
        self._tail.clear()
        if self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        else:
            self._parts.append(text)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message that is being written. `opened_by` is the role block, or the op,
    that closes it."""

    opened_by: object
    role: str
    start: int
    """Where its content begins in the stream's text."""
    suffix: str = ""
    """What the template writes after it."""


class Savepoint(NamedTuple):
    """How far a state was. Good for going back as long as nothing before it was taken away."""

    tokens: int
    text: int
    parts: tuple[Part, ...]
    messages: int
    turn: Turn | None
    roles: int
    end: array[int]
    """The last tokens, which token healing may take away."""


class Origin(NamedTuple):
    """Where text comes from that ends at a place of the stream's text: "given" by the program,
    "sampled", "constrained", "selected", or "joined". It begins where the one before ends."""

    end: int
    how: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole state at a place where its run was sealed. Shared by all that start from it, and
    never changed."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    text: str = ""
    variables: dict[str, Any] = field(default_factory=dict[str, Any])
    messages: tuple[Message, ...] = ()
    turn: Turn | None = None
    roles: tuple[str, ...] = ()
    bos_added: bool = False
    origins: tuple[Origin, ...] = ()
    infos: dict[str, OpInfo] = field(default_factory=dict[str, OpInfo])


class Transcript:
    """What a stream says so far. Changed only by the op that runs (see `interpreter`), which the
    stream can roll back."""

    __slots__ = (
        "_texts",
        "_tokenizer",
        "bos_added",
        "infos",
        "messages",
        "origins",
        "roles",
        "run",
        "text_length",
        "tokens",
        "turn",
        "variables",
    )

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.restore(Snapshot())

    # --- reading

    @property
    def text(self) -> str:
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    def token_ids(self, upto: Savepoint | None = None) -> list[int]:
        """All tokens, the run that is not sealed yet as it would be tokenized now; of an earlier
        point if `upto` is given."""
        if upto is None:
            return [*self.tokens, *self._run_ids(self.run, self.tokens)]
        tokens = self.tokens[: upto.tokens]
        return [*tokens, *self._run_ids(Run(upto.parts), tokens)]

    @property
    def after(self) -> int | None:
        """The last token; None at the beginning, where nothing is but a beginning-of-text token
        that no program wrote."""
        return self.tokens[-1] if len(self.tokens) > self.bos_added else None

    @property
    def between_messages(self) -> bool:
        """Whether a message was written, and none is open: there only the chat template writes."""
        return self.turn is None and bool(self.roles)

    @property
    def cut(self) -> bool:
        """Whether the tokens end in the middle of a character."""
        return bool(self._tokenizer.cut_bytes(self.tokens[-_CHARACTER:]))

    # --- growing

    def append(self, text: str) -> None:
        """Appends text to the run: it has no tokens yet. Lone surrogates become "?", as they do in
        tokens."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()
        self.run.append(text)
        self._say(text)

    def append_control(self, token_id: int, text: str) -> None:
        """Appends a control token to the run; `text` is how it is written in the stream's text."""
        self.run.append(token_id)
        self._say(text)

    def append_tokens(
        self,
        token_ids: Sequence[int],
        text: str,
        how: str,
        *,
        healed: int = 0,
        completes: bool = False,
    ) -> int:
        """Appends tokens to a transcript whose run is sealed, and the text that they stand for.

        how: where they come from, see `Origin`. healed: how many of the last tokens the new ones
        stand for too; `text` begins after them. completes: the tokens before end in the middle of a
        character, which shows as U+FFFD, and `text` begins with the whole character, which takes
        its place. Returns where in the stream's text `text` begins.
        """
        if healed:
            del self.tokens[len(self.tokens) - healed :]
        if completes:
            self._cut(self.text_length - 1)
        start = self.text_length
        self.tokens.extend(token_ids)
        self._say(text, how)
        return start

    def seal(self) -> None:
        """Tokenizes the run for good."""
        ids = self._run_ids(self.run, self.tokens)
        if not self.tokens:
            self.bos_added = self._adds_bos(self.run)
        self.tokens.extend(ids)
        self.run.clear()

    def prompt(self) -> array[int]:
        """The tokens to continue from, at least one. StreamError if there is nothing, and no
        beginning-of-text token."""
        if not self.tokens:
            if self._tokenizer.bos is None:
                raise StreamError(
                    "the prompt is empty, and the model has no beginning-of-text token to start "
                    "from: append "
                    "some text first"
                )
            self.tokens.append(self._tokenizer.bos)
            self.bos_added = True
        return self.tokens

    def set_variables(self, values: Mapping[str, Any], infos: Mapping[str, OpInfo]) -> None:
        """Sets variables; `infos`: of those among them that were generated."""
        self.variables.update(values)
        for name in values:
            self.infos.pop(name, None)
        self.infos.update(infos)

    # --- going back

    def savepoint(self) -> Savepoint:
        return Savepoint(
            len(self.tokens),
            self.text_length,
            self.run.parts,
            len(self.messages),
            self.turn,
            len(self.roles),
            self.tokens[-_HEALED:],
        )

    def roll_back(self, point: Savepoint) -> None:
        """As if nothing had been appended since `point`. Variables are set only once an op is done,
        so they stand."""
        del self.tokens[point.tokens - len(point.end) :]
        self.tokens.extend(point.end)
        self._cut(point.text)
        self.run.reset(point.parts)
        del self.messages[point.messages :]
        self.turn = point.turn
        del self.roles[point.roles :]
        self.bos_added = self.bos_added and point.tokens > 0

    def snapshot(self) -> Snapshot:
        """The state as it is. Its run must be sealed."""
        return Snapshot(
            self.tokens[:],
            self.text,
            dict(self.variables),
            tuple(self.messages),
            self.turn,
            tuple(self.roles),
            self.bos_added,
            tuple(self.origins),
            dict(self.infos),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Makes this state what the snapshot says."""
        self.tokens = snapshot.tokens[:]
        self.run = Run()
        self._texts = [snapshot.text]
        self.text_length = len(snapshot.text)
        self.origins = list(snapshot.origins)
        """Of all of the text; of what is not in it, because a file did not have it, it is not
        known."""
        self.variables = dict(snapshot.variables)
        self.infos = dict(snapshot.infos)
        """How those variables that were generated came about."""
        self.messages = list(snapshot.messages)
        self.turn = snapshot.turn
        self.roles = list(snapshot.roles)
        """Those of the messages that were begun: what the template writes depends on them."""
        self.bos_added = snapshot.bos_added
        """Whether the first token is a beginning-of-text token that no program wrote."""

    def _say(self, text: str, how: str = "given") -> None:
        self._texts.append(text)
        self.text_length += len(text)
        if self.origins and self.origins[-1].how == how:
            self.origins.pop()
        self.origins.append(Origin(self.text_length, how))

    def _cut(self, length: int) -> None:
        """Takes back the text from there on."""
        self._texts = [self.text[:length]]
        self.text_length = length
        while self.origins and self.origins[-1].end > length:
            last = self.origins.pop()
            if length and (not self.origins or self.origins[-1].end < length):
                self.origins.append(Origin(length, last.how))
                break

    def _run_ids(self, run: Run, tokens: array[int]) -> list[int]:
        """The tokens of the run, after `tokens`; with a beginning-of-text token where the tokenizer
        adds one."""
        after = tokens[-1] if len(tokens) > self.bos_added else None
        ids = run.token_ids(self._tokenizer, after)
        return [self._tokenizer.bos or 0, *ids] if not tokens and self._adds_bos(run) else ids

    def _adds_bos(self, run: Run) -> bool:
        """Whether the tokenizer puts a beginning-of-text token before the run, the first: not
        before what a chat template writes, nor before a run that begins with one, or is empty."""
        tokenizer, parts = self._tokenizer, run.parts
        return bool(
            tokenizer.adds_bos
            and tokenizer.bos is not None
            and parts
            and parts[0] != tokenizer.bos
            and not run.of_template
        )
