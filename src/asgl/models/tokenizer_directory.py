"""The tokenizer and the chat template of a directory in Hugging Face's layout, from the files that
speak of them: tokenizer.json or tokenizer.model, tokenizer_config.json, special_tokens_map.json,
added_tokens.json, chat_template.jinja."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_json import tokenizer_json

_LISTS = ("additional_special_tokens", "extra_special_tokens", "chat_control_tokens")


def open_tokenizer(
    directory: Path, *, vocabulary: int, end_tokens: set[int]
) -> tuple[Tokenizer, ChatTemplate | None]:
    """The tokenizer, and the chat template if there is one.

    `vocabulary` is the number of rows of the model's embedding; `end_tokens` are what config.json
    and generation_config.json call so. ModelError names the file that is missing or wrong.
    """
    config = read_json(directory / "tokenizer_config.json", optional=True)
    further = read_json(directory / "special_tokens_map.json", optional=True)
    names = {
        name: text
        for source in (further, config)
        for name, token in source.items()
        if name.endswith("_token") and (text := _text(token))
    }
    named = {*names.values(), *_listed(further), *_listed(config)}
    template = _chat_template(directory, config, names)
    added = _added_tokens(directory, config)
    adds_bos = config.get("add_bos_token")
    path = directory / "tokenizer.json"
    if path.exists():
        tokenizer = tokenizer_json(
            path,
            vocabulary=vocabulary,
            bos=names.get("bos_token"),
            adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
            end_texts=[names["eos_token"]] if "eos_token" in names else [],
            end_tokens=end_tokens,
            named=named,
            added=added,
            template=template,
        )
        return tokenizer, template
    path = directory / "tokenizer.model"
    if not path.exists():
        raise ModelError(f"{directory}: there is no tokenizer.json and no tokenizer.model")
    from asgl.models.tokenizer_sentencepiece import tokenizer_model  # see there

    tokenizer = tokenizer_model(
        path,
        vocabulary=vocabulary,
        added=added,
        named=named,
        template=template,
        adds_bos=adds_bos is not False,
        end_tokens=end_tokens,
        legacy=config.get("legacy") is True,
    )
    return tokenizer, template


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """The JSON object in that file; an empty one if it is `optional` and not there. ModelError if
    it cannot be read."""
    if optional and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


def _text(token: Any) -> str:
    """The text of a token that is given as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _listed(config: Mapping[str, Any]) -> Iterator[str]:
    """The texts in the lists of tokens; one of them may also be an object of tokens by name."""
    for key in _LISTS:
        tokens = config.get(key)
        if isinstance(tokens, dict):
            tokens = list(tokens.values())
        for token in tokens if isinstance(tokens, list) else ():
            yield _text(token)


def _added_tokens(directory: Path, config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Added tokens by id, in the form that tokenizer.json has them in."""
    tokens: dict[int, dict[str, Any]] = {}
    path = directory / "added_tokens.json"
    for text, id in read_json(path, optional=True).items():
        if not isinstance(id, int) or id < 0:
            raise ModelError(f"{path}: the id of {text!r} is {id!r:.40}")
        tokens[id] = {"content": text, "special": False}
    path = directory / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ModelError(f"{path}: added_tokens_decoder is not an object")
    for id, token in decoder.items():
        if not id.isdecimal() or not isinstance(token, dict) or not _text(token):
            raise ModelError(f"{path}: added_tokens_decoder has {token!r:.60} for {id!r:.20}")
        tokens[int(id)] = {**token, "special": bool(token.get("special"))}
    return tokens


def _chat_template(
    directory: Path, config: Mapping[str, Any], names: Mapping[str, str]
) -> ChatTemplate | None:
    path = directory / "chat_template.jinja"
    source: Any = config.get("chat_template")
    if path.exists():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
    if isinstance(source, list):  # several, by name
        named = {
            entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)
        }
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(
        source, bos=names.get("bos_token", ""), eos=names.get("eos_token", ""), tokens=names
    )
