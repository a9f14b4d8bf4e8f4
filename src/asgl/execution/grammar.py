"""Constrained decoding: grammars compiled by llguidance, and the state of one generation in one of
them.

    Compiler   of an engine: knows the model's vocabulary, keeps what it compiled
    Grammar    compiled; immutable, shared by all generations that ask for the same source
    Matcher    one generation's place in a grammar: which tokens may come next, and which must

To llguidance, the end of a text is a token of its own behind the vocabulary: which of the model's
tokens end a generation differs from one generation to the next, and none of them is part of a
grammar.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from asgl.errors import GrammarError
from asgl.execution.json_schema import json_rules
from asgl.execution.lark import lark_grammar
from asgl.types import GrammarSource

_SHOWN = 2_000
"""So many characters of llguidance's messages are passed on: they may quote the whole source."""
_LACKING = "the model's vocabulary has no token for what must come next"
_IMPOSSIBLE = "no text is allowed here, or none that the model's vocabulary has tokens for"
_STACK = 256 * 2**20
"""Bytes of the stack on which grammars are compiled: three times what those need that call
themselves most, 10,000 rules one inside the other. What is not used is not backed by memory."""
_STACK_SIZE = threading.Lock()
"""Held while the size of new threads' stacks is another one."""


class Vocabulary(Protocol):
    """What a grammar needs of a tokenizer; see `asgl.models.tokenizer.Tokenizer`."""

    vocabulary: int
    control_tokens: frozenset[int]
    """The control tokens, which are no part of any text."""

    def encode(self, text: str, /) -> list[int]: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a source may cost. Past any of them it is refused with GrammarError.

    All of them are counts: what is refused does not depend on how fast the machine is."""

    characters: int = 1_000_000
    """Of the source."""
    symbols: int = 200_000
    """Of the compiled grammar."""
    lexer_states: int = 50_000
    """Of the automaton, which grows as text is generated; one or two kilobytes each."""
    row_items: int = 10_000
    """Items of the parser after one byte."""
    step_items: int = 50_000
    """Items of the parser for one token; some 20 a microsecond."""
    step_fuel: int = 200_000
    """Work of the lexer for one token; some 14 units a microsecond."""


class Matcher:
    """The place of one generation in its grammar. `asgl.scheduling.request.Grammar` says how it is
    used.

    Belongs to one thread at a time. A generation never goes back, and so neither does this.
    """

    free = False
    """A grammar says what comes until the end."""

    __slots__ = (
        "_all",
        "_allowed",
        "_bytes",
        "_ends",
        "_forced",
        "_left",
        "_matcher",
        "_open_end",
        "_texts",
        "error",
    )

    def __init__(
        self,
        matcher: LLMatcher,
        texts: Sequence[bytes],
        ends: Iterable[int],
        open_end: bool,
        min_tokens: int,
    ) -> None:
        self._matcher = matcher
        self._texts = texts
        self._bytes = (len(texts) + 7) // 8
        self._all = (1 << len(texts)) - 1
        self._open_end = open_end
        self._ends = self._all if open_end else _bits(ends)
        """The tokens that may come where the text may end, as bits."""
        self._allowed: int | None = None
        """The tokens that may follow, token t as bit t, ends not among them; None: not known
        yet."""
        self._forced: list[int] | None = None
        self._left = min_tokens
        """So many tokens must come before the text may end; 0 or less: none."""
        self.error: str | None = None
        """Why the generation cannot go on, if that is not because it is complete."""

    @property
    def accepting(self) -> bool:
        """Whether what was generated so far is a whole sentence of the grammar."""
        return self.error is None and self._matcher.is_accepting()

    @property
    def complete(self) -> bool:
        """Whether nothing may follow: the sentence is whole, or the grammar gave up (then `error`
        says why)."""
        return self.error is not None or (not self.forced() and self._following() == 0)

    def ends(self, token_id: int) -> bool:
        """Whether the token, one that `mask` gave, only says that the text ends before it."""
        return self._open_end and not self._following() >> token_id & 1

    def push(self, token_id: int) -> None:
        """Goes on by a token, one that `mask` or `forced` gave and that ends nothing."""
        self._allowed = self._forced = None
        self._left -= 1
        if self.error is None and not self._matcher.consume_token(token_id):
            self._fail(f"token {token_id} was refused: {self._matcher.get_error()}")

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, in the tokenization that the text would have by itself.

        The last of the text that must come may be missing: where what follows it could change how
        it is tokenized.
        """
        if self._forced is None:
            self._forced = (
                [] if self.error is not None else self._checked(self._matcher.compute_ff_tokens())
            )
        return self._forced

    def _checked(self, forced: list[int]) -> list[int]:
        """The forced tokens before the first byte that the vocabulary lacks, which tokenizers leave
        out. A control token, which has no text, is named among llguidance's forced bytes."""
        texts = [self._texts[token] or b"\xff[%d]" % token for token in forced]
        text = b"".join(texts)
        left = self._matcher.compute_ff_bytes() if forced else b""
        if left.startswith(text):
            return forced
        for count, expected in enumerate(texts):
            if not left.startswith(expected):
                if not count:
                    self._fail(_LACKING)
                return forced[:count]
            left = left[len(expected) :]
        return forced

    def mask(self, banned: Iterable[int] = ()) -> bytes:
        """Which tokens may come next, as bits: token t is bit t % 8 of byte t // 8.

        Those in `banned` are left out, unless none would remain.
        """
        if forced := self.forced():
            return (1 << forced[0]).to_bytes(self._bytes, "little")
        allowed = self._following()
        if self._matcher.is_accepting() and (self._left <= 0 or not allowed):
            allowed |= self._ends
        return ((allowed & ~_bits(banned)) or allowed).to_bytes(self._bytes, "little")

    def _following(self) -> int:
        if self._allowed is None:
            allowed = 0
            if not self._matcher.is_stopped():
                allowed = int.from_bytes(self._matcher.compute_bitmask(), "little") & self._all
            self._allowed = allowed
            if self._matcher.is_error():
                self._fail(_error(self._matcher))
            elif not allowed and not self._matcher.is_accepting():
                self._fail(_LACKING)
        return self._allowed

    def _fail(self, why: str) -> None:
        self.error = why.removesuffix("<non-verbose/>").rstrip()[:_SHOWN]
        self._allowed = 0


