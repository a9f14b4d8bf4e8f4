from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Original
from tokenizers import decoders, models, normalizers, pre_tokenizers

from asgl.errors import ModelError
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_json import tokenizer_json
from tiny import BOS, IM_END, IM_START, tokenizer_definition, vocabulary

TOKENS, _ = vocabulary()


def written(path: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
    content = tokenizer_definition()
    change(content)
    (path / "tokenizer.json").write_text(json.dumps(content))
    return path / "tokenizer.json"


def opened(
    path: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None, **how: Any
) -> Tokenizer:
    return tokenizer_json(written(path, change), vocabulary=288, **how)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30))
def test_plain_text_is_tokenized_as_the_library_does(tmp_path: Path, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert (
        opened(tmp_path).encode(text) == Original.from_file(str(written(tmp_path))).encode(text).ids
    )


def test_control_tokens_in_text_are_data(tmp_path: Path) -> None:
    tokenizer, original = opened(tmp_path), Original.from_file(str(written(tmp_path)))
    text = f"a{IM_END}b"
    assert TOKENS.index(IM_END) in original.encode(text).ids, "else this test shows nothing"
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_unknown_token_does_not_come_from_text(tmp_path: Path) -> None:
    """Some models name a control token as the unknown one: a character that the vocabulary lacks
    would forge it."""

    def change(content: dict[str, Any]) -> None:
        content["model"]["unk_token"] = IM_END
        content["model"]["vocab"] = {
            token: id for token, id in content["model"]["vocab"].items() if token != "z"
        }
        content["model"]["vocab"][IM_END] = TOKENS.index(IM_END)

    assert Original.from_file(str(written(tmp_path, change))).encode("xzy").ids[1] == TOKENS.index(
        IM_END
    )
    assert opened(tmp_path, change).encode("xzy") == [ord("x"), ord("y")]


def test_added_tokens_that_are_not_special_keep_their_ids(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            if token["content"] == "<|spare2|>":
                token["special"] = False
        content["added_tokens"] = list(reversed(content["added_tokens"]))

    tokenizer = opened(tmp_path, change)
    assert tokenizer.encode("a<|spare2|>b") == [97, TOKENS.index("<|spare2|>"), 98]
    assert "<|spare2|>" not in tokenizer.special_tokens
    assert tokenizer.decode([TOKENS.index("<|spare2|>")], control=False) == "<|spare2|>"


def test_what_the_file_does_to_whole_prompts_is_told_not_done(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["post_processor"] = {
            "type": "Sequence",
            "processors": [
                {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                    "use_regex": True,
                },
                {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": BOS, "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [],
                    "special_tokens": {
                        BOS: {"id": BOS, "ids": [TOKENS.index(BOS)], "tokens": [BOS]}
                    },
                },
            ],
        }
        content["pre_tokenizer"]["add_prefix_space"] = True
        content["truncation"] = {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        }

    tokenizer = opened(tmp_path, change)
    assert tokenizer.encode("abc") == [97, 98, 99]
    assert (tokenizer.bos, tokenizer.adds_bos, tokenizer.space_prefix) == (
        TOKENS.index(BOS),
        True,
        " ",
    )
    assert not opened(tmp_path, change, adds_bos=False).adds_bos
    assert not opened(tmp_path, change, bos=IM_START).adds_bos
    plain = opened(tmp_path)
    assert (plain.bos, plain.adds_bos, plain.space_prefix) == (None, False, "")


def test_end_tokens(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, end_texts=["<|spare1|>", "no such"], end_tokens=[65, 9999])
    expected = {65, TOKENS.index("<|spare1|>"), TOKENS.index(IM_END), TOKENS.index("<|endoftext|>")}
    assert set(tokenizer.end_tokens) == expected


def test_ids_up_to_the_size_of_the_embedding(tmp_path: Path) -> None:
    tokenizer = tokenizer_json(written(tmp_path), vocabulary=300)
    assert tokenizer.vocabulary == 300
    assert tokenizer.token_bytes(299) == b""
    with pytest.raises(ModelError, match="outside the model's vocabulary of 200"):
        tokenizer_json(written(tmp_path), vocabulary=200)
    smaller = tokenizer_json(written(tmp_path), vocabulary=282)
    assert IM_START in smaller.special_tokens
    assert "<|spare5|>" not in smaller.special_tokens, (
        "a control token that the embedding lacks cannot be used"
    )


def test_a_random_dropping_of_merges_is_turned_off(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, lambda content: content["model"].update(dropout=1.0))
    assert tokenizer.encode("the") == [TOKENS.index("the")]


def sentencepiece_like(path: Path, model: Any, metaspace: bool) -> Path:
    """A tokenizer.json as conversions of SentencePiece models have it, of either generation."""
    original = Original(model)
    if metaspace:
        original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        original.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    original.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    original.add_special_tokens(["<unk>", "<s>", "</s>"])
    original.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize("metaspace", [True, False])
@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_sentencepiece_like(tmp_path: Path, kind: str, metaspace: bool) -> None:
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "<", "s", ">", "▁a", "ab", "▁ab"]
    if kind == "BPE":
        model = models.BPE(
            {piece: id for id, piece in enumerate(pieces)},
            [("▁", "a"), ("a", "b"), ("▁a", "b")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    else:
        model = models.Unigram(
            [(piece, -float(id) / 100) for id, piece in enumerate(pieces)],
            unk_id=0,
            byte_fallback=True,
        )
    path = sentencepiece_like(tmp_path, model, metaspace)
    tokenizer, original = tokenizer_json(path, vocabulary=300), Original.from_file(str(path))
    assert tokenizer.space_prefix == " "
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    for text in ("ab ab", "a\nb é", "  a  b", "ab"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        if not text.startswith(" "):
            assert tokenizer.encode(tokenizer.space_prefix + text) == original.encode(text).ids
    assert 1 in original.encode("a<s>").ids
    assert not {0, 1, 2} & set(tokenizer.encode("a<s></s><unk>"))
    assert tokenizer.decode(tokenizer.encode("a<s>")) == "a<s>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.update(model={"type": "WordPiece", "vocab": {}}),
            "the kind 'WordPiece'",
        ),
        (lambda content: content.update(pre_tokenizer=None, decoder=None), "neither a byte-level"),
        (lambda content: content.pop("model"), "KeyError: 'model'"),
        (lambda content: content["model"].update(vocab=[1]), "not a tokenizer.json"),
        (lambda content: content["model"].update(merges=["no such"]), "refused"),
        (lambda content: content["model"].update(merges=5), "not a tokenizer.json"),
        (lambda content: content.update(added_tokens=[{"id": 1}]), "not a tokenizer.json"),
    ],
)
def test_a_file_that_is_wrong(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"tokenizer\.json: .*{message}"):
        opened(tmp_path, change)


PANICS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a merge longer than any token": lambda content: content["model"].update(
        merges=[["a" * 50, "b"]], vocab={"a": 0, "b": 1, "a" * 50: 2}
    ),
    "a prefix longer than any token": lambda content: content["model"].update(
        continuing_subword_prefix="#" * 50
    ),
}


