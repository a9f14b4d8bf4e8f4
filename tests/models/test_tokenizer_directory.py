"""What the files of a directory say of its tokenizer, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import VOCABULARY, added_token, definition, directory
from transformers import PreTrainedTokenizerFast

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_directory import open_tokenizer

MARKED = "{% for m in messages %}<|u|>{{ m.content }}<|e|>{% endfor %}"
BUILT = "{% for m in messages %}{{ '<|' + m.role[0] + '|>' + m.content }}<|e|>{% endfor %}"


def opened(path: Path, end_tokens: set[int] | None = None) -> tuple[Tokenizer, ChatTemplate | None]:
    return open_tokenizer(path, vocabulary=VOCABULARY, end_tokens=end_tokens or set())


def wrote(path: Path, **files: Any) -> Path:
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


TOKEN = {"content": "<|e|>", "lstrip": False, "special": True}
NAMING: dict[str, dict[str, Any]] = {
    "eos_token": {"tokenizer_config": {"eos_token": "<|e|>"}},
    "eos_token, an object": {"tokenizer_config": {"eos_token": TOKEN}},
    "bos_token": {"tokenizer_config": {"bos_token": "<|e|>"}},
    "pad_token": {"tokenizer_config": {"pad_token": "<|e|>"}},
    "additional special tokens": {"tokenizer_config": {"additional_special_tokens": ["<|e|>"]}},
    "additional objects": {"tokenizer_config": {"additional_special_tokens": [TOKEN]}},
    "extra special tokens": {"tokenizer_config": {"extra_special_tokens": {"end": "<|e|>"}}},
    "added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": {"278": TOKEN}}},
    "special_tokens_map": {"special_tokens_map": {"eos_token": "<|e|>"}},
    "special_tokens_map, a list": {
        "special_tokens_map": {"additional_special_tokens": [TOKEN, "<|u|>"]}
    },
    "the template": {"tokenizer_config": {"chat_template": MARKED}},
    "the template, from parts": {"tokenizer_config": {"chat_template": BUILT}},
}


@pytest.mark.parametrize("case", NAMING)
def test_a_marker_is_a_control_token_whatever_file_says_so(tmp_path: Path, case: str) -> None:
    directory(tmp_path, "bytes", plain=["<|e|>", "<|u|>", "<|word|>"])
    assert not opened(tmp_path)[0].control_tokens, "only the template or a file can tell"
    tokenizer, _ = opened(wrote(tmp_path, **NAMING[case]))
    assert "<|e|>" in tokenizer.special_tokens
    assert "<|word|>" not in tokenizer.special_tokens
    assert tokenizer.control_tokens.isdisjoint(tokenizer.encode("a<|e|>b"))
    assert tokenizer.decode(tokenizer.encode("a<|e|>b")) == "a<|e|>b"
    word = tokenizer.encode("<|word|>")
    assert len(word) == 1
    assert tokenizer.decode(word, control=False) == "<|word|>"


def test_added_tokens_of_other_files(tmp_path: Path) -> None:
    directory(tmp_path, "bytes", config={"chat_template": MARKED})
    wrote(tmp_path, added_tokens={"<|u|>": 300, "<|e|>": 301, "<|word|>": 302})
    tokenizer, _ = opened(tmp_path)
    assert dict(tokenizer.special_tokens) == {"<|u|>": 300, "<|e|>": 301}
    assert tokenizer.encode("a<|word|>") == [97, 302]
    assert 301 in tokenizer.end_tokens


def test_no_file_makes_a_special_token_a_plain_one(tmp_path: Path) -> None:
    directory(tmp_path, "bytes", special=["<|u|>"])
    id = opened(tmp_path)[0].special_tokens["<|u|>"]
    plain = {"content": "<|u|>", "special": False, "rstrip": True}
    wrote(tmp_path, tokenizer_config={"added_tokens_decoder": {str(id): plain}})
    tokenizer, _ = opened(wrote(tmp_path, added_tokens={"<|u|>": id}))
    assert tokenizer.special_tokens["<|u|>"] == id
    assert tokenizer.encode_run([id, " a"]) == [id, 97], "what else the newer file says is taken"


WORDS = ["   ", "\n\n", "<|word|>", "hello", "▁of", "a b", "日本", "ü"]
TEXTS = [
    "a   b\n\nc <|word|> hello hellos a b日本語 ▁of of ü",
    "   <|word|>hello",
    " the of of\n\n\n",
]


@pytest.mark.parametrize(
    "scheme", ["bytes", "bytes, spaced", "first", "always", "prepend", "never"]
)
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("how", ["plain", "strips", "single_word"])
def test_added_words_are_found_as_transformers_does(
    tmp_path: Path, scheme: str, normalized: bool, how: str
) -> None:
    flags = {"normalized": normalized}
    if how == "strips":
        flags |= {"lstrip": True, "rstrip": True}
    elif how == "single_word":
        flags |= {"single_word": True}
    directory(tmp_path, scheme, plain=WORDS, flags=flags, config={"chat_template": MARKED})
    tokenizer, _ = opened(tmp_path)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert set(tokenizer.special_tokens) <= {"<unk>"}
    for text in TEXTS:
        assert tokenizer.encode_run([text]) == oracle.encode(text, add_special_tokens=False)


def test_the_text_of_an_added_word_is_what_the_decoder_makes_of_it(tmp_path: Path) -> None:
    def text(scheme: str) -> str:
        directory(tmp_path, scheme, plain=["▁of", "<|x▁y|>"])
        tokenizer, _ = opened(tmp_path)
        oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        ids = oracle.convert_tokens_to_ids(["▁of", "<|x▁y|>"])
        assert tokenizer.decode(ids) == oracle.decode(ids)
        return tokenizer.decode(ids)

    assert text("first") == " of<|x y|>"
    assert text("bytes") == "▁of<|x▁y|>"


def test_steps_of_the_decoder(tmp_path: Path) -> None:
    content = definition("first")
    more = {"type": "Replace", "pattern": {"String": "~"}, "content": "\n"}
    content["decoder"]["decoders"].insert(1, more)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer, _ = opened(tmp_path)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = oracle.encode("a~the~b")
    assert tokenizer.decode(ids) == oracle.decode(ids) == " a\nthe\nb"
    content["decoder"]["decoders"][1] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="'WordPiece' are not known"):
        opened(tmp_path)


def test_names_of_the_map_reach_the_template(tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ pad_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    special = ["<s>", "</s>", "<pad>"]
    directory(tmp_path, "first", special=special, config={"chat_template": source})
    wrote(tmp_path, special_tokens_map={"bos_token": "<s>", "pad_token": {"content": "<pad>"}})
    tokenizer, template = opened(tmp_path)
    assert template is not None
    assert template.parts((), "user").prefix == "<s><pad>"
    assert tokenizer.bos == tokenizer.special_tokens["<s>"]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": source, "bos_token": "</s>"})
    )
    assert opened(tmp_path)[0].bos == tokenizer.special_tokens["</s>"], "the newer file wins"


def test_end_tokens_of_all_files(tmp_path: Path) -> None:
    directory(
        tmp_path,
        "bytes",
        special=["<|a|>"],
        plain=["<|u|>", "<|e|>"],
        config={"chat_template": MARKED, "eos_token": "<|a|>"},
    )
    tokenizer, _ = opened(tmp_path, {7, 9, VOCABULARY})
    ids = tokenizer.special_tokens
    assert set(tokenizer.end_tokens) == {7, 9, ids["<|a|>"], ids["<|e|>"]}


def test_tokens_that_text_needs_are_no_control_tokens(tmp_path: Path) -> None:
    """Some models pad with "!", or name a token of the vocabulary that is no marker."""
    content = definition("bytes")
    content["added_tokens"] = [added_token(33, "!", True)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    wrote(tmp_path, tokenizer_config={"pad_token": "!", "unk_token": "the", "bos_token": "Ġthe"})
    tokenizer, _ = opened(tmp_path)
    assert not tokenizer.control_tokens
    assert tokenizer.decode(tokenizer.encode("!! the!")) == "!! the!"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": []}, r"tokenizer_config\.json: not a JSON object"),
        ({"special_tokens_map": 1}, r"special_tokens_map\.json: not a JSON object"),
        ({"added_tokens": {"<|u|>": "x"}}, r"added_tokens\.json: the id of '<\|u\|>' is 'x'"),
        ({"added_tokens": {"<|u|>": -1}}, r"added_tokens\.json: the id of '<\|u\|>' is -1"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "is not an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": TOKEN}}}, "for 'x'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"3": {}}}}, "has {} for '3'"),
        ({"tokenizer": {}}, r"tokenizer\.json: .*KeyError: 'model'"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    directory(tmp_path, "bytes")
    with pytest.raises(ModelError, match=message):
        opened(wrote(tmp_path, **files))


def test_a_template_that_does_not_compile_costs_the_roles_only(tmp_path: Path) -> None:
    directory(tmp_path, "bytes", plain=["<|u|>"], config={"chat_template": "{% for <|u|>"})
    tokenizer, template = opened(tmp_path)
    assert tokenizer.encode("a") == [97]
    assert template is not None
    with pytest.raises(ModelError, match="does not compile"):
        template.parts((), "user")
