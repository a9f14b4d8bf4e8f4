"""For tests of programs: a Runtime without a model, whose answers are written down beforehand.

    async with asgl.testing.ScriptedRuntime({"city": "Paris", "verdict": ["yes", "no"]}) as rt:
        s = await my_program(rt)

Everything but the model is the real thing: streams, forks, handles, budgets, cancellation, errors. Time passes by one token of
each running generation a turn of the event loop, so nothing waits and everything is deterministic.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

from asgl.engine.output import OutputText
from asgl.engine.ticket import Listener, Ticket
from asgl.errors import ConfigError, ContextLengthError, EngineClosedError, ModelError
from asgl.language.ops import Gen, Select
from asgl.language.session import Session
from asgl.language.waits import Wake
from asgl.models.chat_template import RoleParts
from asgl.plan import SampledToken
from asgl.runtime import Runtime, _Opened
from asgl.sampling import SamplingParams
from asgl.scheduling.request import Request
from asgl.trace import Tracer, Tracers, default_tracers
from asgl.types import EngineStatistics, FinishReason, GrammarSource, ModelInfo


class JsonModel(Protocol):
    """A pydantic model, or anything that writes itself as JSON."""

    def model_dump_json(self) -> str: ...


Answer: TypeAlias = str | float | Mapping[str, Any] | JsonModel | BaseException | Callable[[str], Any]
"""What the model says to one gen or select: a str; a bool, number, dict or pydantic model, which is said as JSON; an exception,
with which the op then fails; for a select also the index of the option; or a function of the prompt's text that gives one of
these."""
Answers: TypeAlias = Answer | Sequence[Answer]
"""A list gives its answers one by one, in the order in which the ops ask; anything else answers as often as it is asked."""
Script: TypeAlias = Mapping[Any, Answers]
"""Answers by the name of the variable, a str, or None for ops without one."""

_SHOWN = 80
_CONTROL = {"<|bos|>": 0, "<|eos|>": 1, "<|im_start|>": 2, "<|im_end|>": 3}
_BOS, _EOS = 0, 1
_WORDS = re.compile(r"\s*\S+|\s+")


class ScriptError(AssertionError):
    """The script and the program do not fit: an op asked for an answer that is not there, or an answer was not asked for."""


class Asked(NamedTuple):
    """What an op asked the model."""

    name: str | None
    """The variable of the op."""
    prompt: str
    """All text before the answer, control tokens written out."""
    choices: tuple[str, ...] | None = None
    """The options of a select; None for a gen."""


class ScriptedRuntime(Runtime):
    """A Runtime that answers by `script`: see `Script`, `Answers` and `Answer`.

    A word, with the white space before it, is a token; answers end at stops and at max_tokens as a model's would. Messages are
    written in ChatML. An answer must be what the op may say: one of a select's options, or of `choices`, or a match of the
    regex. An op that finds no answer fails with ScriptError; leaving the block without an exception raises ScriptError if an
    answer was not used, and an ExceptionGroup of failures that nobody saw, as any Runtime does.
    """

    def __init__(self, script: Script, *, sampling: SamplingParams | None = None, tracers: Iterable[Tracer] = (),
                 context_length: int = 1 << 20) -> None:
        super().__init__("scripted", sampling=sampling, tracers=tracers)
        self._answers = _Answers(script)
        self._context_length = context_length

    @property
    def asked(self) -> list[Asked]:
        """What the ops have asked so far, in order."""
        return list(self._answers.asked)

    async def _open(self) -> _Opened:
        engine = _ScriptedEngine(self._answers, self._sampling, self._context_length,
                                 Tracers((*self._tracers, *default_tracers.get())))
        model = ModelInfo(name="scripted", architecture="none", parameters=0, context_length=self._context_length, vocabulary=0,
                          dtype="none", device="none", kernels="none", weights="none")
        return _Opened(cast(Any, engine), Session(engine), cast(Any, engine.tokenizer), model, engine.close)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if error is None:
            self._answers.check_used()


class _Answers:
    """The script, and how much of it was used."""

    def __init__(self, script: Script) -> None:
        self._script: dict[str | None, Any] = {
            name: answer if isinstance(answer, str | Mapping) or not isinstance(answer, Sequence) else list(answer)
            for name, answer in script.items()}
        self._used = dict.fromkeys(self._script, 0)
        self.asked: list[Asked] = []

    def next(self, part: Gen | Select, prompt: str) -> Any:
        """What the op says: a str, the index of an option, or an exception. ScriptError if the script has nothing for it."""
        name = part.name
        self.asked.append(Asked(name, prompt, part.choices if isinstance(part, Select) else None))
        where = f"a {type(part).__name__.lower()} {_named(name)}, after {prompt[-_SHOWN:]!r}"
        if name not in self._script:
            known = ", ".join(map(_named, self._script)) or "none"
            raise ScriptError(f"the script has no answer for {where}; there are answers for: {known}")
        answer, used = self._script[name], self._used[name]
        self._used[name] += 1
        if isinstance(answer, list):
            if used >= len(cast("list[Any]", answer)):
                raise ScriptError(f"the script has no more answers for {where}: all {used} were used")
            answer = cast("list[Any]", answer)[used]
        while callable(answer):
            answer = answer(prompt)
        if isinstance(answer, BaseException):
            return answer
        return _option(part, answer, where) if isinstance(part, Select) else _checked(part, _text(answer), where)

    def check_used(self) -> None:
        """ScriptError if an answer was not used."""
        unused: list[str] = []
        for name, answer in self._script.items():
            total = len(cast("list[Any]", answer)) if isinstance(answer, list) else 1
            if self._used[name] < total:
                unused.append(_named(name) if not isinstance(answer, list)
                              else f"{_named(name)} ({total - self._used[name]} of {total})")
        if unused:
            raise ScriptError(f"the program did not ask for these answers of the script: {', '.join(unused)}")


def _named(name: str | None) -> str:
    return repr(name) if name is not None else "without a name"


def _text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    return answer.model_dump_json() if hasattr(answer, "model_dump_json") else json.dumps(answer, ensure_ascii=False)


def _option(part: Select, answer: Any, where: str) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(part.choices):
        return answer
    if answer in part.choices:
        return part.choices.index(answer)
    raise ScriptError(f"the script's answer for {where}, {answer!r}, is none of the options: {list(part.choices)}")


def _checked(part: Gen, text: str, where: str) -> str:
    source = part.constraint.source if part.constraint is not None else None
    if source is None or source.kind not in ("regex", "choices"):
        return text
    try:
        fits = text in json.loads(source.text) if source.kind == "choices" else bool(re.fullmatch(source.text, text))
    except re.error:  # a regex of another dialect
        fits = True
    if not fits:
        raise ScriptError(f"the script's answer for {where}, {text!r}, is nothing that the {source.kind} {source.text} allows")
    return text


class _WordTokenizer:
    """A token for each word that it meets, with the white space before it."""

    special_tokens: Mapping[str, int] = _CONTROL
    end_tokens = (_EOS,)
    bos, adds_bos, space_prefix = _BOS, False, ""

    def __init__(self) -> None:
        self._words = list(_CONTROL)
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.id_of(word) for word in _WORDS.findall(text)]

    def token_bytes(self, token_id: int, /) -> bytes:
        return self._words[token_id].encode() if token_id >= len(_CONTROL) else b""

    def decode(self, ids: Iterable[int], *, control: bool = True) -> str:
        return "".join(self._words[token] for token in ids if control or token >= len(_CONTROL))

    def id_of(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]


class _Words:
    """The detokenizer of words."""

    pending = False

    def __init__(self, tokenizer: _WordTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, token_id: int, /) -> str:
        return self._tokenizer.decode([token_id], control=False)

    def flush(self) -> str:
        return ""


class _ChatML:
    head = ""
    default_system = None

    def role_parts(self, role: str) -> RoleParts:
        return RoleParts(f"<|im_start|>{role}\n", "<|im_end|>\n")


class _Grammars:
    """Answers are checked when they are given, so nothing is compiled."""

    def known(self, source: GrammarSource, /) -> GrammarSource:
        return source

    def compile(self, source: GrammarSource, /) -> GrammarSource:
        return source


class _ScriptedEngine:
    """Serves a Session: `asgl.language.backend.Engine`, and what a Runtime asks besides."""

    def __init__(self, answers: _Answers, defaults: SamplingParams, context_length: int, tracers: Tracers) -> None:
        self.tokenizer = _WordTokenizer()
        self.chat_template = _ChatML()
        self.grammars = _Grammars()
        self.saved = _SavedAsJson(self.tokenizer)
        self.tracers, self.defaults = tracers, defaults
        self._answers, self._context_length = answers, context_length
        self._loop = asyncio.get_running_loop()
        self._ids = count()
        self._running: dict[Ticket, Iterator[int]] = {}
        """For each request the tokens that it is still to say."""
        self._ticking = False
        self._end: EngineClosedError | None = None
        self._prompt_tokens = self._generated_tokens = self._cancelled = self._steps = 0

    # --- requests

    def check_sampling(self, params: SamplingParams, /) -> None:
        """All parameters fit a script."""

    def heal(self, prompt: Sequence[int], /) -> tuple[int, str]:
        """Words are whole: nothing is to be healed."""
        return 0, ""

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, *, seed: int, logprobs: int | None, end_tokens: Sequence[int],
        grammar: Any = None, namespace: str | None = None, priority: int = 0, listener: Listener,
    ) -> Ticket:
        output = OutputText(
            lambda: _Words(self.tokenizer), stops=params.stop or (), stop_regexes=params.stop_regex or (),
            stop_tokens=params.stop_token_ids or (), end_tokens=end_tokens, keep_stop=bool(params.keep_stop),
            min_tokens=params.min_tokens or 0,
        )
        assert params.max_tokens is not None
        room = max(0, self._context_length - len(prompt))
        ticket = self._ticket(prompt, listener, output, min(params.max_tokens, room))
        if not room:
            return self._refuse(ticket, self._too_long(prompt))
        part = _part(listener)
        assert isinstance(part, Gen)
        try:
            answer = self._answers.next(part, self.tokenizer.decode(prompt))
        except Exception as error:  # ScriptError, or what a function of the script raised
            answer = error
        if isinstance(answer, BaseException):
            return self._refuse(ticket, answer)
        if not ticket.request.max_tokens:
            self._settle(ticket, reason="length")
            return ticket
        return self._start(ticket, iter([*self.tokenizer.encode(answer), _EOS]))

    def score(
        self, prompt: Sequence[int], options: Sequence[Sequence[int]], *, namespace: str | None = None, priority: int = 0,
        listener: Listener,
    ) -> Ticket:
        ticket = self._ticket(prompt, listener, None, 0)
        if len(prompt) + max(map(len, options)) > self._context_length:
            return self._refuse(ticket, self._too_long(prompt))
        part, chosen = _part(listener), -1
        if isinstance(part, Select):  # else the options are scored by themselves, and all are alike
            try:
                chosen = self._answers.next(part, self.tokenizer.decode(prompt))
            except Exception as error:
                return self._refuse(ticket, error)
            if isinstance(chosen, BaseException):
                return self._refuse(ticket, chosen)
        ticket.option_logprobs = [[0.0 if index == chosen else -1.0] * len(option) for index, option in enumerate(options)]
        return self._start(ticket, iter(()))

    def extend(
        self, prompt: Sequence[int], *, namespace: str | None = None, priority: int = 0, listener: Listener,
    ) -> Ticket:
        ticket = self._ticket(prompt, listener, None, 0)
        if len(prompt) > self._context_length:
            return self._refuse(ticket, self._too_long(prompt))
        return self._start(ticket, iter(()))

    def cancel(self, ticket: Ticket, /) -> None:
        if not ticket.settled:
            del self._running[ticket]
            self._cancelled += 1
            ticket.settled = True
            ticket.finished_at = self._loop.time()

    def stop(self, ticket: Ticket, /) -> None:
        if not ticket.settled:
            self._settle(ticket, reason="stopped")

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    # --- what a Runtime asks besides

    def statistics(self) -> EngineStatistics:
        """There is no cache, so it counts requests and tokens only."""
        return EngineStatistics(
            capacity=0, free=0, evictable=0, pinned=0, running=len(self._running), waiting=0, steps=self._steps,
            prompt_tokens=self._prompt_tokens, cached_tokens=0, generated_tokens=self._generated_tokens, forced_tokens=0,
            evicted_tokens=0, retractions=0, cancelled=self._cancelled, plan_seconds=0.0, run_seconds=0.0, idle_seconds=0.0,
            namespaces={},
        )

    def flush_cache(self) -> int:
        return 0

    def pin(self, tokens: Sequence[int], *, namespace: str | None = None, seconds: float) -> None:
        """There is no cache to keep anything in."""

    async def close(self) -> None:
        self._end = EngineClosedError("the Runtime was closed")
        for ticket in list(self._running):
            self._settle(ticket, error=self._end)
        await asyncio.sleep(0)

    # --- inside

    def _ticket(self, prompt: Sequence[int], listener: Listener, output: OutputText | None, max_tokens: int) -> Ticket:
        return Ticket(Request(next(self._ids), prompt, max_tokens=max_tokens), listener, output, self._loop.time())

    def _too_long(self, prompt: Sequence[int]) -> ContextLengthError:
        return ContextLengthError(f"the prompt's {len(prompt)} tokens leave no room: the context has {self._context_length}",
                                  tokens=len(prompt), limit=self._context_length)

    def _refuse(self, ticket: Ticket, error: BaseException) -> Ticket:
        ticket.settle(self._loop.time(), error=error)
        return ticket

    def _start(self, ticket: Ticket, tokens: Iterator[int]) -> Ticket:
        if self._end is not None:
            return self._refuse(ticket, self._end)
        self._running[ticket] = tokens
        self._prompt_tokens += ticket.prompt_tokens
        self._tick()
        return ticket

    def _tick(self) -> None:
        if self._running and not self._ticking:
            self._ticking = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """One token for every request that runs."""
        self._steps += 1
        for ticket, tokens in list(self._running.items()):
            if ticket.settled:
                continue
            if ticket.output is None:
                self._settle(ticket)
            else:
                self._say(ticket, ticket.output, next(tokens, _EOS))
        self._ticking = False
        self._tick()

    def _say(self, ticket: Ticket, output: OutputText, token: int) -> None:
        ticket.first_token_at = ticket.first_token_at or self._loop.time()
        ticket.tokens.append(SampledToken(token, 0.0, ((token, 0.0),)))
        self._generated_tokens += 1
        reason = output.push(token)
        if reason is None and (token == _EOS or len(ticket.tokens) == ticket.request.max_tokens):
            reason = "eos" if token == _EOS else "length"
        if reason is None:
            ticket.listener.on_progress(ticket)
        else:
            self._settle(ticket, reason=reason)

    def _settle(self, ticket: Ticket, *, reason: FinishReason | None = None, error: BaseException | None = None) -> None:
        self._running.pop(ticket, None)
        if ticket.output is not None and reason in ("length", "stopped"):
            ticket.output.finish()
        ticket.settle(self._loop.time(), reason=reason, error=error)


def _part(listener: Listener) -> Gen | Select | None:
    """What asks: only streams do, whose listeners know it."""
    assert isinstance(listener, Wake)
    return listener.part


class _SavedAsJson:
    """Prompts in files of JSON; there are no keys and values to save."""

    def __init__(self, tokenizer: _WordTokenizer) -> None:
        self._tokenizer = tokenizer

    async def save_prompt(self, path: Path, state: Mapping[str, Any], tokens: Any, namespace: str | None, /) -> None:
        words = [token if token < len(_CONTROL) else self._tokenizer.decode([token]) for token in state["tokens"]]
        _write(path, json.dumps({**state, "tokens": words}))
        await asyncio.sleep(0)

    def read_prompt(self, path: Path, kv: bool = False, /) -> tuple[dict[str, Any], bool]:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            words = state["tokens"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: no prompt that a ScriptedRuntime saved: {error!r}") from error
        return {**state, "tokens": [word if isinstance(word, int) else self._tokenizer.id_of(word) for word in words]}, False

    async def load_prompt(self, path: Path, tokens: Any, namespace: str | None, /) -> int:
        await asyncio.sleep(0)
        return 0

    async def save_cache(self, path: Path) -> int:
        await self.save_prompt(path, {"tokens": []}, None, None)
        return 0

    async def load_cache(self, path: Path) -> int:
        self.read_prompt(path)
        await asyncio.sleep(0)
        return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
