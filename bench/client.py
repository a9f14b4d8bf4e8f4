"""The small interface that workloads are written against, and its implementation over strings.

A workload sees a `Prompt`: text that grows, generates, chooses and forks. On asgl a Prompt is a
PromptStream (`bench.engine_asgl`); on a peer it is a string that is sent whole with each call,
which is all that their interfaces take.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Unsupported(Exception):
    """The engine cannot do what the workload needs; the report says so instead of a time."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to generate. `exact` ignores the model's end token, so that every engine generates as
    many tokens. `gbnf` says in llama.cpp's notation what `regex` says. `schema`: a JSON schema that
    the text matches."""

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    exact: bool = False
    regex: str | None = None
    gbnf: str | None = None
    schema: Mapping[str, Any] | None = None


class Usage(NamedTuple):
    """What one call cost. None where an engine does not tell. Times in seconds."""

    prompt_tokens: int
    cached_tokens: int | None
    generated_tokens: int
    time_to_first_token: float | None


class Prompt(Protocol):
    """A prompt that grows. `gen` and `select` append what they return."""

    def append(self, text: str) -> None: ...

    async def gen(self, options: Options) -> str: ...

    async def select(self, choices: Sequence[str]) -> int:
        """Which of the choices is the likeliest, by log-probability a token."""
        ...

    def fork(self, n: int) -> AbstractAsyncContextManager[Sequence[Prompt]]: ...


class Client(Protocol):
    """Makes prompts. `salt` begins each of them, so that nothing of another round is in any
    cache."""

    def prompt(self, text: str = "") -> Prompt: ...


class Completion(NamedTuple):
    text: str
    usage: Usage


class Backend(Protocol):
    """A peer's interface: strings in, strings out."""

    async def complete(self, prompt: str, options: Options) -> Completion: ...

    async def score(self, prompt: str, choices: Sequence[str]) -> tuple[list[list[float]], Usage]:
        """For each choice the log-probabilities of its tokens after the prompt. Unsupported if the
        peer has no such call."""
        ...


class StringClient:
    """Prompts over a backend that takes strings; keeps the usage of every call."""

    def __init__(self, backend: Backend, salt: str = "") -> None:
        self.backend = backend
        self.salt = salt
        self.usages: list[Usage] = []

    def prompt(self, text: str = "") -> StringPrompt:
        return StringPrompt(self, self.salt + text)


class StringPrompt:
    """The text so far, sent whole with each call."""

    def __init__(self, client: StringClient, text: str) -> None:
        self._client = client
        self.text = text

    def append(self, text: str) -> None:
        self.text += text

    async def gen(self, options: Options) -> str:
        completion = await self._client.backend.complete(self.text, options)
        self._client.usages.append(completion.usage)
        self.text += completion.text
        return completion.text

    async def select(self, choices: Sequence[str]) -> int:
        logprobs, usage = await self._client.backend.score(self.text, choices)
        self._client.usages.append(usage)
        best = max(
            range(len(choices)),
            key=lambda index: sum(logprobs[index]) / max(len(logprobs[index]), 1),
        )
        self.text += choices[best]
        return best

    @asynccontextmanager
    async def fork(self, n: int) -> AsyncIterator[Sequence[Prompt]]:
        yield [StringPrompt(self._client, self.text) for _ in range(n)]
