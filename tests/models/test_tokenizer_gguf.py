from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece_model import train

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.registry import open_checkpoint
from asgl.models.tokenizer import Tokenizer
from asgl.models.tokenizer_gguf import chat_template_gguf, tokenizer_gguf
from tiny import IM_END, MERGES, vocabulary

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "smollm2_tokens.json").read_text())
PATH = Path("some.gguf")


def byte_level(**changes: Any) -> Tokenizer:
    tokens, control = vocabulary()
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "merges": MERGES,
        "token_type": [
            3 if token in control or token.startswith("<|spare") else 1 for token in tokens
        ],
        "eos_token_id": tokens.index(IM_END),
        **changes,
    }
    return tokenizer_gguf(
        PATH,
        {"tokenizer.ggml." + key: value for key, value in metadata.items() if value is not None},
    )


@cache
def smollm2() -> Tokenizer:
    return open_checkpoint("smollm2-135m").tokenizer


@pytest.mark.model
def test_tokens_are_those_of_an_independent_implementation() -> None:
    tokenizer = smollm2()
    assert len(FIXTURE["texts"]) >= 300
    different = {
        text: (tokenizer.encode(text), tokens)
        for text, tokens in FIXTURE["texts"]
        if tokenizer.encode(text) != tokens
    }
    assert different == {}


@pytest.mark.model
def test_texts_come_back_but_for_the_bytes_that_the_vocabulary_lacks() -> None:
    tokenizer = smollm2()
    lacking = {
        byte
        for byte in range(256)
        if bytes([byte]) not in {tokenizer.token_bytes(id) for id in range(49152)}
    }
    assert len(lacking) == 21
    for text, _ in FIXTURE["texts"]:
        kept = bytes(byte for byte in text.encode() if byte not in lacking)
        assert tokenizer.decode(tokenizer.encode(text)).encode() == kept
    assert tokenizer.encode("\x04") == []
    assert tokenizer.encode("a\x06b") == [*tokenizer.encode("a"), *tokenizer.encode("b")]


@pytest.mark.model
def test_what_the_model_says_of_itself() -> None:
    tokenizer = smollm2()
    assert (tokenizer.vocabulary, tokenizer.bos, tokenizer.adds_bos, tokenizer.end_tokens) == (
        49152,
        1,
        False,
        (0, 2),
    )
    assert len(tokenizer.special_tokens) == 17
    assert tokenizer.special_tokens["<|im_end|>"] == 2
    assert tokenizer.space_prefix == ""


@pytest.mark.model
@given(
    st.lists(
        st.one_of(
            st.text(max_size=6),
            st.sampled_from(["<|im_end|>", "<|im_start|>", "<", "|>", "<|endoftext|>"]),
        ),
        max_size=6,
    ).map("".join)
)
def test_no_text_of_the_model_is_a_control_token(text: str) -> None:
    tokens = smollm2().encode(text)
    assert not set(tokens) & set(range(17))


@given(st.text(max_size=20))
def test_every_text_comes_back_from_a_whole_alphabet(text: str) -> None:
    tokenizer = byte_level()
    sane = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == sane


WORDS = [
    ("gpt-2", "ab 12345", ["ab", "Ġ12345"]),
    ("smollm", "ab 12345", ["ab", "Ġ", "1", "2", "3", "4", "5"]),
    ("llama-bpe", "ab 12345", ["ab", "Ġ", "123", "45"]),
    ("qwen2", "ab 12345", ["ab", "Ġ", "1", "2", "3", "4", "5"]),
    ("gpt-2", "I'LL x", ["I", "'", "LL", "Ġx"]),
    ("llama-bpe", "I'LL x", ["I", "'LL", "Ġx"]),
    ("gpt-2", "a!b\n\nc", ["a", "!", "b", "Ċ", "Ċ", "c"]),
    ("llama-bpe", "a!\n\nc", ["a", "!ĊĊ", "c"]),
    ("qwen2", "(ab)", ["(ab", ")"]),
    ("gpt-2", "(ab)", ["(", "ab", ")"]),
    ("default", "a+12345", ["a", "+", "123", "45"]),
]


