from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece_model import train

from asgl.errors import ModelError
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_sentencepiece import tokenizer_model

texts = st.one_of(
    st.text(max_size=20),
    st.lists(
        st.sampled_from(["the", " ", "small", "token", "<s>", "</s>", "<tool>", "42", "é", "\n"]),
        max_size=12,
    ).map("".join),
)


@cache
def pair(kind: str, folder: Path) -> tuple[SentencePieceProcessor, Tokenizer]:
    path = folder / f"{kind}.model"
    path.write_bytes(train(kind=kind, user_defined_symbols="<tool>"))
    model = SentencePieceProcessor()
    model.LoadFromFile(str(path))
    return model, tokenizer_model(path, vocabulary=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sentencepiece")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=texts)
def test_a_model_file_tokenizes_as_the_library_does(folder: Path, kind: str, text: str) -> None:
    model, tokenizer = pair(kind, folder)
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    if text:
        assert tokenizer.encode(tokenizer.space_prefix + text) == model.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_tokens.values())


def test_runs_are_composed_without_spaces_between(folder: Path) -> None:
    _, tokenizer = pair("bpe", folder)
    assert tokenizer.decode([*tokenizer.encode("the"), *tokenizer.encode("small")]) == "thesmall"


def test_facts(folder: Path) -> None:
    model, tokenizer = pair("bpe", folder)
    assert tokenizer.space_prefix == " "
    assert (tokenizer.bos, tokenizer.adds_bos, tokenizer.end_tokens) == (
        model.bos_id(),
        True,
        (model.eos_id(),),
    )
    assert tokenizer.vocabulary == 400
    tool = model.piece_to_id("<tool>")
    assert tool in tokenizer.encode("a<tool>b"), "user-defined symbols are text"
    assert "<tool>" not in tokenizer.special_tokens
    path = folder / "plain.model"
    path.write_bytes(train(add_dummy_prefix=False))
    assert tokenizer_model(path, vocabulary=400).space_prefix == ""


def test_files_that_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ModelError, match=r"tokenizer\.model: cannot be read"):
        tokenizer_model(path, vocabulary=400)
    for damaged in (b"junk", train()[:-100], b"\xff" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"tokenizer\.model: SentencePiece refuses"):
            tokenizer_model(path, vocabulary=400)
    path.write_bytes(train())
    with pytest.raises(ModelError, match="but the model's vocabulary is 10"):
        tokenizer_model(path, vocabulary=10)
