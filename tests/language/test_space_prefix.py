"""Models of SentencePiece's kind want a space before the first text of a prompt, and nowhere
else."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine
from sentencepiece_model import train

from asgl.language import Session
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_sentencepiece import tokenizer_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(train())
    return tokenizer_model(path, vocabulary=400, adds_bos=True)


def session(tokenizer: Tokenizer) -> Session:
    engine = FakeEngine()
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    return Session(engine)


async def test_the_prompt_is_tokenized_as_the_model_itself_does(tokenizer: Tokenizer) -> None:
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor()
    original.LoadFromSerializedProto(train())
    assert tokenizer.space_prefix == " "
    s = session(tokenizer).prompt("the small model")
    assert s.token_ids == [tokenizer.bos, *original.encode("the small model")]
    assert s.text == "the small model"


async def test_only_the_first_text_gets_the_space(tokenizer: Tokenizer) -> None:
    s = session(tokenizer).prompt("the small")
    s.mark()
    s += "the small"
    s.mark()
    s += "the small"
    encode = tokenizer.encode
    assert s.token_ids == [
        tokenizer.bos,
        *encode(" the small"),
        *encode("the small"),
        *encode("the small"),
    ]
    branch = s.copy()
    branch += "the small"
    await branch.sync()
    assert branch.token_ids[-len(encode("the small")) :] == encode("the small")


async def test_the_same_text_taken_back_and_written_again_keeps_its_space(
    tokenizer: Tokenizer,
) -> None:
    s = session(tokenizer).prompt()
    start = s.mark()
    s += "the small"
    first = s.token_ids
    s.mark()
    s.rewind(start)
    s += "the small"
    await s.sync()
    assert s.token_ids == first


async def test_options_after_nothing_are_the_first_text(tokenizer: Tokenizer) -> None:
    s = session(tokenizer).prompt()
    assert await s.select("x", ["the small"]) == "the small"
    assert s.token_ids == [tokenizer.bos, *tokenizer.encode(" the small")]
    assert s.text == "the small"