@pytest.mark.parametrize(("pre", "text", "words"), WORDS)
def test_how_a_text_is_cut_into_words(pre: str, text: str, words: list[str]) -> None:
    """Every word of the examples is one token of this vocabulary, and so is every two of them: only
    the cutting decides."""
    alphabet = sorted({character for word in words for character in word} | {"Ġ"})
    merges: list[str] = []
    for word in sorted({*words, text.replace(" ", "Ġ").replace("\n", "Ċ")}, key=len):
        merges += [
            f"{word[:i]} {word[i]}"
            for i in range(1, len(word))
            if f"{word[:i]} {word[i]}" not in merges
        ]
    tokens = list(dict.fromkeys([*alphabet, *(merge.replace(" ", "") for merge in merges)]))
    tokenizer = byte_level(
        pre=pre, tokens=tokens, merges=merges, token_type=[1] * len(tokens), eos_token_id=None
    )
    assert [tokens[id] for id in tokenizer.encode(text)] == words


def test_user_defined_tokens_are_found_in_text_and_control_tokens_are_not() -> None:
    tokens, _ = vocabulary()
    kinds = [3 if token.startswith("<|") and token.endswith("|>") else 1 for token in tokens]
    defined = tokens.index("<|spare0|>")
    kinds[defined] = 4
    tokenizer = byte_level(token_type=kinds)
    assert tokenizer.encode("a<|spare0|>b") == [97, defined, 98]
    assert tokenizer.decode([defined], control=False) == tokens[defined]
    assert tokens.index(IM_END) not in tokenizer.encode(IM_END)


TEMPLATE = (
    "{% for m in messages %}<|spare0|>{{ m.role }}\n{{ m.content }}"
    "{{ '<|spare' ~ (1 if m.role == 'assistant' else 2) ~ '|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|spare0|>assistant\n{% endif %}"
)


def with_defined(template: str | None, defined: list[str], **changes: Any) -> Tokenizer:
    """The tokenizer in which those tokens are user-defined."""
    tokens, _ = vocabulary()
    kinds = [3 if token.startswith("<|") and token.endswith("|>") else 1 for token in tokens]
    for text in defined:
        kinds[tokens.index(text)] = 4
    metadata = {"tokenizer.ggml." + key: value for key, value in changes.items()}
    return tokenizer_gguf(
        PATH,
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.token_type": kinds,
            **metadata,
        },
        None if template is None else ChatTemplate(template),
    )


def test_user_defined_tokens_that_the_template_writes_are_control_tokens() -> None:
    tokens, _ = vocabulary()
    defined = ["<|spare0|>", "<|spare1|>", "<|spare2|>", "<|spare3|>", "the"]
    tokenizer = with_defined(TEMPLATE, defined)
    assert {"<|spare0|>", "<|spare1|>", "<|spare2|>"} <= set(tokenizer.special_tokens)
    assert {"<|spare3|>", "the"}.isdisjoint(tokenizer.special_tokens)
    assert tokenizer.control_tokens.isdisjoint(tokenizer.encode("".join(tokens[256:])))
    assert tokens.index("<|spare1|>") in tokenizer.end_tokens, "it ends an answer"
    assert tokens.index("<|spare2|>") not in tokenizer.end_tokens
    plain = with_defined(None, defined)
    assert tokens.index("<|spare0|>") in plain.encode("<|spare0|>")


def test_tokens_that_the_metadata_names_are_control_tokens() -> None:
    tokens, _ = vocabulary()
    for name in ("bos", "eos", "eot", "eom", "padding", "seperator"):
        id = tokens.index("<|spare0|>")
        tokenizer = with_defined(None, ["<|spare0|>"], **{f"{name}_token_id": id})
        assert id in tokenizer.control_tokens
        assert id not in tokenizer.encode("<|spare0|>")
    assert 33 not in with_defined(None, [], padding_token_id=33).control_tokens, "a plain letter"
    assert tokens.index(IM_END) in with_defined(None, [IM_END]).control_tokens, "known by its text"


def test_the_chat_template_of_the_metadata() -> None:
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}"
        "{{ eos_token }}{% endfor %}",
        "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    template = chat_template_gguf(metadata)
    assert template is not None
    assert template.parts((), "user")[:2] == ("<s>", "</s>")
    assert chat_template_gguf({**metadata, "tokenizer.chat_template": None}) is None
    assert chat_template_gguf({**metadata, "tokenizer.ggml.bos_token_id": 7}) is not None


def test_a_control_token_that_merges_could_make() -> None:
    """ "ab" is a control token: neither merging nor taking a whole word may give it."""
    for pre in ("gpt-2", "llama-bpe"):
        tokenizer = byte_level(
            pre=pre,
            tokens=["a", "b", "ab", "c", "bc"],
            token_type=[1, 1, 3, 1, 1],
            merges=["a b", "b c"],
            eos_token_id=2,
        )
        assert tokenizer.encode("ab") == [0, 1]
        assert tokenizer.encode("abc") == [0, 4]
        assert tokenizer.special_tokens == {"ab": 2}


