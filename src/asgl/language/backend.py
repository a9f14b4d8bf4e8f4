"""What the language needs of an engine. `asgl.engine.engine.Engine` is one; tests bring another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from asgl.engine.ticket import Ticket
from asgl.sampling import SamplingParams
from asgl.trace import Tracers
from asgl.types import GrammarSource, RoleParts, ToolParts


class Tokenizer(Protocol):
    @property
    def special_tokens(self) -> Mapping[str, int]: ...
    @property
    def vocabulary(self) -> int:
        """Token ids are below that."""
        ...

    @property
    def end_tokens(self) -> tuple[int, ...]: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def adds_bos(self) -> bool: ...

    def encode(self, text: str) -> list[int]:
        """The tokens of the text as data: never a control token."""
        ...

    def encode_run(self, parts: Sequence[int | str], after: int | None) -> list[int]:
        """The tokens of control tokens and texts after the token `after`; None at the beginning of
        a prompt, where the tokenizer may put a space before the first text."""
        ...

    def split(self, text: str) -> list[int | str]:
        """Cuts text of the chat template at its control tokens, which come as ints."""
        ...

    def cut_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of a character at the end of the tokens whose other bytes are to come."""
        ...

    def token_bytes(self, token_id: int, /) -> bytes: ...

    def decode(self, ids: Iterable[int], *, control: bool = True) -> str: ...


class ChatTemplate(Protocol):
    """See `asgl.models.chat_template.ChatTemplate`."""

    @property
    def head(self) -> str: ...

    @property
    def tool_parts(self) -> ToolParts | None: ...

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> RoleParts: ...

    def parts(self, before: Sequence[str], role: str) -> RoleParts: ...

    def generation(self, before: Sequence[str]) -> str: ...

    def with_arguments(self, arguments: Mapping[str, Any], /) -> ChatTemplate: ...


class Grammars(Protocol):
    """Grammars by their sources. What they are is the engine's own business."""

    def known(self, source: GrammarSource, /) -> Any:
        """The grammar, if it is compiled already, else None."""

    def compile(self, source: GrammarSource, /) -> Any:
        """The grammar; GrammarError if it does not compile. To be called off the loop."""


class Saved(Protocol):
    """The part of `asgl.engine.kv_files.SavedState` that prompts need."""

    async def save_prompt(
        self, path: Path, state: Mapping[str, Any], tokens: Any, namespace: str | None, /
    ) -> None: ...
    def read_prompt(self, path: Path, kv: bool, /) -> tuple[dict[str, Any], bool]: ...
    async def load_prompt(self, path: Path, tokens: Any, namespace: str | None, /) -> int: ...


class Engine(Protocol):
    """`generate`, `score` and `extend` enqueue at once. An error known at once settles the ticket
    before they return."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def chat_template(self) -> ChatTemplate | None: ...
    @property
    def tracers(self) -> Tracers: ...
    @property
    def defaults(self) -> SamplingParams: ...
    @property
    def grammars(self) -> Grammars: ...
    @property
    def saved(self) -> Saved: ...

    def check_sampling(self, params: SamplingParams, /) -> None:
        """ConfigError if the parameters do not fit the model."""

    def heal(self, prompt: Sequence[int], /) -> tuple[int, str]:
        """How many tokens at the end of the prompt to take off for token healing, and their
        text."""
        ...

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        logprobs: int | None,
        end_tokens: Sequence[int],
        grammar: Any = None,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket: ...

    def score(
        self,
        prompt: Sequence[int],
        options: Sequence[Sequence[int]],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket: ...

    def extend(
        self,
        prompt: Sequence[int],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket: ...

    def cancel(self, ticket: Ticket, /) -> None:
        """Settles the ticket now, without telling its submitter. Idempotent."""

    def stop(self, ticket: Ticket, /) -> None:
        """Ends a generation now and keeps its text: it finishes with the reason "stopped"."""

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs `function` off the loop."""
