"""A model's chat template, taken apart: what it writes before and after the content of a message.

Programs write a message piece by piece, with generation in between, so a template that turns a
whole conversation into text is of no use. It is rendered with sentinels for contents, and cut at
them:

    [user, assistant, user]     "<s>[U]" S0 "[/U]\\n[A]" S1 "[/A]\\n[U]" S2 "[/U]\\n"
                                         content    |  content
                                   suffix of user --+-- prefix of assistant

A template may write a message in one way or another by what came before it, so the question is
always: what goes around a message of this role, after messages of those roles? What was written is
never written anew. So every message is written as the template writes it once the conversation has
gone on (some write the last answer in a way of its own, or a mark behind the last message), and a
template that changes what it wrote before is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from asgl.errors import ConfigError, ModelError
from asgl.models import tool_template
from asgl.models.template_sandbox import CompiledTemplate
from asgl.types import WHITE_SPACE, Message, RoleParts, ToolParts

_SENTINEL = "Zq{}contentqZ"
_AWKWARD = "<b>&amp; \"quoted\" 'text' {{{{ x }}}} " + _SENTINEL + " [1]"
_TRIMMED = ("", WHITE_SPACE, "\n", " ")
"""Characters that templates take off at an end of contents."""
_COMMON_ROLES = frozenset({"system", "user", "assistant", "tool"})
"""Roles that any template may be asked for. Others must be named in it."""
_NOT_ARGUMENTS = frozenset(
    {"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "namespace"}
    | {"range", "dict", "loop", "lipsum", "cycler", "joiner", "tools_in_user_message", "caller"}
)
"""Variables that programs cannot give a template."""
_KEPT = 32
"""So many sets of arguments keep what was found out of the template."""
_GOES_ON: Mapping[str, Sequence[tuple[str, ...]]] = {
    "user": (("assistant", "user", "assistant"), ("assistant", "user"), ("assistant",), ()),
    "assistant": (("user", "assistant", "user"), ("user", "assistant"), ("user",), ()),
    "system": (("user", "assistant", "user"), ("user", "assistant"), ("user",), ()),
}
_OTHERS_GO_ON = (("assistant", "user"), ("assistant",), ("user",), ())
"""How a conversation may go on after a message, the longest first: the first that the template
renders is taken."""
_MARK = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]")
"""What looks like a marker: a suffix does not end inside of one."""
_NAME = re.compile(r"\w[\w-]*")
"""A role: no text of a template that could be a marker."""
_REPEATS = 3
_PERIODS = (1, 2, 3, 4)


class ChatTemplate:
    """The template with the Jinja text `source`.

    `bos` and `eos` are the texts it knows as bos_token and eos_token, `tokens` further ones by
    their names (pad_token, say). `now` is the clock of templates that write the date.

    Nothing is compiled before it is needed. Every method raises ModelError for a template that does
    not compile or does not render, or cannot be split where that is asked for.
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str = "",
        eos: str = "",
        tokens: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source, self._bos, self._now = source, bos, now
        self._arguments: Mapping[str, Any] = {}
        self._with_arguments: dict[str, ChatTemplate] = {}
        self._tokens = {**(tokens or {}), "bos_token": bos, "eos_token": eos}
        self._found: dict[tuple[tuple[str, ...], str], RoleParts] = {}
        self._rendered: dict[tuple[tuple[str, ...], bool], str | ModelError] = {}
        self._times: tuple[str, ...] = ()

    def with_arguments(self, arguments: Mapping[str, Any]) -> ChatTemplate:
        """The template with values for variables that it reads, such as enable_thinking.

        ConfigError for a variable that it does not read, or that is not for programs to set, and
        for values that are no JSON.
        """
        given = dict(arguments)
        for name in given:
            if name in _NOT_ARGUMENTS or name in self._tokens:
                raise ConfigError(f"the variable {name!r} of the chat template is set by itself")
            if name not in self._compiled.names:
                read = self._compiled.names - self._compiled.own_names - self._tokens.keys()
                known = ", ".join(sorted(read - _NOT_ARGUMENTS)) or "none"
                raise ConfigError(
                    f"the model's chat template does not read {name!r}; what it reads: {known}"
                )
        try:
            key = json.dumps(given, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"arguments of a chat template must be JSON: {error}") from error
        if key not in self._with_arguments:
            if len(self._with_arguments) >= _KEPT:
                self._with_arguments.clear()
            template = ChatTemplate(
                self.source,
                bos=self._bos,
                eos=self._tokens["eos_token"],
                tokens=self._tokens,
                now=self._now,
            )
            template._arguments = json.loads(key)
            self._with_arguments[key] = template
        return self._with_arguments[key]

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        add_generation_prompt: bool = False,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The whole conversation as text; `tools` as JSON schemas of functions, in the form that
        templates expect."""
        return self._render(messages, add_generation_prompt, tools=tools)

    def parts(self, before: Sequence[str], role: str) -> RoleParts:
        """What goes around the content of a message of that role after messages of the roles
        `before`.

        The prefix of the first message has in it what the template writes before everything: the
        bos text, and a default system message. ModelError for a role that the template does not
        know, and where the template refuses such a conversation or changes what it wrote before.
        """
        self._forget_old_times()
        before = self._shortened(before)
        if (before, role) not in self._found:
            self._found[before, role] = self._find(before, role)
        return self._found[before, role]

    def generation(self, before: Sequence[str]) -> str:
        """What begins an answer that is to be generated after messages of the roles `before`: it
        takes the place of the prefix that a given answer has.

        A template that knows no such prompt gets that prefix, unless it is mere white space.
        """
        self._forget_old_times()
        before = self._shortened(before)
        written = self._written(before)
        text = _joined(self._gaps(before, generation=True))
        if not text.startswith(written):
            raise _unsplittable("it changes what it wrote before when an answer is generated")
        if text == written and (prefix := self.parts(before, "assistant").prefix).strip():
            return prefix
        return text[len(written) :]

    @property
    def tool_parts(self) -> ToolParts | None:
        """How it writes calls and results; None if it knows no tools, or none that we know how to
        take apart."""
        return self._tool_parts

    @cached_property
    def _tool_parts(self) -> ToolParts | None:
        return tool_template.tool_parts(self)

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> RoleParts:
        """What goes around a first message, of the system, that tells of the tools; `head` is not
        in it. ModelError if that cannot be told apart."""
        return tool_template.system_with_tools(self, tools)

    @property
    def head(self) -> str:
        """What the template writes before everything else: the bos text, or nothing."""
        # "<|im_start|>" is the bos text of some models, and begins the messages of others: only the
        # variable tells.
        named = self._render(_conversation(["user"], ["text"]), bos=_SENTINEL)
        first, later = (
            self.parts((), "user").prefix,
            self.parts(("user", "assistant"), "user").prefix,
        )
        begins = first.removesuffix(later).startswith(self._bos)
        return self._bos if begins and named.startswith(_SENTINEL) else ""

    def after_answers(self) -> list[str]:
        """What may follow the content of an answer: an end of the message, or what begins the
        next one."""
        last, others = self._tails(("user",), "assistant")
        return others if last is None else [last, *others]

    def writes(self, texts: Iterable[str]) -> set[str]:
        """Those of the texts that the template has in it, or writes around contents."""
        own = list(self._compiled.literals)
        for roles in (("system", "user"), ("user", "assistant", "user"), ("user", "tool")):
            try:
                own += self._gaps(roles, generation=True)
            except ModelError:
                continue  # a conversation that the template refuses
        written = "\0".join(own)
        return {text for text in texts if text in written}

    def _render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        add_generation_prompt: bool = False,
        bos: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        variables = {
            "documents": None,
            **self._arguments,
            **self._tokens,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
        }
        if bos is not None:
            variables["bos_token"] = bos
        if tools is not None:
            variables["tools_in_user_message"] = False  # where some put tools if nobody objects
        return self._compiled.render(variables)

    @cached_property
    def _compiled(self) -> CompiledTemplate:
        return CompiledTemplate(self.source, self._now)

    def _forget_old_times(self) -> None:
        """Parts with a date in them are found again when it changes."""
        if (times := self._compiled.times()) != self._times:
            self._found.clear()
            self._rendered.clear()
            self._times = times

    def _find(self, before: tuple[str, ...], role: str) -> RoleParts:
        if role not in _COMMON_ROLES and not (
            _NAME.fullmatch(role) and role in self._compiled.literals
        ):
            raise ModelError(
                f"the model's chat template does not know the role {role!r}: it names no such "
                f"role, and it is none of {', '.join(sorted(_COMMON_ROLES))}"
            )
        roles, gaps = self._going_on(before, role)
        text = _joined(gaps[: len(before) + 1])
        written = self._written(before)
        if not text.startswith(written):
            raise _unsplittable(
                f"it changes what it wrote before when a message of the role {role!r} follows "
                f"{', '.join(before)}"
            )
        suffix = self._suffix(before, role, gaps[len(before) + 1])
        return RoleParts(text[len(written) :], suffix, *self._trims(roles, len(before)))

    def _going_on(
        self, before: tuple[str, ...], role: str
    ) -> tuple[tuple[str, ...], Sequence[str]]:
        """A conversation in which such a message is not the last, if the template renders one, and
        its gaps."""
        error: ModelError | None = None
        for more in _GOES_ON.get(role, _OTHERS_GO_ON):
            roles = (*before, role, *more)
            try:
                text = self._render_sentinels(roles)
            except ModelError as refused:
                error = refused
            else:
                return roles, _cut(text, roles)
        assert error is not None
        raise error

    def _written(self, before: tuple[str, ...]) -> str:
        """What was written when messages of these roles are complete."""
        text = ""
        for order, role in enumerate(before):
            parts = self.parts(before[:order], role)
            text += parts.prefix + _SENTINEL.format(order) + parts.suffix
        return text

    def _suffix(self, before: tuple[str, ...], role: str, tail: str) -> str:
        """What follows the content, `tail` in one conversation, whatever follows the message: as
        far as all that may follow begins in the same way, but no part of a marker."""
        last, others = self._tails(before, role)
        others.append(tail)
        tails = others if last is None else [last, *others]
        suffix = tails[0]
        for tail in tails:
            suffix = suffix[: _common(suffix, tail)]
        if suffix == last:
            return suffix
        marks = [mark.span() for tail in tails for mark in _MARK.finditer(tail)]
        inside = [begin for begin, end in marks if begin < len(suffix) < end]
        suffix = suffix[: min(inside, default=len(suffix))]
        if last is None:  # a second marker begins the only message that may follow
            second = [mark.start() for mark in _MARK.finditer(suffix)][1:]
            return suffix[: min(second, default=len(suffix))]
        ends = {mark[0] for tail in others if (mark := _MARK.match(tail, len(suffix))) is not None}
        if not _MARK.search(suffix) and len(ends) == 1 and _MARK.match(last, len(suffix)):
            return suffix + ends.pop()  # another marker takes its place where a conversation ends
        return suffix

    def _tails(self, before: tuple[str, ...], role: str) -> tuple[str | None, list[str]]:
        """What follows the content of such a message if it is the last one, None if it cannot be,
        and what follows it where the conversation goes on."""

        def tail(*ways: tuple[tuple[str, ...], bool]) -> str | None:
            """In the first way that the template renders."""
            for more, generation in ways:
                try:
                    return self._gaps((*before, role, *more), generation)[len(before) + 1]
                except ModelError:
                    continue
            return None

        others = [tail(((), True))]
        for follower in sorted(_COMMON_ROLES):
            others.append(tail(((follower,), False), ((follower, "user"), False)))
        return tail(((), False)), [other for other in others if other is not None]

    def _trims(self, roles: Sequence[str], at: int) -> tuple[str, str]:
        """The characters that are taken off at the ends of the content of that message; ModelError
        if it is changed in any other way."""
        contents = [_SENTINEL.format(order) for order in range(len(roles))]
        plain = self._render_sentinels(roles)
        ways = [(left, right) for left in _TRIMMED for right in _TRIMMED]
        for before, after in (("\n \t", "\t \n"), (" \n\t", "\t\n ")):
            awkward = before + _AWKWARD.format(at) + after
            text = self.render(_conversation(roles, [*contents[:at], awkward, *contents[at + 1 :]]))
            ways = [
                (left, right)
                for left, right in ways
                if text == plain.replace(contents[at], awkward.lstrip(left).rstrip(right))
            ]
        if not ways:
            raise _unsplittable(f"it changes the content of a message of the role {roles[at]!r}")
        return ways[0]

    def _shortened(self, roles: Sequence[str]) -> tuple[str, ...]:
        """The roles, with turns that repeat over and over left out: what a template writes does not
        depend on how often they did, unless it numbers them."""
        if len(roles) <= _REPEATS or self._numbers_turns:
            return tuple(roles)
        kept: list[str] = []
        for role in roles:
            kept.append(role)
            for period in _PERIODS:
                last = kept[-period:]
                if kept[-(_REPEATS + 2) * period :] == last * (_REPEATS + 2):
                    del kept[-2 * period :]  # an even number, for templates that check parity
        return tuple(kept)

    @cached_property
    def _numbers_turns(self) -> bool:
        turns = ("user", "assistant") * (_REPEATS + 3)
        try:
            gaps = self._gaps(turns)
        except ModelError:
            return True
        return gaps[2 * _REPEATS - 1 : -4] != gaps[2 * _REPEATS + 1 : -2]

    def _gaps(self, roles: Sequence[str], generation: bool = False) -> list[str]:
        """What the template writes before, between and after the contents."""
        return _cut(self._render_sentinels(roles, generation), roles)

    def _render_sentinels(self, roles: Sequence[str], generation: bool = False) -> str:
        """The conversation with sentinels for contents. Refusals are remembered as well."""
        key = (tuple(roles), generation)
        if key not in self._rendered:
            contents = [_SENTINEL.format(order) for order in range(len(roles))]
            try:
                self._rendered[key] = self._render(_conversation(roles, contents), generation)
            except ModelError as error:
                self._rendered[key] = error
        text = self._rendered[key]
        if isinstance(text, ModelError):
            raise ModelError(str(text)) from text.__cause__
        return text


def _cut(text: str, roles: Sequence[str]) -> list[str]:
    gaps: list[str] = []
    for order, role in enumerate(roles):
        gap, found, text = text.partition(_SENTINEL.format(order))
        if not found:
            raise _unsplittable(
                f"it leaves out or changes the content of a message of the role {role!r}"
            )
        gaps.append(gap)
    if "contentqZ" in "".join([*gaps, text]):
        raise _unsplittable("it repeats or reorders contents")
    return [*gaps, text]


def _common(one: str, other: str) -> int:
    """How many characters the texts begin with in common."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _joined(gaps: Sequence[str]) -> str:
    """The gaps with sentinels between them."""
    text = gaps[0]
    for order, gap in enumerate(gaps[1:]):
        text += _SENTINEL.format(order) + gap
    return text


def _conversation(roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    return [
        Message(role=role, content=content) for role, content in zip(roles, contents, strict=True)
    ]


def _unsplittable(why: str) -> ModelError:
    return ModelError(
        f"the model's chat template cannot be split into roles: {why}; write the prompt as plain "
        "text instead"
    )
