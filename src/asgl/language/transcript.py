"""What a prompt stream says: tokens, which are the truth, and the text, variables and messages that
go with them.

Texts appended one after the other are one run, whatever calls they came from, and are tokenized
together, once, when an op seals the run. Control tokens stand between runs:

    appended       <|im_start|>   "user\\n"  "Hi "  "there"   <|im_end|>   "\\n"
    tokenized      1            | "user\\nHi there"         | 2          | "\\n"
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from asgl.errors import StreamError
from asgl.language.backend import Tokenizer
from asgl.types import Message

Part: TypeAlias = str | int
"""Text, or the id of a control token."""

SYNCHRONOUS_BYTES = 32 * 1024
"""A longer run is tokenized off the event loop, which it would hold up for milliseconds."""

_HEALED = 8
"""Token healing takes away at most so many tokens (`asgl.engine.healing.MOST`)."""


class Run:
    """What was appended and not yet tokenized. Neighbouring texts are joined."""

    __slots__ = ("_known", "_parts", "_tail")

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self._parts: list[Part] = list(parts)
        self._tail: list[str] = []
        """Texts after the parts, not joined yet: a thousand appends are joined once."""
        self._known: tuple[tuple[Part, ...], str, list[int]] | None = None

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
        self._parts.clear()
        self._tail.clear()

    def reset(self, parts: Sequence[Part]) -> None:
        """Back to what `parts` were."""
        self._parts = list(parts)
        self._tail.clear()

    def token_ids(self, encode: Callable[[str], list[int]], prefix: str = "") -> list[int]:
        """The tokens of the run, which stays as it is; `prefix` goes before its first text.

        What was once tokenized is remembered as long as nothing is added.
        """
        parts = self.parts
        if self._known is None or not self.knows(parts, prefix):
            self.learn(parts, prefix, token_ids_of(parts, encode, prefix))
            assert self._known is not None
        return self._known[2]

    def learn(self, parts: tuple[Part, ...], prefix: str, token_ids: list[int]) -> None:
        """Remembers the tokens of `parts`."""
        self._known = (parts, prefix, token_ids)

    def knows(self, parts: tuple[Part, ...], prefix: str) -> bool:
        return self._known is not None and self._known[:2] == (parts, prefix)

    def _join(self) -> None:
        if not self._tail:
            return
        text = "".join(self._tail)
        self._tail.clear()
        if self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        else:
            self._parts.append(text)


def token_ids_of(
    parts: Sequence[Part], encode: Callable[[str], list[int]], prefix: str = ""
) -> list[int]:
    """Control tokens as they are, each text tokenized on its own, as data; `prefix` goes before the
    first text."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += encode(prefix + part)
            prefix = ""
    return ids


@dataclass(frozen=True, slots=True)
class Turn:
    """A message that is being written. `opened_by` is the role block, or the op,
    that closes it."""

    opened_by: object
    role: str
    start: int
    """Where its content begins in the stream's text."""
    suffix: str | None = None
    """What the template writes after it, if that is not what it always writes after this role."""


class Savepoint(NamedTuple):
    """How far a state was. Good for going back as long as nothing before it was taken away."""

    tokens: int
    text: int
    parts: tuple[Part, ...]
    messages: int
    turn: Turn | None
    has_roles: bool
    end: array[int]
    """The last tokens, which token healing may take away."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole state at a place where its run was sealed. Shared by all that start from it, and
    never changed."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    text: str = ""
    variables: dict[str, Any] = field(default_factory=dict[str, Any])
    messages: tuple[Message, ...] = ()
    turn: Turn | None = None
    has_roles: bool = False
    bos_added: bool = False


class Transcript:
    """What a stream says so far. Changed only by the op that runs (see `interpreter`), which the
    stream can roll back."""

    __slots__ = (
        "_texts",
        "_tokenizer",
        "bos_added",
        "has_roles",
        "messages",
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
        run = self.run if upto is None else Run(upto.parts)
        tokens = self.tokens if upto is None else self.tokens[: upto.tokens]
        return [
            *(tokens or self._leading_bos(run)),
            *run.token_ids(self._tokenizer.encode, self._prefix(tokens)),
        ]

    @property
    def prefix(self) -> str:
        """What goes before the next text that is tokenized: only the first of a prompt has
        something."""
        return self._prefix(self.tokens)

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

    def append_tokens(self, token_ids: Sequence[int], text: str) -> None:
        """Appends tokens to a state whose run is sealed, and the text that they stand for."""
        self.tokens.extend(token_ids)
        self._say(text)

    def heal(self, count: int) -> None:
        """Takes off the last tokens; those that are appended next stand for their text too."""
        del self.tokens[len(self.tokens) - count :]

    def seal(self, token_ids: Sequence[int]) -> None:
        """The run is tokenized for good: these are its tokens."""
        if not self.tokens:
            self.tokens.extend(self._leading_bos(self.run))
            self.bos_added = bool(self.tokens)
        self.tokens.extend(token_ids)
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

    # --- going back

    def savepoint(self) -> Savepoint:
        return Savepoint(
            len(self.tokens),
            self.text_length,
            self.run.parts,
            len(self.messages),
            self.turn,
            self.has_roles,
            self.tokens[-_HEALED:],
        )

    def roll_back(self, point: Savepoint) -> None:
        """As if nothing had been appended since `point`. Variables are set only once an op is done,
        so they stand."""
        del self.tokens[point.tokens - len(point.end) :]
        self.tokens.extend(point.end)
        self._texts = [self.text[: point.text]]
        self.text_length = point.text
        self.run.reset(point.parts)
        del self.messages[point.messages :]
        self.turn, self.has_roles = point.turn, point.has_roles
        self.bos_added = self.bos_added and point.tokens > 0

    def snapshot(self) -> Snapshot:
        """The state as it is. Its run must be sealed."""
        return Snapshot(
            self.tokens[:],
            self.text,
            dict(self.variables),
            tuple(self.messages),
            self.turn,
            self.has_roles,
            self.bos_added,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Makes this state what the snapshot says."""
        self.tokens = snapshot.tokens[:]
        self.run = Run()
        self._texts = [snapshot.text]
        self.text_length = len(snapshot.text)
        self.variables = dict(snapshot.variables)
        self.messages = list(snapshot.messages)
        self.turn = snapshot.turn
        self.has_roles = snapshot.has_roles
        """Whether any message was begun: the default system message goes before the first."""
        self.bos_added = snapshot.bos_added
        """Whether the first token is a beginning-of-text token that no program wrote."""

    def _say(self, text: str) -> None:
        self._texts.append(text)
        self.text_length += len(text)

    def _prefix(self, tokens: array[int]) -> str:
        prefix = self._tokenizer.space_prefix
        control = self._tokenizer.special_tokens.values() if prefix else ()
        return "" if not prefix or any(token not in control for token in tokens) else prefix

    def _leading_bos(self, run: Run) -> list[int]:
        """The token that the tokenizer puts before everything, unless the run begins with it, or
        there is no text at all."""
        bos = self._tokenizer.bos
        if bos is None or not self._tokenizer.adds_bos or not run.parts or run.parts[0] == bos:
            return []
        return [bos]
