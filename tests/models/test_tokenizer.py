from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgl.models.tokenizer import (
    BYTE_ALPHABET,
    Tokenizer,
    byte_fallback_piece,
    byte_level_piece,
    spaced_piece,
)

CONTROL = {300: "<|im_start|>", 301: "<|im_end|>", 302: "<|other|>"}


def byte_tokenizer() -> Tokenizer:
    """Ids 0-255 are bytes, 256 is the euro sign, 257-299 are nothing, 300-302 control tokens."""
    pieces = [*(bytes([byte]) for byte in range(256)), "€".encode(), *[b""] * 43, b"x", b"y", b"z"]
    return Tokenizer(
        lambda text: list(text.encode()), pieces, CONTROL, bos=300, adds_bos=True, end_tokens=[302]
    )


def test_attributes() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.vocabulary == 303
    assert tokenizer.special_tokens == {text: token for token, text in CONTROL.items()}
    assert (tokenizer.bos, tokenizer.adds_bos) == (300, True)
    assert tokenizer.end_tokens == (301, 302), (
        "the declared one, and the one that is known by its text"
    )
    with pytest.raises(TypeError):
        tokenizer.special_tokens["x"] = 1  # type: ignore[index]


def test_decoding_shows_control_tokens_or_leaves_them_out() -> None:
    tokenizer = byte_tokenizer()
    ids = [300, 72, 105, 256, 301]
    assert tokenizer.decode(ids) == "<|im_start|>Hi€<|im_end|>"
    assert tokenizer.decode(ids, control=False) == "Hi€"
    assert [tokenizer.token_bytes(token) for token in ids] == [b"", b"H", b"i", "€".encode(), b""]
    assert tokenizer.token_bytes(280) == b""


def test_a_back_end_that_gives_control_tokens_is_not_believed() -> None:
    tokenizer = Tokenizer(
        lambda text: [300, *text.encode(), 301],
        [b"x"] * 303,
        CONTROL,
        bos=None,
        adds_bos=True,
        end_tokens=[],
    )
    assert tokenizer.encode("a") == [97]
    assert not tokenizer.adds_bos, "there is none to add"


def test_lone_surrogates_do_not_raise() -> None:
    assert byte_tokenizer().encode("a\ud800b") == list(b"a?b")


ids = st.lists(
    st.one_of(st.integers(0, 256), st.sampled_from([0xE2, 0x82, 0xAC, 0xF0, 0x9F, 300, 301])),
    max_size=12,
)


@given(ids, st.booleans())
def test_incremental_decoding_equals_decoding_at_once(tokens: list[int], control: bool) -> None:
    tokenizer = byte_tokenizer()
    detokenizer = tokenizer.detokenizer(control=control)
    pieces = [detokenizer.push(token) for token in tokens]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(tokens, control=control)
    table = [tokenizer.token_bytes(token) for token in tokens]
    assert tokenizer.decode(tokens, control=False) == b"".join(table).decode(errors="replace")


@given(st.text(max_size=8))
def test_no_piece_has_half_a_character(text: str) -> None:
    tokenizer = byte_tokenizer()
    detokenizer = tokenizer.detokenizer()
    content = text.encode("utf-8", "replace")
    shown = ""
    for end, byte in enumerate(content, 1):
        shown += detokenizer.push(byte)
        assert shown == content[:end].decode("utf-8", "ignore"), (
            "all whole characters, and nothing else"
        )
        assert detokenizer.pending == (len(shown.encode()) < end)
    assert detokenizer.flush() == ""


def test_flush_gives_what_is_incomplete_and_begins_anew() -> None:
    detokenizer = byte_tokenizer().detokenizer()
    assert detokenizer.push(0xE2) == ""
    assert detokenizer.push(0x82) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(0xAC) == "\ufffd"
    assert detokenizer.push(65) == "A"
    assert detokenizer.flush() == ""


def test_pieces_of_the_three_kinds() -> None:
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))
    assert byte_level_piece("ĠtheĊ") == b" the\n"
    assert byte_level_piece("Ã©") == "é".encode()
    assert byte_level_piece("日 x") == "日 x".encode(), "outside the alphabet: the text itself"
    assert byte_fallback_piece("<0x0A>") == b"\n"
    assert byte_fallback_piece("<0xZZ>") is None
    assert byte_fallback_piece("<0x0A") is None
    assert spaced_piece("\u2581the\u2581") == b" the "


def test_threads_may_encode_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    from asgl.models.gguf_checkpoint import GgufCheckpoint
    from tiny import tiny_gguf

    tokenizer = GgufCheckpoint(tiny_gguf(tmp_path_factory.mktemp("t") / "tiny.gguf")).tokenizer
    texts = [f"the other {i} you and {i * 7919} or is it é\n" * (i % 5 + 1) for i in range(200)]
    expected = [tokenizer.encode(text) for text in texts]
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(
            text
            for text, tokens in zip(texts, expected, strict=True)
            if tokenizer.encode(text) != tokens
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
