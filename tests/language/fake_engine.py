"""An engine without a model: answers by script, one token of every request per step.

The tokenizer makes one token of two lowercase letters and one of any other byte, so that it matters
where text is cut.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

from asgl.engine.output import OutputText
from asgl.engine.stop_regex import compiled
from asgl.engine.ticket import Ticket
from asgl.errors import ConfigError, ContextLengthError
from asgl.language import PromptStream, Session
from asgl.plan import SampledToken
from asgl.sampling import LIBRARY_DEFAULTS, SamplingParams
from asgl.scheduling.request import Request
from asgl.trace import Tracer, Tracers
from asgl.types import WHITE_SPACE, RoleParts

BOS, START, END, EOS = 256, 257, 258, 259
CONTROL = {"<s>": BOS, "<|start|>": START, "<|end|>": END, "<eos>": EOS}
_PAIRS = 1024


class FakeDetokenizer:
    def __init__(self, tokenizer: FakeTokenizer, begun: bytes = b"") -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.setstate((begun, 0))

    def push(self, token_id: int, /) -> str:
        return self._decoder.decode(self._tokenizer.bytes_of(token_id))

    @property
    def pending(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FakeTokenizer:
    def __init__(self, *, bos: int | None = BOS, adds_bos: bool = False) -> None:
        self.special_tokens = CONTROL
        self.end_tokens = (EOS,)
        self.vocabulary = 2048
        self.bos = bos
        self.adds_bos = adds_bos
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        data, ids, at = text.encode(), list[int](), 0
        while at < len(data):
            pair = data[at : at + 2]
            if len(pair) == 2 and all(97 <= byte <= 122 for byte in pair):
                ids.append(_PAIRS + (pair[0] - 97) * 26 + pair[1] - 97)
                at += 2
            else:
                ids.append(data[at])
                at += 1
        return ids

    def encode_run(self, parts: Sequence[int | str], after: int | None = None) -> list[int]:
        return [
            token
            for part in parts
            for token in ([part] if isinstance(part, int) else self.encode(part))
        ]

    def split(self, text: str) -> list[int | str]:
        pieces = re.split(f"({'|'.join(map(re.escape, CONTROL))})", text)
        return [CONTROL.get(piece, piece) for piece in pieces if piece]

    def cut_bytes(self, ids: Sequence[int]) -> bytes:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(map(self.bytes_of, ids)))
        return decoder.getstate()[0]

    def token_bytes(self, token_id: int, /) -> bytes:
        return self.bytes_of(token_id)

    def bytes_of(self, token_id: int) -> bytes:
        if token_id >= _PAIRS:
            return bytes((97 + (token_id - _PAIRS) // 26, 97 + (token_id - _PAIRS) % 26))
        return bytes((token_id,)) if token_id < 256 else b""

    def decode(self, ids: Iterable[int], *, control: bool = True) -> str:
        names = {token: text.encode() for text, token in CONTROL.items()} if control else {}
        return b"".join(names.get(token) or self.bytes_of(token) for token in ids).decode(
            "utf-8", "replace"
        )


class FakeTemplate:
    """ChatML with other names for its control tokens."""

    tool_parts = None

    def __init__(
        self, *, head: str = "", default_system: str | None = None, trims: bool = False
    ) -> None:
        self.head = head
        self._default_system = default_system
        self._trims = WHITE_SPACE if trims else ""

    def parts(self, before: Sequence[str], role: str) -> RoleParts:
        first = "" if before else self.head
        if not before and role != "system":
            first += self._default_system or ""
        return RoleParts(f"{first}<|start|>{role}\n", "<|end|>\n", self._trims, self._trims)

    def generation(self, before: Sequence[str]) -> str:
        return self.parts(before, "assistant").prefix


Answer = str | BaseException | None
"""What a generation says; or the error that it ends with after its first step; or None: it never
goes on by itself."""


class FakeEngine:
    """`answers` are used up one by one, or come from a function of the prompt's text; "ok" if there
    is nothing else."""

    def __init__(
        self,
        answers: Sequence[Answer] | Callable[[str], Answer] = (),
        *,
        tokenizer: FakeTokenizer | None = None,
        template: FakeTemplate | None = None,
        defaults: SamplingParams | None = None,
        manual: bool = False,
        context_length: int = 1 << 20,
        tracers: Iterable[Tracer] = (),
        logprobs: Callable[[tuple[int, ...], int], float] | None = None,
    ) -> None:
        self.tokenizer = tokenizer or FakeTokenizer()
        self.chat_template = template
        self.tracers = Tracers(tracers)
        self.defaults = (defaults or SamplingParams()).over(LIBRARY_DEFAULTS)
        self.context_length = context_length
        self.logprobs = logprobs or (lambda before, token: -1.0 - (sum(before) + token) % 7)
        self.requests: list[tuple[str, list[int], dict[str, Any]]] = []
        """All requests ever made: kind, prompt, details."""
        self.active: dict[Ticket, list[int] | BaseException | None] = {}
        """For each request that is not settled the tokens that are left to generate."""
        self.settled = 0
        self.cancelled: list[Ticket] = []
        self.threaded = 0
        self.thread_gate: asyncio.Event | None = None
        self.steps = 0
        self._answers = answers
        self._used = 0
        self._manual = manual
        self._scheduled = False
        self._ids = count()

    # --- the interface of an engine

    def check_sampling(self, params: SamplingParams) -> None:
        if any(token >= 2048 for token in params.logit_bias or ()):
            raise ConfigError("there is no such token")
        for pattern in params.stop_regex or ():
            compiled(pattern)

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
    ) -> Ticket:
        output = OutputText(
            lambda: FakeDetokenizer(self.tokenizer, self.tokenizer.cut_bytes(prompt[-4:])),
            stops=tuple(params.stop or ()),
            stop_regexes=tuple(params.stop_regex or ()),
            stop_tokens=tuple(params.stop_token_ids or ()),
            end_tokens=end_tokens,
            keep_stop=bool(params.keep_stop),
            min_tokens=params.min_tokens or 0,
        )
        assert params.max_tokens is not None
        details = {
            "params": params,
            "seed": seed,
            "logprobs": logprobs,
            "end_tokens": tuple(end_tokens),
            "namespace": namespace,
            "priority": priority,
        }
        ticket = self._submit("generate", prompt, details, output, params.max_tokens)
        if not ticket.settled and params.max_tokens == 0:
            self.settle(ticket, reason="length")
        if not ticket.settled:
            answer = self._answer(self.tokenizer.decode(prompt))
            self.active[ticket] = (
                [*self.tokenizer.encode(answer), EOS] if isinstance(answer, str) else answer
            )
        return ticket

    def score(
        self,
        prompt: Sequence[int],
        options: Sequence[Sequence[int]],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        details = {
            "options": [list(option) for option in options],
            "namespace": namespace,
            "priority": priority,
        }
        return self._submit("score", prompt, details, None, 0)

    def extend(
        self,
        prompt: Sequence[int],
        *,
        namespace: str | None = None,
        priority: int = 0,
        asked: object = None,
    ) -> Ticket:
        return self._submit(
            "extend", prompt, {"namespace": namespace, "priority": priority}, None, 0
        )

    def cancel(self, ticket: Ticket) -> None:
        if not ticket.settled:
            del self.active[ticket]
            self.cancelled.append(ticket)
            ticket.withdraw(float(self.steps))

    def stop(self, ticket: Ticket) -> None:
        if not ticket.settled and ticket.output is not None:
            ticket.output.finish()
            self.settle(ticket, reason="stopped")

    async def run_in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        self.threaded += 1
        if self.thread_gate is not None:
            await self.thread_gate.wait()
        return function(*args)

    # --- for tests

    @property
    def prompts(self) -> list[list[int]]:
        return [prompt for _, prompt, _ in self.requests]

    @property
    def texts(self) -> list[str]:
        """The prompts of all requests as text, control tokens written out."""
        return [self.tokenizer.decode(prompt) for prompt in self.prompts]

    @property
    def seeds(self) -> list[int]:
        return [details["seed"] for kind, _, details in self.requests if kind == "generate"]

    def check(self) -> None:
        """The books balance: nothing is left, and each request was settled or cancelled, once."""
        assert not self.active
        assert self.settled + len(self.cancelled) == len(self.requests)

    def step(self) -> None:
        """One token for every request that runs."""
        self.steps += 1
        for ticket, left in list(self.active.items()):
            if ticket.settled:
                continue
            if isinstance(left, BaseException):
                self.settle(ticket, error=left)
            elif ticket.output is None:
                self._score(ticket)
                self.settle(ticket)
            elif left is not None:
                self._generate_one(ticket, left)

    # --- inside

    def _submit(
        self,
        kind: str,
        prompt: Sequence[int],
        details: dict[str, Any],
        output: OutputText | None,
        max_tokens: int,
    ) -> Ticket:
        assert len(prompt) > 0
        ticket = Ticket(
            Request(next(self._ids), prompt, max_tokens=max_tokens),
            output,
            float(self.steps),
        )
        self.requests.append((kind, list(prompt), details))
        self.active[ticket] = []
        if len(prompt) >= self.context_length:
            self.settle(
                ticket,
                error=ContextLengthError(
                    f"the prompt has {len(prompt)} tokens",
                    tokens=len(prompt),
                    limit=self.context_length,
                ),
            )
        elif not self._manual:
            self._schedule()
        return ticket

    def _answer(self, prompt: str) -> Answer:
        if callable(self._answers):
            return self._answers(prompt)
        self._used += 1
        return self._answers[self._used - 1] if self._used <= len(self._answers) else "ok"

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._automatic)

    def _automatic(self) -> None:
        self._scheduled = False
        self.step()
        if any(left is not None for left in self.active.values()):
            self._schedule()

    def _score(self, ticket: Ticket) -> None:
        kind, prompt, details = self.requests[ticket.request_id]
        if kind == "score":
            ticket.option_logprobs = [
                [
                    self.logprobs((*prompt, *option[:place]), token)
                    for place, token in enumerate(option)
                ]
                for option in details["options"]
            ]

    def _generate_one(self, ticket: Ticket, left: list[int]) -> None:
        output = ticket.output
        assert output is not None
        if ticket.first_token_at is None:
            ticket.first_token_at = float(self.steps)
        token = left.pop(0) if left else EOS
        wanted = self.requests[ticket.request_id][2]["logprobs"]
        top = tuple((token + rank, -0.5 - rank) for rank in range(wanted or 0))
        ticket.tokens.append(SampledToken(token, None if wanted is None else -0.5, top))
        reason = output.push(token)
        if reason is None and len(ticket.tokens) == ticket.request.max_tokens:
            output.finish()
            reason = "length"
        if reason is not None:
            self.settle(ticket, reason=reason)
            return
        if ticket.on_progress is not None:
            ticket.on_progress()

    def settle(self, ticket: Ticket, **how: Any) -> None:
        del self.active[ticket]
        self.settled += 1
        ticket.finish(float(self.steps), **how)


class Source:
    """The part of a Runtime that programs use."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.session = Session(engine)
        self.shown: list[tuple[int, str, int]] = []

    def prompt(self, text: str = "", *, name: str | None = None, **options: Any) -> PromptStream:
        return self.session.prompt(text, name=name, **options)

    def batch_progress(
        self, total: int, what: str, /
    ) -> AbstractContextManager[Callable[[], object]]:
        @contextmanager
        def shown():
            done: list[int] = []
            yield lambda: done.append(1)
            self.shown.append((total, what, len(done)))

        return shown()
