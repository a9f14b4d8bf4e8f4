"""Messages: what the model's own chat template writes around their content.

The text of the template is cut at its control tokens, which go into the stream as token ids; the
plain text between them is one run with the content next to it. Content itself is always tokenized
as data, so no user's text can end its message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from asgl.errors import ModelError, StreamError
from asgl.language.backend import ChatTemplate, Engine
from asgl.language.context import StreamContext
from asgl.language.tools import AnyTool, described, function_schemas
from asgl.language.transcript import Transcript, Turn
from asgl.types import Message, RoleParts

_SHOWN = 60
"""Characters of a text in an error."""


def begin_turn(
    transcript: Transcript,
    context: StreamContext,
    opened_by: object,
    role: str,
    *,
    tools: Sequence[AnyTool] = (),
    generated: bool = False,
) -> tuple[RoleParts, str]:
    """Writes the header of a message; that of the first has in it what the template puts before
    all.

    opened_by: who closes the message. tools: a system message tells of them, in the template's own
    way if it has one; else what is to follow the content is returned. generated: the content begins
    with what the model says, before which some templates write more than before given content.
    Returns what the template writes around the message, and what is to follow its content.
    ModelError if the model has no template, or one that does not know the role.
    """
    template, engine = context.chat_template, context.engine
    parts, told = template.parts(transcript.roles, role), ""
    if tools and template.tool_parts is not None:
        parts = _with_tools(template, engine, tools)
    elif tools:
        told = "\n\n" + described(tools)
    prefix = parts.prefix
    if generated and role == "assistant":
        prefix = template.generation(transcript.roles)
    if transcript.text_length or transcript.tokens:
        if not transcript.roles:  # what begins a prompt is not for the middle of one
            prefix = prefix.removeprefix(template.head)
    else:
        transcript.run.of_template = True
    write(transcript, engine, prefix)
    transcript.roles.append(role)
    transcript.turn = Turn(opened_by, role, transcript.text_length, parts.suffix)
    return parts, told


def _with_tools(template: ChatTemplate, engine: Engine, tools: Sequence[AnyTool]) -> RoleParts:
    schemas = function_schemas(tools)
    said = json.dumps(schemas, ensure_ascii=False)
    if any(token in said for token in engine.tokenizer.special_tokens):
        raise ModelError(
            "the description of a tool has the text of a control token in it, which the model's "
            "chat template would take for one: write it otherwise"
        )
    parts = template.with_tools(schemas)
    return parts._replace(prefix=template.head + parts.prefix)


def end_turn(transcript: Transcript, engine: Engine) -> None:
    """Writes what comes after the content of the message that is open, and puts it among the
    messages."""
    turn = transcript.turn
    assert turn is not None
    transcript.messages.append(Message(role=turn.role, content=transcript.text[turn.start :]))
    write(transcript, engine, turn.suffix)
    transcript.turn = None


def end_of_turn(transcript: Transcript, engine: Engine) -> tuple[int, ...]:
    """The control token that ends the message that is open, if there is one: the first that the
    template writes after it."""
    if transcript.turn is None:
        return ()
    suffix = engine.tokenizer.split(transcript.turn.suffix)
    return tuple(part for part in suffix if isinstance(part, int))[:1]


def append_content(transcript: Transcript, text: str) -> None:
    """Appends text of a program. Between messages white space is left out, since the template
    writes what belongs there; StreamError for other text."""
    check_text(transcript, text)
    if not transcript.between_messages:
        transcript.append(text)


def check_text(transcript: Transcript, text: str) -> None:
    """StreamError for text between messages that is not mere white space."""
    if transcript.between_messages and text.strip():
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        raise _misplaced(f"the text {shown!r} was appended")


def check_place(transcript: Transcript, kind: str) -> None:
    """StreamError for a gen or a select between messages."""
    if transcript.between_messages:
        raise _misplaced(f"a {kind} was submitted", f"s.assistant(asgl.{kind}(...))")


def _misplaced(what: str, instead: str = "s.user(...)") -> StreamError:
    return StreamError(
        f"{what} after a message and outside of one, where the model's chat template has no place "
        f"for it, and messages() would not show it: write {instead}, or do it inside of a block "
        '`with s.role("assistant"):`'
    )


def write(transcript: Transcript, engine: Engine, text: str) -> None:
    """Appends text of the template: control tokens in it are meant."""
    for part in engine.tokenizer.split(text):
        if isinstance(part, int):
            transcript.append_control(part, engine.tokenizer.decode([part]))
        else:
            transcript.append(part)
