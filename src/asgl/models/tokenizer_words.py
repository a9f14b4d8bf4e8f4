"""How byte-level BPE of GGUF files cuts a text into words before it merges: `tokenizer.ggml.pre`
names a way, and this table says what the names mean. They are llama.cpp's; the expressions are
those of the models' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Words(NamedTuple):
    """expressions: each cuts further what the ones before it left. whole_first: a word that is a
    token is taken whole, without merging. adds_bos: unless the file says otherwise."""

    expressions: tuple[str, ...]
    whole_first: bool = False
    adds_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    rf"|{_SPACES}"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = (
    rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _by_case(suffix: str, digits: str) -> str:
    """Words that begin with capitals, and end before the next ones."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{_UPPER}*{_LOWER}+{suffix}|{before}{_UPPER}+{_LOWER}*{suffix}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_ASCII_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)


def _named(names: str, words: Words) -> dict[str, Words]:
    return dict.fromkeys(names.split(), words)


WORDS: Mapping[str, Words] = {
    **_named(
        "gpt-2 phi-2 mpt olmo jina-es jina-de modern-bert exaone4 mellum trillion granite-docling",
        Words((_GPT2,)),
    ),
    **_named(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        Words((r"\p{N}", _GPT2)),
    ),
    **_named("llama-bpe llama3 llama-v3 pixtral lfm2", Words((_LLAMA3,), True, True)),
    **_named("falcon3 falcon-h1 glm4 glm5", Words((_LLAMA3,), whole_first=True)),
    **_named("smaug-bpe dbrx chatglm-bpe", Words((_LLAMA3,))),
    **_named(
        "qwen2 stablelm2 deepseek-r1-qwen megrez hunyuan solar-open grok-2 kormo f2llmv2",
        Words((_QWEN2,)),
    ),
    "qwen35": Words((_QWEN35,)),
    **_named(
        "gpt-4o llama4 kanana2 minimax-m2", Words((_by_case(_CASELESS + "?", r"\p{N}{1,3}"),))
    ),
    "tekken": Words((_by_case("", r"\p{N}"),), whole_first=True, adds_bos=True),
    **_named("deepseek-v3 hunyuan-dense", Words(_DEEPSEEK3)),
    "deepseek-coder": Words(_DEEPSEEK_CODER),
    "falcon": Words((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
