"""Prompts in files: what a stream says, as JSON."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from asgl.errors import ConfigError, ModelError
from asgl.language.executor import Executor
from asgl.language.transcript import Snapshot
from asgl.plan import INT
from asgl.types import FunctionCall, Message, MessageToolCall


async def save(executor: Executor, path: Path, kv: bool) -> None:
    """Writes the stream as it is once all that is submitted by now is done."""
    ops = executor.ops
    snapshot = await executor.snapshot()
    options, engine = executor.context.options, executor.engine
    state = to_json(snapshot) | {
        "name": options.name,
        "origin": options.origin,
        "path": executor.context.path,
        "ops": ops,
        "template": dict(options.template),
    }
    tokens = snapshot.tokens if kv else None
    await engine.saved.save_prompt(path, state, tokens, options.cache_salt)


class SavedPrompt(NamedTuple):
    """What a saved prompt goes on from."""

    snapshot: Snapshot
    name: str | None
    origin: tuple[str | None, str]
    path: tuple[int, ...]
    ops: int
    template: dict[str, Any]


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """ConfigError if a variable is no JSON, or a message is open."""
    if snapshot.turn is not None:
        raise ConfigError(f"a {snapshot.turn.role!r} message is open: save after its block")
    for name, value in snapshot.variables.items():
        try:
            whole = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError, RecursionError):
            whole = False
        if not whole:
            raise ConfigError(
                f"the variable {name!r} cannot be saved, since it is no JSON: {value!r}; set it to "
                "text, numbers, "
                "lists or dicts, with text as keys"
            )
    return {
        "text": snapshot.text,
        "tokens": list(snapshot.tokens),
        "variables": dict(snapshot.variables),
        "messages": [dict(message) for message in snapshot.messages],
        "roles": list(snapshot.roles),
        "bos_added": snapshot.bos_added,
    }


def from_json(state: Mapping[str, Any], where: str) -> SavedPrompt:
    """ModelError if the JSON is not what was saved."""
    try:
        messages = tuple(map(_message, state["messages"]))
        snapshot = Snapshot(
            array(INT, state["tokens"]),
            _text(state["text"]),
            dict(state["variables"]),
            messages,
            None,
            tuple(map(_text, state["roles"])),
            bool(state["bos_added"]),
        )
        name = state["name"]
        origin = (state["origin"][0], _text(state["origin"][1]))
        return SavedPrompt(
            snapshot,
            name if name is None else _text(name),
            origin,
            tuple(map(int, state["path"])),
            int(state["ops"]),
            dict(state.get("template") or {}),
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{where}: the saved prompt is damaged: {error!r}") from error


def _message(state: Mapping[str, Any]) -> Message:
    message = Message(role=_text(state["role"]), content=_text(state["content"]))
    if "tool_calls" in state:
        message["tool_calls"] = [
            MessageToolCall(
                id=_text(call["id"]),
                type="function",
                function=FunctionCall(
                    name=_text(call["function"]["name"]),
                    arguments=_text(call["function"]["arguments"]),
                ),
            )
            for call in state["tool_calls"]
        ]
    if "tool_call_id" in state:
        message["tool_call_id"] = _text(state["tool_call_id"])
    return message


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
