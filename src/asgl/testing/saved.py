"""Prompts in files of JSON; there are no keys and values to save."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asgl.errors import ConfigError, ModelError
from asgl.testing.words import CONTROL, WordTokenizer


class SavedAsJson:
    """The files of one Runtime, as `asgl.language.backend.Saved` and a Runtime ask for them."""

    def __init__(self, tokenizer: WordTokenizer) -> None:
        self._tokenizer = tokenizer

    async def save_prompt(
        self, path: Path, state: Mapping[str, Any], tokens: Any, namespace: str | None, /
    ) -> None:
        words = [
            token if token < len(CONTROL) else self._tokenizer.decode([token])
            for token in state["tokens"]
        ]
        _write(path, json.dumps({**state, "tokens": words}))
        await asyncio.sleep(0)

    def read_prompt(self, path: Path, kv: bool = False, /) -> tuple[dict[str, Any], bool]:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            words = state["tokens"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{path}: no prompt that a ScriptedRuntime saved: {error!r}"
            ) from error
        return {
            **state,
            "tokens": [
                word if isinstance(word, int) else self._tokenizer.id_of(word) for word in words
            ],
        }, False

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