def _error(matcher: LLMatcher) -> str:
    error = matcher.get_error()
    return _IMPOSSIBLE if error.startswith("NoExtensionBias") else error


def _bits(tokens: Iterable[int]) -> int:
    bits = 0
    for token in tokens:
        bits |= 1 << token
    return bits


class Grammar:
    """A compiled grammar: where a `Matcher` begins. Immutable."""

    __slots__ = ("_open_end", "_start", "_texts")

    def __init__(self, start: LLMatcher, texts: Sequence[bytes], open_end: bool) -> None:
        self._start = start
        self._texts = texts
        self._open_end = open_end

    def matcher(self, ends: Iterable[int], min_tokens: int = 0) -> Matcher:
        """A generation at its beginning, which may end with one of the tokens `ends` wherever the
        grammar lets it end, after at least `min_tokens` tokens."""
        return Matcher(self._start.deep_copy(), self._texts, ends, self._open_end, min_tokens)


class Compiler:
    """Compiles grammars for the vocabulary of one tokenizer, and keeps those used last. May be
    called from several threads."""

    def __init__(
        self, vocabulary: Vocabulary, limits: Limits | None = None, kept: int = 256
    ) -> None:
        self._vocabulary = vocabulary
        self._limits = limits or Limits()
        self._kept = kept
        self._lock = threading.Lock()
        self._grammars: OrderedDict[GrammarSource, Future[Grammar]] = OrderedDict()
        self._tokenizer: Future[tuple[LLTokenizer, Sequence[bytes]]] | None = None

    def known(self, source: GrammarSource) -> Grammar | None:
        """The grammar, if it was compiled before and is still kept."""
        with self._lock:
            future = self._grammars.get(source)
            if future is None or not future.done():
                return None
            self._grammars.move_to_end(source)
        return future.result()

    def compile(self, source: GrammarSource) -> Grammar:
        """The grammar of the source. Blocks for about a millisecond, and for seconds where the
        source nears the limits: not for the event loop.

        GrammarError for a source that is wrong, or past the limits. Threads that ask for the same
        source at the same time wait for one of them.
        """
        with self._lock:
            future = self._grammars.get(source)
            if mine := future is None:
                future = self._grammars[source] = Future()
            self._grammars.move_to_end(source)
        if mine:
            try:
                future.set_result(self._compile(source))
            except BaseException as error:
                with self._lock:
                    self._grammars.pop(source, None)
                future.set_exception(error)
            with self._lock:
                while len(self._grammars) > self._kept:
                    self._grammars.popitem(last=False)
        elif isinstance(error := future.exception(), GrammarError):
            raise GrammarError(
                str(error)
            )  # each failure has an exception of its own, which notes can be added to
        return future.result()

    def _compile(self, source: GrammarSource) -> Grammar:
        limits = self._limits
        if len(source.text) > limits.characters:
            raise GrammarError(
                f"the {_named(source)} has {len(source.text)} characters, and the limit is "
                f"{limits.characters}"
            )
        tokenizer, texts = self._llguidance_tokenizer()
        try:
            definition = _definition(source)
        except GrammarError as error:
            reason = str(error)
            if not reason.startswith((" at ", ": ")):
                reason = f": {reason}"
            raise GrammarError(f"the {_named(source)} does not compile{reason}") from None
        start = _on_a_large_stack(lambda: self._start(tokenizer, definition))
        if start.is_error():
            raise GrammarError(
                f"the {_named(source)} does not compile{_reason(source, _error(start))}"
            )
        return Grammar(start, texts, source.open_end)

    def _start(self, tokenizer: LLTokenizer, definition: str) -> LLMatcher:
        limits = self._limits
        start = LLMatcher(
            tokenizer,
            definition,
            log_level=0,
            limits=LLParserLimits(
                max_items_in_row=limits.row_items,
                max_grammar_size=limits.symbols,
                max_lexer_states=limits.lexer_states,
                step_max_items=limits.step_items,
                step_lexer_fuel=limits.step_fuel,
                verbose_errors=False,
            ),
        )
        if not start.is_error() and not start.is_stopped():
            # builds what all generations share, and shows whether there is a first token
            first = start.deep_copy()
            first.compute_bitmask()
            if first.is_error():
                return first
        return start

    def _llguidance_tokenizer(self) -> tuple[LLTokenizer, Sequence[bytes]]:
        """The vocabulary for llguidance, and the bytes of its tokens. It takes a tenth of a second,
        with the first grammar."""
        with self._lock:
            future = self._tokenizer
            if mine := future is None:
                future = self._tokenizer = Future()
        if mine:
            try:
                adapter = _Adapter(self._vocabulary)
                tokenizer = LLTokenizer(TokenizerWrapper(adapter), eos_token=adapter.eos_token_id)
                future.set_result((tokenizer, adapter.texts))
            except BaseException as error:
                self._tokenizer = None
                future.set_exception(error)
        return future.result()


