from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgl.errors import ModelError
from asgl.models.tokenizer import (
    BYTE_ALPHABET,
    Added,
    Spacing,
    Tokenizer,
    byte_fallback_piece,
    byte_level_piece,
    is_marker,
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


@given(ids, st.integers(0, 12), st.booleans())
def test_a_character_cut_between_calls_is_whole_again(
    tokens: list[int], cut: int, control: bool
) -> None:
    """The second decoder goes on where the first one ended, with no more than its last tokens."""
    tokenizer = byte_tokenizer()
    before, after = tokens[:cut], tokens[cut:]
    begun = tokenizer.cut_bytes(before)
    text = tokenizer.decode(before)
    assert text.endswith("\ufffd" if begun else "")
    first = tokenizer.detokenizer()
    whole = "".join(map(first.push, before))
    assert whole + ("\ufffd" if begun else "") == text
    assert first.pending == bool(begun)
    second = tokenizer.detokenizer(begun=begun)
    assert second.pending == first.pending
    pieces = "".join(map(second.push, after))
    assert whole + pieces + second.flush() == tokenizer.decode(tokens)
    shown = tokenizer.detokenizer(control=control)
    assert "".join(map(shown.push, tokens)) + shown.flush() == tokenizer.decode(
        tokens, control=control
    )


def test_cut_bytes() -> None:
    tokenizer = byte_tokenizer()
    smile = list("🙂".encode())
    assert [tokenizer.cut_bytes([65, *smile[:count]]) for count in range(5)] == [
        b"",
        bytes(smile[:1]),
        bytes(smile[:2]),
        bytes(smile[:3]),
        b"",
    ]
    assert tokenizer.cut_bytes([*smile[:2], 300]) == b"", "a control token is no part of it"
    assert tokenizer.cut_bytes([]) == b""


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


def test_what_looks_like_a_marker() -> None:
    markers = ["<|im_end|>", "</s>", "[INST]", "### User:", "<｜User｜>", "<think>"]
    assert all(map(is_marker, markers))
    assert not any(map(is_marker, ["", "!", "user", "   ", "\n\n\n", "two words", "日本語", "->"]))


SPACED_BYTES = [*(bytes([byte]) for byte in range(256)), b"x", b"y", b"z"]


def spaced(spacing: Spacing, **added: Added) -> Tokenizer:
    return Tokenizer(
        lambda text: list(text.encode()),
        SPACED_BYTES,
        {256: "<a>", 257: "<b>", 258: "<a><b>"},
        bos=None,
        adds_bos=False,
        end_tokens=[],
        space_prefix=" ",
        spacing=spacing,
        added={256 + "ab".index(name): how for name, how in added.items()},
    )


def test_where_spaces_go_before_a_text() -> None:
    run = ["x", 256, "y", 256, " z"]
    assert spaced(Spacing()).encode_run(run) == [*b" x", 256, *b"y", 256, *b" z"]
    always = spaced(Spacing(after_control=True))
    assert always.encode_run(run) == [*b" x", 256, *b" y", 256, *b" z"]
    doubled = spaced(Spacing(after_control=True, doubled=True))
    assert doubled.encode_run(run) == [*b" x", 256, *b" y", 256, *b"  z"]
    for tokenizer in (always, doubled):
        assert tokenizer.encode_run(["y"], after=256) == [*b" y"]
        assert tokenizer.encode_run(["y"], after=120) == [*b"y"], "in the middle of a text"
        assert tokenizer.encode("y") == [*b"y"]


def test_white_space_that_belongs_to_markers() -> None:
    tokenizer = spaced(Spacing(doubled=True), a=Added(lstrip=True), b=Added(rstrip=True))
    run: list[int | str] = [" x \n", 256, "\n y \x1c", 257, " \u2003\n z ", 257, " \n "]
    expected = [*b"  x", 256, *b"\n y \x1c", 257, *b"z ", 257]
    assert tokenizer.encode_run(run) == expected
    assert tokenizer.encode_run([" \n"], after=257) == []
    assert tokenizer.encode_run([" y"], after=257) == [*b"y"]


def test_splitting_at_markers() -> None:
    tokenizer = spaced(Spacing(), b=Added(late=True))
    assert tokenizer.split("x<a>y<a><a><b>") == ["x", 256, "y", 256, 258]
    assert tokenizer.split("<a><b><b>") == [258, 257]
    late = spaced(Spacing(), a=Added(late=True), b=Added(late=True))
    assert late.split("<a><b> <a>") == [258, " ", 256]
    assert tokenizer.split("") == []
    doubtful = spaced(Spacing(), a=Added(doubtful="finds only as a word of its own"))
    assert doubtful.split("<b>") == [257]
    with pytest.raises(ModelError, match="'<a>', which the tokenizer finds only as a word"):
        doubtful.split("x <a> y")