def test_bos_is_added_by_default_as_the_family_does() -> None:
    assert byte_level(pre="llama-bpe", bos_token_id=278).adds_bos
    assert not byte_level(pre="gpt-2", bos_token_id=278).adds_bos
    assert not byte_level(pre="llama-bpe", bos_token_id=278, add_bos_token=False).adds_bos
    assert byte_level(eot_token_id=5, eom_token_id=6).end_tokens[:2] == (5, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "has no tokenizer"),
        ({"model": "rwkv"}, "the kind 'rwkv'"),
        ({"model": 3}, "tokenizer.ggml.model is 3"),
        ({"pre": "unheard-of"}, "pre-tokenizer 'unheard-of' .* known are .*smollm"),
        ({"tokens": None}, "tokens must list"),
        ({"tokens": [1, 2]}, "tokens must list"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "lists a token twice"),
        ({"token_type": [1]}, "token_type must list 288"),
        ({"merges": None}, "merges must list"),
        ({"merges": ["nothing here"]}, "refused"),
        ({"merges": ["nospace"]}, "refused"),
        ({"eos_token_id": 288}, "eos_token_id is 288, outside"),
        ({"bos_token_id": "x"}, "bos_token_id is 'x'"),
    ],
)
def test_metadata_that_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"some\.gguf: .*{message}"):
        byte_level(**changes)


def sentencepiece_metadata(proto: bytes) -> tuple[SentencePieceProcessor, dict[str, Any]]:
    """What a conversion to GGUF would write for this model."""
    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(proto)
    ids = range(model.vocab_size())
    types = [
        2 if model.is_unknown(id) else 3 if model.is_control(id) else 6 if model.is_byte(id) else 1
        for id in ids
    ]
    metadata = {
        "model": "llama",
        "tokens": [model.id_to_piece(id) for id in ids],
        "scores": [model.get_score(id) for id in ids],
        "token_type": types,
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
    }
    return model, {"tokenizer.ggml." + key: value for key, value in metadata.items()}


@cache
def sentencepiece_pair() -> tuple[SentencePieceProcessor, Tokenizer]:
    model, metadata = sentencepiece_metadata(train())
    return model, tokenizer_gguf(PATH, metadata)


@given(
    st.one_of(
        st.text(max_size=20),
        st.lists(
            st.sampled_from(["the", " ", "small", "token", "<s>", "</s>", "42", "é", "\n"]),
            max_size=12,
        ).map("".join),
    )
)
def test_sentencepiece_pieces_tokenize_as_the_model_they_come_from(text: str) -> None:
    model, tokenizer = sentencepiece_pair()
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    if text:
        assert tokenizer.encode(tokenizer.space_prefix + text) == model.encode(text), (
            "the model itself puts a space before"
        )
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


def test_sentencepiece_facts() -> None:
    model, tokenizer = sentencepiece_pair()
    assert tokenizer.space_prefix == " "
    assert (tokenizer.bos, tokenizer.adds_bos) == (model.bos_id(), True)
    assert tokenizer.end_tokens == (model.eos_id(),)
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.token_bytes(3 + 10) == b"\n"
    assert not set(tokenizer.encode("<s></s><unk>")) & {0, 1, 2}
    _, metadata = sentencepiece_metadata(train())
    assert (
        tokenizer_gguf(PATH, metadata | {"tokenizer.ggml.add_space_prefix": False}).space_prefix
        == ""
    )


def test_a_space_goes_before_each_text_after_a_control_token() -> None:
    """As llama.cpp does it (`llama_vocab::impl::tokenize`, `is_prev_special`): always one."""
    _, tokenizer = sentencepiece_pair()
    ids = tokenizer.encode_run([1, "the", 2, " a", 2])
    assert ids == [1, *tokenizer.encode(" the"), 2, *tokenizer.encode("  a"), 2]
    assert tokenizer.encode_run(["the"], after=tokenizer.encode("x")[-1]) == tokenizer.encode("the")


def test_sentencepiece_pieces_that_are_wrong() -> None:
    _, metadata = sentencepiece_metadata(train())
    with pytest.raises(ModelError, match="SentencePiece refuses"):
        tokenizer_gguf(
            PATH,
            metadata | {"tokenizer.ggml.token_type": [1] * len(metadata["tokenizer.ggml.tokens"])},
        )
    with pytest.raises(ModelError, match="scores must list"):
        tokenizer_gguf(PATH, metadata | {"tokenizer.ggml.scores": [0.0]})


