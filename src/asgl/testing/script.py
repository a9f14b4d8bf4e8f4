"""The answers of a script, and how much of it was used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

from asgl.errors import ConfigError
from asgl.execution.grammar import Grammar
from asgl.language.ops import Gen, Select
from asgl.testing.constraints import Refused, as_said

_SHOWN = 80
"""So many characters of a prompt or a schema are in an error message."""


class JsonModel(Protocol):
    """A pydantic model, or anything that writes itself as JSON."""

    def model_dump_json(self) -> str: ...


Answer: TypeAlias = (
    str | float | Mapping[str, Any] | JsonModel | BaseException | Callable[[str], Any]
)
"""What the model says to one gen or select: a str; a bool, number, dict or pydantic model, which is
said as JSON; an exception, with which the op then fails; for a select also the index of the option;
or a function of the prompt's text that gives one of these."""
Answers: TypeAlias = Answer | Sequence[Answer]
"""A list gives its answers one by one, in the order in which the ops ask; anything else answers as
often as it is asked."""
Script: TypeAlias = Mapping[Any, Answers]
"""Answers by the name of the variable, a str, or None for ops without one."""


class ScriptError(AssertionError):
    """The script and the program do not fit: an op asked for an answer that is not there, or an
    answer was not asked for."""


class Asked(NamedTuple):
    """What an op asked the model."""

    name: str | None
    """The variable of the op."""
    prompt: str
    """All text before the answer, control tokens written out."""
    choices: tuple[str, ...] | None = None
    """The options of a select; None for a gen."""


class ScriptedAnswers:
    """The script, and how much of it was used."""

    def __init__(self, script: Script) -> None:
        if not isinstance(script, Mapping):
            raise ConfigError(
                f"script must be a dict of answers by the names of variables, not {script!r}"
            )
        for name in script:
            if name is not None and not isinstance(name, str):
                raise ConfigError(
                    f"the names of a script are strings, or None for ops without one, not {name!r}"
                )
        self._script: dict[str | None, Any] = {
            name: answer
            if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Sequence)
            else list(answer)
            for name, answer in script.items()
        }
        self._used = dict.fromkeys(self._script, 0)
        self.asked: list[Asked] = []

    def next(self, part: Gen | Select, prompt: str, grammar: Grammar | None = None) -> Any:
        """What the op says: a str, the index of an option, or an exception. ScriptError if the
        script has nothing for it, or nothing that it may say.

        prompt: the text before. grammar: of the constraint of a gen.
        """
        name = part.name
        self.asked.append(Asked(name, prompt, part.choices if isinstance(part, Select) else None))
        kind = "gen" if isinstance(part, Gen) else "select"
        where = f"a {kind} {_named(name)}, after {prompt[-_SHOWN:]!r}"
        if name not in self._script:
            known = ", ".join(map(_named, self._script)) or "none"
            raise ScriptError(
                f"the script has no answer for {where}; there are answers for: {known}"
            )
        answer, used = self._script[name], self._used[name]
        self._used[name] += 1
        if isinstance(answer, list):
            if used >= len(cast("list[Any]", answer)):
                raise ScriptError(
                    f"the script has no more answers for {where}: all {used} were used"
                )
            answer = cast("list[Any]", answer)[used]
        while callable(answer):
            answer = answer(prompt)
        if isinstance(answer, BaseException):
            return answer
        return (
            _option(part, answer, where)
            if isinstance(part, Select)
            else _checked(part, _text(answer), grammar, where)
        )

    def check_used(self) -> None:
        """ScriptError if an answer was not used."""
        unused: list[str] = []
        for name, answer in self._script.items():
            total = len(cast("list[Any]", answer)) if isinstance(answer, list) else 1
            if self._used[name] < total:
                unused.append(
                    _named(name)
                    if not isinstance(answer, list)
                    else f"{_named(name)} ({total - self._used[name]} of {total})"
                )
        if unused:
            raise ScriptError(
                f"the program did not ask for these answers of the script: {', '.join(unused)}"
            )


def _named(name: str | None) -> str:
    return repr(name) if name is not None else "without a name"


def _text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    return (
        answer.model_dump_json()
        if hasattr(answer, "model_dump_json")
        else json.dumps(answer, ensure_ascii=False)
    )


def _option(part: Select, answer: Any, where: str) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(part.choices):
        return answer
    if answer in part.choices:
        return part.choices.index(answer)
    raise ScriptError(
        f"the script's answer for {where}, {answer!r}, is none of the options: {list(part.choices)}"
    )


def _checked(part: Gen, text: str, grammar: Grammar | None, where: str) -> str:
    if part.constraint is None or grammar is None:
        return text
    source = part.constraint.source
    try:
        return as_said(grammar, source, text)
    except Refused as refused:
        allows = source.text if len(source.text) <= _SHOWN else source.text[:_SHOWN] + "..."
        raise ScriptError(
            f"the script's answer for {where}, {text!r}, is nothing that the {source.kind} "
            f"{allows} allows: {refused}"
        ) from None
