from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece_model import train
from transformers import AddedToken, LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_directory import open_tokenizer
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


MARKED = "{% for m in messages %}<tool>{{ m.content }}<|e|>{% endfor %}"


def added(id: int, text: str, special: bool, **flags: bool) -> dict[int, dict[str, Any]]:
    return {id: {"content": text, "special": special, **flags}}


def test_markers_are_control_tokens(folder: Path) -> None:
    """A user-defined piece, and added tokens, that the template writes or a file names."""
    model, _ = pair("bpe", folder)
    tool, more = model.piece_to_id("<tool>"), added(395, "<|e|>", False) | added(396, "<x>", False)
    template = ChatTemplate(MARKED)
    tokenizer = tokenizer_model(
        folder / "bpe.model", vocabulary=400, added=more, template=template, named=["no such"]
    )
    assert {"<tool>": tool, "<|e|>": 395}.items() <= tokenizer.special_tokens.items()
    assert set(tokenizer.end_tokens) == {model.eos_id(), 395}
    text = "a<tool>b<|e|>c<x> the"
    assert tokenizer.control_tokens.isdisjoint(tokenizer.encode(text))
    assert 396 in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    named = tokenizer_model(folder / "bpe.model", vocabulary=400, named=["<tool>"])
    assert tool in named.control_tokens
    assert tokenizer.encode("the small token") == named.encode("the small token")


@pytest.mark.parametrize("legacy", [False, True])
def test_the_tokens_of_a_directory_are_those_of_transformers(tmp_path: Path, legacy: bool) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train())
    model = SentencePieceProcessor(model_proto=train())
    pieces = {model.id_to_piece(id): id for id in range(model.vocab_size())}
    scores = {piece: model.get_score(id) for piece, id in pieces.items()}
    oracle = LlamaTokenizer(pieces, generate_merges(pieces, scores), legacy=legacy)
    more = added(len(pieces), "<|u|>", True, rstrip=True) | added(len(pieces) + 1, "<|w|>", False)
    config = {"legacy": legacy, "added_tokens_decoder": more}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, _ = open_tokenizer(tmp_path, vocabulary=400, end_tokens=set())
    oracle.add_tokens(AddedToken("<|u|>", rstrip=True, normalized=False, special=True))
    oracle.add_tokens(AddedToken("<|w|>", normalized=False))
    for text in (
        "the small token",
        " the",
        "<s>the<|u|> \n small</s> the</s>the",
        "<|u|><|u|>the 42 é",
        "x<|w|> the",
    ):
        ids = oracle.encode(text, add_special_tokens=False)
        assert tokenizer.encode_run(tokenizer.split(text)) == ids, text


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


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_a_damaged_model_is_a_model_error_or_works(
    tmp_path: Path, changes: list[tuple[int, int]], capfd: pytest.CaptureFixture[str]
) -> None:
    proto = bytearray(train())
    for at, byte in changes:
        proto[at % len(proto)] = byte
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto)
    try:
        tokenizer = tokenizer_model(path, vocabulary=400, named=["<s>", "the"])
    except ModelError as error:
        told = str(error)
    else:
        told = str(path)
        assert tokenizer.control_tokens.isdisjoint(tokenizer.encode("the <s> small"))
    assert str(path) in told
    capfd.readouterr()  # the library writes of it to stderr, too
