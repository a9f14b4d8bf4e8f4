"""The tokens of conversations, message by message, against transformers' `apply_chat_template`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_shapes import SHAPES, Shape
from small_tokenizers import SCHEMES, VOCABULARY, directory
from transformers import PreTrainedTokenizerFast

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_directory import open_tokenizer

ROLES = {"s": "system", "u": "user", "a": "assistant"}
CONVERSATIONS = [
    "u", "ua", "uau", "uaua", "uauau", "su", "sua", "suau", "suaua", "suauau", "uauauauauau",
    "usu", "suaus", "uu", "auau", "ss", "sau",
]  # fmt: skip
CONTENTS = [
    "Hi",
    " the other",
    "is\n  it? ",
    "\n\nA: b",
    "日本 🙂",
    "x",
    "the  end\t",
    "[1] <b>{{ x }}</b>",
]
SPACED = [scheme for scheme in SCHEMES if scheme != "bytes"]


def opened(path: Path, shape: Shape, scheme: str) -> tuple[Tokenizer, ChatTemplate, Any]:
    """The tokenizer, the chat template and transformers' own tokenizer."""
    ends = [text for text in (shape.bos, shape.eos) if text]
    config: dict[str, Any] = {"chat_template": shape.template, "eos_token": shape.eos}
    if shape.bos:
        config["bos_token"] = shape.bos
    special = [text for text in (*ends, *shape.special) if text not in shape.plain]
    directory(path, scheme, special=special, plain=shape.plain, flags=shape.flags, config=config)
    tokenizer, template = open_tokenizer(path, vocabulary=VOCABULARY, end_tokens=set())
    assert template is not None
    return tokenizer, template, PreTrainedTokenizerFast.from_pretrained(path)


def conversation(initials: str) -> list[dict[str, str]]:
    contents = itertools.cycle(CONTENTS)
    return [{"role": ROLES[initial], "content": next(contents)} for initial in initials]


def written(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[dict[str, str]],
    generation: bool,
) -> list[int]:
    """What a prompt stream makes of the messages."""
    parts: list[int | str] = []
    roles: list[str] = []

    def append(*more: int | str) -> None:
        for part in more:
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)

    for message in messages:
        around = template.parts(roles, message["role"])
        content = message["content"].lstrip(around.trims_left).rstrip(around.trims_right)
        append(*tokenizer.split(around.prefix), content, *tokenizer.split(around.suffix))
        roles.append(message["role"])
    if generation:
        append(*tokenizer.split(template.generation(roles)))
    return tokenizer.encode_run(parts)


def compare(path: Path, shape: Shape, scheme: str) -> list[str]:
    """All conversations, with and without a prompt for an answer. What was refused, of what
    transformers renders."""
    tokenizer, template, oracle = opened(path, shape, scheme)
    refused: list[str] = []
    for initials, generation in itertools.product(CONVERSATIONS, (True, False)):
        messages = conversation(initials)
        if generation == initials.endswith("a") or (not generation and shape.last_apart):
            continue
        try:
            expected = oracle.apply_chat_template(
                messages, add_generation_prompt=generation, tokenize=True, return_dict=False
            )
        except Exception:
            with pytest.raises(ModelError):
                written(tokenizer, template, messages, generation)
            continue
        try:
            tokens = written(tokenizer, template, messages, generation)
        except ModelError:
            if all_in_order(oracle.decode(expected), messages):
                refused.append(initials)
            continue
        texts = f"{tokenizer.decode(tokens)!r} for {oracle.decode(expected)!r}"
        assert tokens == expected, f"{initials}, {generation}: {texts}"
    return refused


def all_in_order(text: str, messages: Sequence[dict[str, str]]) -> bool:
    """Whether the text has all contents in it; a template that leaves some out may be refused."""
    for message in messages:
        _, found, text = text.partition(message["content"].strip())
        if not found:
            return False
    return True


@pytest.mark.parametrize("name", SHAPES)
def test_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    spaced = SPACED[list(SHAPES).index(name) % len(SPACED)]
    for scheme in ("bytes", spaced):
        refused = compare(tmp_path, shape, scheme)
        assert set(refused) <= set(shape.refuses), refused


@pytest.mark.parametrize("scheme", SPACED)
@pytest.mark.parametrize("name", ["llama 2", "zephyr", "phi 3", "openchat", "mistral 3", "gemma 2"])
def test_spaces_are_those_of_transformers(tmp_path: Path, name: str, scheme: str) -> None:
    compare(tmp_path, SHAPES[name], scheme)


FOUND = [
    {"lstrip": True},
    {"rstrip": True},
    {"lstrip": True, "rstrip": True, "normalized": True},
    {"normalized": True},
    {"single_word": True},
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("flags", FOUND, ids=" ".join)
def test_markers_are_found_as_transformers_does(
    tmp_path: Path, flags: dict[str, bool], scheme: str
) -> None:
    """Or they are refused: where what is around a marker in a text decides whether it is one."""
    doubtful = "single_word" in flags or ("normalized" in flags and scheme == "prepend")
    for name in ("chatml", "zephyr"):
        refused = compare(tmp_path, SHAPES[name]._replace(flags=flags), scheme)
        assert bool(refused) == doubtful
    if doubtful:
        tokenizer, template, _ = opened(tmp_path, SHAPES["zephyr"]._replace(flags=flags), scheme)
        with pytest.raises(ModelError, match="'</s>', which the tokenizer finds only"):
            written(tokenizer, template, conversation("u"), True)


@pytest.mark.parametrize("name", SHAPES)
def test_contents_are_data(tmp_path: Path, name: str) -> None:
    """Every marker of the template, in a content, stays text."""
    shape = SHAPES[name]
    tokenizer, template, _ = opened(tmp_path, shape, "bytes")
    markers = [text for text in (shape.bos, shape.eos, *shape.special, *shape.plain) if text]
    assert set(tokenizer.special_tokens) >= set(markers)
    assert tokenizer.control_tokens == set(tokenizer.special_tokens.values())
    for text in (*markers, "".join(markers), *(f"a {text}\n" for text in markers)):
        tokens = tokenizer.encode(text)
        assert tokenizer.control_tokens.isdisjoint(tokens)
        assert tokenizer.decode(tokens) == text
        message = [{"role": "user", "content": f"Hi {text} x"}]
        plain = written(tokenizer, template, conversation("u"), True)
        forged = written(tokenizer, template, message, True)
        controls = [[id for id in ids if id in tokenizer.control_tokens] for ids in (plain, forged)]
        assert controls[0] == controls[1]


@pytest.mark.parametrize("name", SHAPES)
def test_the_marker_after_an_answer_ends_it(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    tokenizer, template, oracle = opened(tmp_path, shape, "bytes")
    for later in ("uau", "ua"):
        text: str = oracle.apply_chat_template(conversation(later), tokenize=False)
        after = tokenizer.split(text.partition(CONTENTS[1].strip())[2])
        control = [part for part in after if isinstance(part, int)]
        assert set(control[:1]) <= set(tokenizer.end_tokens)
    assert template.parts(("user",), "assistant")