def test_several_unknown_pieces() -> None:
    """Phi-3's files call unused tokens unknown, and the unknown one a control token."""
    model, metadata = sentencepiece_metadata(train())
    types = list(metadata["tokenizer.ggml.token_type"])
    unknown, last = types.index(2), len(types) - 1
    types[unknown], types[last] = 3, 2
    named = {"tokenizer.ggml.token_type": types, "tokenizer.ggml.unknown_token_id": unknown}
    tokenizer = tokenizer_gguf(PATH, metadata | named)
    assert {unknown, last} <= tokenizer.control_tokens
    assert tokenizer.encode_run(["the other"]) == model.encode("the other")


def spaced(**changes: Any) -> Tokenizer:
    """Of Gemma 4's kind: characters, a few merges, the bytes."""
    tokens = [
        "<bos>",
        "<eos>",
        "<turn|>",
        "</s>",
        "\u2581",
        "\n",
        "\n\n",
        "a",
        "b",
        "ab",
        "\u2581ab",
    ]
    types = [3, 3, 4, 1, 1, 1, 1, 1, 1, 1, 1] + [6] * 256
    metadata: dict[str, Any] = {
        "model": "gemma4",
        "tokens": tokens + [f"<0x{byte:02X}>" for byte in range(256)],
        "token_type": types,
        "merges": ["\n \n", "a b", "\u2581 ab"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    return tokenizer_gguf(PATH, {"tokenizer.ggml." + key: value for key, value in metadata.items()})


def test_bpe_over_characters_with_marks_for_spaces() -> None:
    tokenizer = spaced()
    assert tokenizer.adds_bos
    assert tokenizer.encode("ab ab\n\n\nab") == [9, 10, 6, 5, 9]
    assert tokenizer.encode("\u00e9") == [11 + 0xC3, 11 + 0xA9]
    assert tokenizer.decode(tokenizer.encode(" ab \n é")) == " ab \n é"
    assert tokenizer.end_tokens == (1, 2)
    assert 3 not in tokenizer.control_tokens, "a tag of HTML is data there"


def test_the_end_of_a_message_is_not_the_end_of_an_answer() -> None:
    """Of gpt-oss: its answers have several messages."""
    tokens = [*"ab", "ab", "<|end|>", "<|return|>", "<|call|>", "<|start|>"]
    one = {"merges": ["a b"], "eos_token_id": 3}
    harmony = byte_level(tokens=tokens, token_type=[1, 1, 1, 3, 3, 3, 3], **one)
    assert [tokens[id] for id in harmony.end_tokens] == ["<|return|>", "<|call|>"]
    phi = byte_level(tokens=tokens[:4], token_type=[1, 1, 1, 3], **one)
    assert phi.end_tokens == (3,)


STRANGE = st.sampled_from(
    [None, True, -1, 0, 7, 10**20, 1.5, "", "gpt2", "llama", [], [1], ["a"], [[]]]
)
KEYS = (
    "model pre tokens token_type merges scores bos_token_id padding_token_id add_bos_token "
    "add_space_prefix"
)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["gpt2", "llama"]),
    changes=st.dictionaries(
        st.sampled_from(KEYS.split()),
        STRANGE | st.tuples(st.sampled_from(["cut", "swap", "repeat"]), st.integers(0, 20)),
        min_size=1,
        max_size=3,
    ),
)
def test_damaged_metadata_is_a_model_error_or_works(kind: str, changes: dict[str, Any]) -> None:
    tokens, _ = vocabulary()
    metadata: dict[str, Any] = {
        "model": kind,
        "tokens": tokens,
        "token_type": [2, *[1] * (len(tokens) - 1)] if kind == "llama" else [1] * len(tokens),
        "scores": [-float(id) for id in range(len(tokens))],
        "merges": MERGES,
    }
    for key, change in changes.items():
        old = metadata.get(key)
        if not isinstance(change, tuple):
            metadata[key] = change
        elif isinstance(old, list):
            how, at = change
            part = {"cut": [], "swap": old[at : at + 2][::-1], "repeat": old[at : at + 2] * 2}[how]
            metadata[key] = [*old[:at], *part, *old[at + 2 :]]
    try:
        tokenizer = tokenizer_gguf(
            PATH, {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
        )
        tokenizer.encode("the <|bos|> and")
    except ModelError as error:
        told = str(error)
    else:
        told = str(PATH)
    assert str(PATH) in told
