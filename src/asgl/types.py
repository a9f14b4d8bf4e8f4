"""Small types that every layer speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, TypedDict

FinishReason = Literal["stop", "eos", "length", "grammar", "stopped"]
"""Why a generation ended: a stop string or stop token, the model's end token, `max_tokens` or the
context's end, a complete grammar, or `Handle.stop()`."""


class GrammarSource(NamedTuple):
    """What constrains a generation, as its author wrote it."""

    kind: Literal["regex", "json_schema", "grammar", "choices"]
    text: str
    """The regular expression, the schema as JSON, the Lark grammar, or the choices as a JSON
    list."""
    open_end: bool = False
    """Where the text may end, it ends with any token that it cannot go on with: a number ends where
    another word begins."""
    control: tuple[int, ...] = ()
    """The control tokens that the grammar may write, as `<[7]>` for token 7. Those of calls of
    tools write what the model's chat template does; what a program gives has none."""


class FunctionCall(TypedDict):
    """The function of a call of a tool, in the shape of the OpenAI API."""

    name: str
    arguments: str
    """A JSON object, as text."""


class MessageToolCall(TypedDict):
    """A call of a tool in a message, in the shape of the OpenAI API."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """A chat message, in the shape of the OpenAI API."""

    role: str
    """"system", "user", "assistant", "tool", or whatever else the model's chat template knows."""
    content: str
    """What the message says, without what the template writes around it."""
    tool_calls: NotRequired[list[MessageToolCall]]
    """Of the assistant: the tools that it calls; `content` is then empty."""
    tool_call_id: NotRequired[str]
    """Of a tool: which call it answers."""


WHITE_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""All characters that `str.strip` takes off."""


class RoleParts(NamedTuple):
    """What the template writes around the content of one message."""

    prefix: str
    suffix: str
    trims_left: str = ""
    """Characters that it takes off at the beginning of the content."""
    trims_right: str = ""


class ToolParts(NamedTuple):
    """All text is the template's own, control tokens in it included."""

    before: str
    """From the end of the message before to the first call: the header of the assistant is in
    it."""
    name_key: str
    arguments_key: str
    """A call is a JSON object of these two, in this order."""
    between_calls: str | None
    """None if only one call can be made at once."""
    middle: str
    """From the end of the last call to the first result."""
    between_results: str
    after: str
    """From the end of the last result to the next message."""
    quoted: bool
    """Whether results are written as JSON texts, in quotation marks."""


class TokenLogprob(NamedTuple):
    """The log-probability (natural logarithm) of a token under the model itself: before
    temperature, penalties and masks."""

    token_id: int
    """The token in the model's vocabulary."""
    text: str
    """The token alone as text; a character that it has only a part of is "\ufffd"."""
    logprob: float
    """0 or less, -inf for a token that cannot be."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens at this position, likeliest first; as many as were asked for."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a Runtime has loaded."""

    name: str
    """What its files call it."""
    architecture: str
    """The family that the code computes it as, such as "llama"."""
    parameters: int
    """How many weights it has."""
    context_length: int
    """Prompt and generation together have at most so many tokens."""
    vocabulary: int
    """How many tokens it knows: token ids are below that."""
    dtype: str
    """Of keys, values and activations: "float32", "bfloat16" or "float16"."""
    device: str
    """"cpu", or a GPU as torch calls it, such as "cuda:0"."""
    kernels: str
    """"reference", "cpu" or "triton"."""
    weights: str
    """How the weights of the linear layers are held: "dense", "int8" or "int4"."""
    activations: str = "auto"
    """"int8" if the inputs of linear layers with 4-bit weights are rounded to 8 bits."""


@dataclass(frozen=True, slots=True)
class NamespaceStatistics:
    """What was asked for in one namespace (`cache_salt`)."""

    prompt_tokens: int
    """Tokens of all prompts."""
    cached_tokens: int
    """Those of `prompt_tokens` that were in the cache."""
    generated_tokens: int
    """Tokens that were generated, forced ones included."""

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that were in the cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A snapshot of an engine. Slots are tokens of KV cache; times are seconds since the engine
    started."""

    capacity: int
    """Slots in all. `capacity == free + evictable + pinned + owned by running requests`."""
    free: int
    """Slots that hold nothing."""
    evictable: int
    """Slots of the prefix cache that no running request needs."""
    pinned: int
    """Slots of the prefix cache that running requests read."""
    running: int
    """Requests that were admitted and have not ended."""
    waiting: int
    """Requests that wait for admission."""
    steps: int
    """Steps that were run."""
    prompt_tokens: int
    """Tokens of all prompts, counted at a request's first admission."""
    cached_tokens: int
    """Those of `prompt_tokens` that were in the cache, and so were not computed."""
    generated_tokens: int
    """Tokens that were generated, forced ones included."""
    forced_tokens: int
    """Generated tokens that a grammar forced, and that were not sampled."""
    evicted_tokens: int
    """Tokens that were dropped from the prefix cache to make room."""
    retractions: int
    """How often a running request had to give its slots back, and go on later."""
    cancelled: int
    """Requests that were cancelled."""
    plan_seconds: float
    """Spent on planning steps, on the event loop."""
    run_seconds: float
    """Spent on running steps; where two are in flight, the time in which both run is counted
    once."""
    idle_seconds: float
    """Spent with nothing to do."""
    namespaces: Mapping[str | None, NamespaceStatistics]
    """By `cache_salt`, for the 1,024 that came last."""

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that were in the cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
