"""Vocabularies of real models: the ids that llama.cpp, SentencePiece and tekken expect."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import regex
from fetched import LLAMA_CPP, MISTRAL_COMMON, unpacked
from sentencepiece import SentencePieceProcessor

from asgl.errors import ModelError
from asgl.models.gguf import GgufFile
from asgl.models.tokenizer import BYTE_ALPHABET
from asgl.models.tokenizer_gguf import chat_template_gguf, tokenizer_gguf
from asgl.models.tokenizer_sentencepiece import tokenizer_model
from asgl.models.tokenizer_words import WORDS

SEPARATOR = "\n__ggml_vocab_test__\n"
NAMES = [
    "command-r", "deepseek-coder", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt",
    "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
REFUSED = {"bert-bge": "of the kind 'bert' are not known", "deepseek-llm": "'deepseek-llm'"}
TEXTS = [
    "Hello world, how's it going?  It's 12345 o'clock.",
    "  leading and trailing  ",
    "\n\n\ttabs\r\nand lines\n",
    "Straße, naïve façade; ÉCOLE élève, HTTPServer parseJSONNow",
    "日本語のテキスト、中文文本 と 한국어",
    "🙂🤖 \U0001f468‍\U0001f469‍\U0001f467 e\u0301",
    "def f(x): return {'a': [1, 2.5, -3e10]} # 100%",
    "</s><s>[INST] data [/INST] <|im_end|>",
    "",
    " ",
]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with unpacked(LLAMA_CPP, "models", tmp_path_factory.mktemp("sources")) as folder:
        yield folder


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with unpacked(MISTRAL_COMMON, "data", tmp_path_factory.mktemp("mistral")) as folder:
        yield folder


def test_all_vocabularies_are_named_here(vocabularies: Path) -> None:
    files = vocabularies.glob("*.gguf.inp")
    assert {file.name.removeprefix("ggml-vocab-").split(".")[0] for file in files} == {
        *NAMES,
        *REFUSED,
    }


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_sample_texts(vocabularies: Path, name: str) -> None:
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    file = GgufFile(path)
    tokenizer = tokenizer_gguf(path, file.metadata, chat_template_gguf(file.metadata))
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode_run([text])
        assert ids == [int(id) for id in line.split()], text
        assert tokenizer.decode(ids).removeprefix(tokenizer.space_prefix) == text


@pytest.mark.parametrize("name", REFUSED)
def test_a_way_of_cutting_that_is_not_known_is_refused(vocabularies: Path, name: str) -> None:
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    with pytest.raises(ModelError, match=REFUSED[name]):
        tokenizer_gguf(path, GgufFile(path).metadata)


@pytest.mark.parametrize("version", ["v1", "240216.model.v2", "240323.model.v3", "241114.model.v7"])
def test_sentencepiece(mistral: Path, version: str) -> None:
    (path,) = [file for file in mistral.iterdir() if file.name.endswith(version)]
    library = SentencePieceProcessor(model_file=str(path))
    tokenizer = tokenizer_model(path, vocabulary=library.vocab_size())
    markers = [id for id in range(library.vocab_size()) if library.is_control(id)]
    for text in TEXTS:
        if text.startswith(" "):  # before these transformers puts no space, and the library does
            continue
        expected = library.encode(text)
        assert not set(markers) & set(expected), "the library takes text as data"
        assert tokenizer.encode_run([text]) == expected, text


@pytest.mark.parametrize("name", ["tekken_240718", "tekken_240911"])
def test_tekken(mistral: Path, name: str) -> None:
    """A GGUF file of tekken's vocabulary, against its definition: in each word the pair of the
    lowest rank is joined, again and again."""
    content = json.loads((mistral / f"{name}.json").read_text())
    config = content["config"]
    special = config["default_num_special_tokens"]
    size = 20_000
    ranks = {base64.b64decode(one["token_bytes"]): one["rank"] for one in content["vocab"][:size]}
    assert WORDS["tekken"].expressions == (config["pattern"],)
    by_byte = {byte: character for character, byte in BYTE_ALPHABET.items()}

    def written(token: bytes) -> str:
        return "".join(by_byte[byte] for byte in token)

    merges = [
        " ".join(map(written, joined(token, ranks, rank)))
        for token, rank in ranks.items()
        if len(token) > 1
    ]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.tokens": [f"<SPECIAL_{i}>" for i in range(special)]
        + [written(token) for token in ranks],
        "tokenizer.ggml.token_type": [3] * special + [1] * len(ranks),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = tokenizer_gguf(Path("tekken.gguf"), metadata)
    assert tokenizer.adds_bos
    for text in TEXTS:
        expected = [
            ranks[token] + special
            for word in regex.findall(config["pattern"], text)
            for token in joined(word.encode(), ranks, size)
        ]
        assert tokenizer.encode(text) == expected, text


def joined(word: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in word]
    if len(parts) > 1 and ranks.get(word, below) < below:
        return [word]
    while True:
        pairs = [a + b for a, b in itertools.pairwise(parts)]
        best = min(pairs, key=lambda pair: ranks.get(pair, below), default=b"")
        if ranks.get(best, below) >= below:
            return parts
        at = pairs.index(best)
        parts[at : at + 2] = [best]