@pytest.mark.parametrize("case", PANICS)
def test_a_panic_of_the_library_is_a_model_error(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: the tokenizer is refused: .*range"):
        opened(tmp_path, PANICS[case])
    capfd.readouterr()  # the library writes of it to stderr, too


def values(old: object) -> st.SearchStrategy[object]:
    strange = st.sampled_from(
        [None, True, -1, 0, 3, 287, 10**20, 1.5, "", "a b", "<|im_end|>", [], {}, [[]], [{}], [""]]
    )
    return strange | st.just([old]) | st.just({"type": old})


@st.composite
def damages(draw: st.DrawFn) -> dict[str, Any]:
    """The definition with up to three values, of any depth, replaced or left out."""
    content = json.loads(json.dumps(tokenizer_definition()))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = content
        for _ in range(draw(st.integers(0, 4))):
            inner = list(place.values() if isinstance(place, dict) else place)
            inner = [value for value in inner if isinstance(value, dict | list) and value]
            if not inner:
                break
            place = draw(st.sampled_from(inner))
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if draw(st.booleans()):
            place[key] = draw(values(place[key]))
        else:
            del place[key]
        if not content:
            break
    return content


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(content=damages())
def test_a_damaged_file_is_a_model_error_or_works(
    tmp_path: Path, content: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    try:
        tokenizer = tokenizer_json(path, vocabulary=288)
        tokens = tokenizer.encode(f"the {IM_END} a\n")
    except ModelError as error:
        told = str(error)
    else:
        told = "tokenizer.json"
        assert tokenizer.control_tokens.isdisjoint(tokens)
        assert all(0 <= token < 288 for token in tokens)
        tokenizer.decode(range(288))
    assert "tokenizer.json" in told
    capfd.readouterr()


def test_nesting_without_end(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ModelError, match="RecursionError"):
        tokenizer_json(path, vocabulary=288)


def test_a_text_that_the_library_refuses(tmp_path: Path) -> None:
    """A Unigram model without an unknown piece, and a character that it lacks."""

    def change(content: dict[str, Any]) -> None:
        content["model"] = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["▁", -2.0]]}
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "split": False}
        content["decoder"], content["added_tokens"] = None, []

    tokenizer = opened(tmp_path, change)
    assert tokenizer.encode("aa") == [0, 0]
    with pytest.raises(ModelError, match=r"tokenizer\.json: the tokenizer is refused"):
        tokenizer.encode("b")


def test_a_file_that_is_missing_or_no_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelError, match="FileNotFoundError"):
        tokenizer_json(path, vocabulary=10)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ModelError, match="UnicodeDecodeError"):
        tokenizer_json(path, vocabulary=10)
