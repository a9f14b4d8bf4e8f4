"""A model's chat template, taken apart: what it writes before and after the content of each role's
messages.

Programs write a message piece by piece, with generation in between, so a template that turns a
whole conversation into text is of no use. It is rendered with sentinels for contents, and cut at
them:

    [user, assistant, user]     "<s>[U]" S0 "[/U]\\n[A]" S1 "[/A]\\n[U]" S2 "[/U]\\n"
                                         content    |  content
                                   suffix of user --+-- prefix of assistant

and what was found is put together again for several conversations, which must give what the
template gives. A template for which it does not (it changes contents, or treats a message
differently by its place) is refused, role by role.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from asgl.errors import ModelError
from asgl.models.template_sandbox import compile_template
from asgl.types import Message

_SENTINEL = "Zq{}contentqZ"
_AWKWARD = " \n\t <b>&amp; \"quoted\" 'text' {{{{ x }}}} " + _SENTINEL + " \n "


class RoleParts(NamedTuple):
    """What the template writes around the content of one message."""

    prefix: str
    suffix: str
    trims: bool = False
    """Whether the template strips white space at both ends of the content."""


class ChatTemplate:
    """The template with the Jinja text `source`; `bos` and `eos` are the texts it knows as
    bos_token and eos_token.

    Nothing is compiled before it is needed. Every method raises ModelError for a template that does
    not compile, does not render (`role_parts`: or cannot be split).
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        self.source, self._bos, self._eos = source, bos, eos
        self._parts: dict[str, RoleParts] = {}

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        add_generation_prompt: bool = False,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The whole conversation as text; `tools` as JSON schemas of functions, in the form that
        templates expect."""
        return self._render(messages, add_generation_prompt, self._bos, tools)

    def role_parts(self, role: str) -> RoleParts:
        """What goes around the content of a message of that role, at any place in a conversation.

        A system message is meant to be the first one; what the template does with later ones is not
        looked at.
        """
        if role not in self._parts:
            self._parts[role] = self._find(role)
        return self._parts[role]

    @property
    def head(self) -> str:
        """What the template writes before everything else: the bos text, or nothing."""
        return self._turns.head

    @property
    def default_system(self) -> str | None:
        """The whole text that the template puts before a first message that is no system message;
        None if there is none."""
        return self._turns.default_system

    def _render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        add_generation_prompt: bool,
        bos: str,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        return self._rendered(
            {
                "messages": [dict(message) for message in messages],
                "add_generation_prompt": add_generation_prompt,
                "bos_token": bos,
                "eos_token": self._eos,
                "tools": tools,
                "documents": None,
                "tools_in_user_message": False,  # where some templates put tools if nobody objects
            }
        )

    @cached_property
    def _rendered(self) -> Callable[[Mapping[str, Any]], str]:
        return compile_template(self.source)

    @cached_property
    def _turns(self) -> _Turns:
        """The parts of user and assistant, from which those of other roles are found."""
        first, *_ = self._gaps(["user", "assistant", "user"])
        user_end = self._gaps(["user"])[-1]
        assistant_end = self._gaps(["user", "assistant"])[-1]
        _, middle, between, _ = self._gaps(["user", "assistant", "user"])
        assistant = RoleParts(self._cut(middle, user_end, "user"), assistant_end)
        user = RoleParts(self._cut(between, assistant_end, "assistant"), user_end)
        if not first.endswith(user.prefix):
            raise _unsplittable("it treats the first message of a user unlike later ones")
        before = first[: len(first) - len(user.prefix)]
        # "<|im_start|>" is the bos text of some models, and begins the messages of others: only the
        # variable tells.
        named = self._render(_conversation(["user"], ["text"]), False, _SENTINEL).startswith(
            _SENTINEL
        )
        head = self._bos if named and before.startswith(self._bos) else ""
        turns = _Turns(head, before[len(head) :] or None, user, assistant)
        self._verify(turns, {})
        return turns

    def _find(self, role: str) -> RoleParts:
        turns = self._turns
        if role == "user":
            parts = turns.user
        elif role == "assistant":
            parts = turns.assistant
        elif role == "system":
            before, after, *_ = self._gaps(["system", "user"])
            if not before.startswith(turns.head) or not after.endswith(turns.user.prefix):
                raise _unsplittable("it writes the system message into the message of the user")
            parts = RoleParts(
                before[len(turns.head) :], after[: len(after) - len(turns.user.prefix)]
            )
        else:
            _, _, before, after, *_ = self._gaps(["user", "assistant", role, "assistant"])
            if not after.endswith(turns.assistant.prefix):
                raise _unsplittable(
                    f"what follows a message of the role {role!r} is not as elsewhere"
                )
            parts = RoleParts(
                self._cut(before, turns.assistant.suffix, "assistant"),
                after[: len(after) - len(turns.assistant.prefix)],
            )
        if role not in ("user", "assistant"):
            self._verify(turns, {role: parts})
        return parts._replace(trims=self._trims(role))

    def _gaps(self, roles: Sequence[str]) -> list[str]:
        """What the template writes before, between and after the contents."""
        contents = [_SENTINEL.format(order) for order in range(len(roles))]
        text = self.render(_conversation(roles, contents))
        gaps: list[str] = []
        for role, content in zip(roles, contents, strict=True):
            gap, found, text = text.partition(content)
            if not found:
                raise _unsplittable(
                    f"it leaves out or changes the content of a message of the role {role!r}"
                )
            gaps.append(gap)
        if "contentqZ" in "".join([*gaps, text]):
            raise _unsplittable("it repeats or reorders contents")
        return [*gaps, text]

    def _cut(self, gap: str, suffix: str, role: str) -> str:
        if not gap.startswith(suffix):
            raise _unsplittable(
                f"what it writes after a message of the role {role!r} depends on what follows"
            )
        return gap[len(suffix) :]

    def _verify(self, turns: _Turns, others: Mapping[str, RoleParts]) -> None:
        """Whether putting the parts together gives what the template renders."""
        parts = {"user": turns.user, "assistant": turns.assistant, **others}
        conversations = [
            ["user"],
            ["user", "assistant"],
            ["user", "assistant", "user"],
            ["user", "assistant"] * 2,
        ]
        for role in others:
            if role == "system":
                conversations = [[role, *roles] for roles in conversations]
            else:
                begun = ["user", "assistant", role]
                conversations = [begun, [*begun, "assistant", "user", "assistant"]]
        for roles in conversations:
            contents = [_SENTINEL.format(order) for order in range(len(roles))]
            built = turns.head + ("" if roles[0] == "system" else turns.default_system or "")
            built += "".join(
                [
                    parts[role].prefix + content + parts[role].suffix
                    for role, content in zip(roles, contents, strict=True)
                ]
            )
            messages = _conversation(roles, contents)
            if built != self.render(messages):
                raise _unsplittable(
                    f"a message is written differently by its place in {', '.join(roles)}"
                )
            if roles[-1] != "assistant":
                prompt = self.render(messages, add_generation_prompt=True)
                if prompt not in (built + turns.assistant.prefix, built):
                    raise _unsplittable(
                        "it begins an answer to be generated unlike an answer that was given"
                    )

    def _trims(self, role: str) -> bool:
        """Whether contents are stripped; ModelError if they are changed in any other way."""
        roles = {
            "user": ["user"],
            "assistant": ["user", "assistant"],
            "system": ["system", "user"],
        }.get(role, ["user", "assistant", role])
        at = roles.index(role)
        contents = [_SENTINEL.format(order) for order in range(len(roles))]
        plain = self.render(_conversation(roles, contents))
        awkward = _AWKWARD.format(at)
        text = self.render(_conversation(roles, [*contents[:at], awkward, *contents[at + 1 :]]))
        if text == plain.replace(contents[at], awkward):
            return False
        if text == plain.replace(contents[at], awkward.strip()):
            return True
        raise _unsplittable(f"it changes the content of a message of the role {role!r}")


class _Turns(NamedTuple):
    head: str
    default_system: str | None
    user: RoleParts
    assistant: RoleParts


def segments(text: str, special_tokens: Mapping[str, int]) -> list[int | str]:
    """Cuts text of a template (never of a user) at the texts of control tokens: ints are control
    tokens, strs plain text.

    Of two control texts at one place the longer wins. Plain text is to be joined with the content
    next to it before it is tokenized.
    """
    if not special_tokens:
        return [text] if text else []
    control = "|".join(
        re.escape(token) for token in sorted(special_tokens, key=len, reverse=True) if token
    )
    return [special_tokens.get(piece, piece) for piece in re.split(f"({control})", text) if piece]


def _conversation(roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    return [
        Message(role=role, content=content) for role, content in zip(roles, contents, strict=True)
    ]


def _unsplittable(why: str) -> ModelError:
    return ModelError(
        f"the model's chat template cannot be split into roles: {why}; write the prompt as plain "
        "text "
        "instead"
    )