class _Adapter:
    """The vocabulary as llguidance reads it: control tokens and the like are special ones, and the
    end is one more token.

    Special tokens have no text, but a name each: those of one name would be taken for each other.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.texts = [
            b"" if token in vocabulary.control_tokens else vocabulary.token_bytes(token)
            for token in range(vocabulary.vocabulary)
        ]
        self.eos_token_id = vocabulary.vocabulary
        self.bos_token_id = None
        self.tokens = [text or b"<|%d|>" % token for token, text in enumerate(self.texts)]
        self.tokens.append(b"<|end of the text|>")
        self.special_token_ids = [token for token, text in enumerate(self.texts) if not text] + [
            self.eos_token_id
        ]
        self._encode = vocabulary.encode

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text, not bytes")  # llguidance asks once which of the two is taken
        return self._encode(text)


def _on_a_large_stack(work: Callable[[], LLMatcher]) -> LLMatcher:
    """The result of work on a thread of its own, whose stack is large enough for all that the
    limits allow: llguidance calls itself from rule to rule, and past the stack the process dies."""
    done: Future[LLMatcher] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    with _STACK_SIZE:  # the size is one for the whole process
        size = threading.stack_size(_STACK)
        try:
            threading.Thread(target=run, name="asgl-grammar", daemon=True).start()
        finally:
            threading.stack_size(size)
    return done.result()


def _named(source: GrammarSource) -> str:
    return {
        "regex": "regex",
        "json_schema": "JSON schema",
        "grammar": "grammar",
        "choices": "list of choices",
    }[source.kind]


def _definition(source: GrammarSource) -> str:
    """The source in llguidance's own form."""
    if source.kind == "regex":
        return LLMatcher.grammar_from_regex(source.text)
    if source.kind == "grammar":
        return LLMatcher.grammar_from_lark(lark_grammar(source.text, source.control))
    if source.kind == "choices":
        options: list[str] = json.loads(source.text)
        return LLMatcher.grammar_from_regex("|".join(map(_literal, options)))
    return LLMatcher.grammar_from_lark("start: json-r0\n" + json_rules(source.text, "json-"))


def _literal(text: str) -> str:
    """A regex of this very text."""
    return "".join(
        sign if sign.isascii() and sign.isalnum() else f"\\x{{{ord(sign):X}}}" for sign in text
    )


def _reason(source: GrammarSource, error: str) -> str:
    """What llguidance says is wrong, without the grammar that it put around an expression."""
    if source.kind in ("regex", "choices"):
        error = error.partition("regex parse error:\n")[2].partition("\n   1 |")[0] or error
    return f":\n{error[:_SHOWN].rstrip()}"
