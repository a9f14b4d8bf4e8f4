"""Messages: what the model's own chat template writes around their content.

The text of the template is cut at its control tokens, which go into the stream as token ids; the
plain text between them is one run with the content next to it. Content itself is always tokenized
as data, so no user's text can end its message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from asgl.errors import ModelError
from asgl.language.backend import ChatTemplate, Engine, RoleParts
from asgl.language.tools import Tool, described, function_schemas
from asgl.language.transcript import Transcript, Turn
from asgl.models import chat_template as models
from asgl.models.chat_template import segments
from asgl.models.tool_template import system_with_tools, tool_parts
from asgl.types import Message


def begin_turn(
    transcript: Transcript,
    engine: Engine,
    opened_by: object,
    role: str,
    tools: Sequence[Tool[..., Any]] = (),
) -> str:
    """Writes the header of a message, and before the first one what the template puts before all:
    the default system message.

    A system message may tell of `tools`: in the template's own way, if it has one. Else what is to
    follow the content is returned. ModelError if the model has no template, or one that does not
    know the role.
    """
    template = _template(engine)
    parts = template.role_parts(role)
    told, suffix = "", None
    if tools and isinstance(template, models.ChatTemplate) and tool_parts(template) is not None:
        schemas = function_schemas(tools)
        if any(
            token in json.dumps(schemas, ensure_ascii=False)
            for token in engine.tokenizer.special_tokens
        ):
            raise ModelError(
                "the description of a tool has the text of a control token in it, which the "
                "model's chat template "
                "would take for one: write it otherwise"
            )
        parts = system_with_tools(template, schemas)
        suffix = parts.suffix
    elif tools:
        told = "\n\n" + described(tools)
    if not transcript.has_roles:
        if not transcript.text_length and not transcript.tokens:
            write(transcript, engine, template.head)
        if role != "system" and template.default_system is not None:
            write(transcript, engine, template.default_system)
        transcript.has_roles = True
    write(transcript, engine, parts.prefix)
    transcript.turn = Turn(opened_by, role, transcript.text_length, suffix)
    return told


def end_turn(transcript: Transcript, engine: Engine) -> None:
    """Writes what comes after the content of the message that is open, and puts it among the
    messages."""
    turn = transcript.turn
    assert turn is not None
    transcript.messages.append(Message(role=turn.role, content=transcript.text[turn.start :]))
    write(
        transcript,
        engine,
        turn.suffix if turn.suffix is not None else _template(engine).role_parts(turn.role).suffix,
    )
    transcript.turn = None


def end_of_turn(transcript: Transcript, engine: Engine) -> tuple[int, ...]:
    """The control token that ends the message that is open, if there is one: the first that the
    template writes after it."""
    if transcript.turn is None:
        return ()
    suffix = segments(
        _template(engine).role_parts(transcript.turn.role).suffix, engine.tokenizer.special_tokens
    )
    return tuple(part for part in suffix if isinstance(part, int))[:1]


def parts_of(engine: Engine, role: str) -> RoleParts:
    return _template(engine).role_parts(role)


def _template(engine: Engine) -> ChatTemplate:
    if engine.chat_template is None:
        raise ModelError(
            "this model has no chat template, so it knows no roles: write the prompt as plain text "
            "instead"
        )
    return engine.chat_template


def write(transcript: Transcript, engine: Engine, text: str) -> None:
    """Appends text of the template: control tokens in it are meant."""
    for part in segments(text, engine.tokenizer.special_tokens):
        if isinstance(part, int):
            transcript.append_control(part, engine.tokenizer.decode([part]))
        else:
            transcript.append(part)
