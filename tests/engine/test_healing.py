"""Token healing: what is taken off a prompt, what may then be generated, and what the text is."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_output import Pieces

import asgl
from asgl.engine.healing import HealedBeginning, Healer
from asgl.engine.output import OutputText
from tiny import CHATML, tiny_directory

PIECES = [
    b"",
    b"a",
    b"b",
    b"ab",
    b"abc",
    b"bc",
    b"c",
    b":",
    b"://",
    b"/",
    b"//",
    b"http",
    b"\xc3",
    b"\xa9",
    b"\xc3\xa9!",
    b"h",
    b"\xff\xff",
    b"\xff",
    b"ca",
]


class Vocabulary:
    vocabulary = len(PIECES)

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES[token_id]


HEALER = Healer(Vocabulary())


def ids(*pieces: bytes) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("prompt", "count", "text"),
    [
        (ids(b"http", b":"), 1, ":"),
        (ids(b"c", b"a", b"b"), 2, "ab"),  # "b" begins "bc", and "ab" begins "abc"
        (ids(b"a", b"b"), 1, "b"),  # never all of them
        (ids(b"c", b"http"), 0, ""),
        (ids(b"a", b"", b":"), 1, ":"),
        (ids(b":", b""), 0, ""),  # a control token
        (ids(b"a", b"\xc3", b"\xa9"), 2, "é"),
        (ids(b":"), 0, ""),
        ([], 0, ""),
    ],
)
def test_what_is_taken_off(prompt: list[int], count: int, text: str) -> None:
    assert HEALER.tail(prompt) == (count, text)


@pytest.mark.parametrize(
    "missing", [b"a", b"ab", b":", b"h", b"\xff", b"\xff\xff", b"zz", b"\xc3\xa9"]
)
def test_what_is_allowed(missing: bytes) -> None:
    expected = {
        token
        for token, piece in enumerate(PIECES)
        if piece and (piece.startswith(missing) or missing.startswith(piece))
    }
    assert set(HEALER.allowed(missing)) == expected


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, len(PIECES) - 1), min_size=1, max_size=8),
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.lists(st.sampled_from(["b", "c:", "ab", "//", "é"]), max_size=2),
    st.booleans(),
)
def test_the_text_of_the_prompt_stays_and_that_of_the_output_begins_after_it(
    prompt, seed, length, stops, keep_stop
) -> None:
    count, text = HEALER.tail(prompt)
    generator = random.Random(seed)
    healing = HealedBeginning(HEALER, text)
    output = OutputText(
        lambda: Pieces(PIECES), stops=stops, keep_stop=keep_stop, given=text, healed=count
    )
    tokens, seen = list[int](), list[str]()
    reason = None
    while reason is None and len(tokens) < length:
        mask = healing.mask(()) if count else None
        allowed = [
            token
            for token in range(1, len(PIECES))
            if mask is None or mask[token // 8] >> token % 8 & 1
        ]
        tokens.append(generator.choice(allowed))
        healing.push(tokens[-1])
        assert healing.free == (healing.mask(()) is None)
        reason = output.push(tokens[-1])
        seen.append(output.text)
    if reason is None:
        output.finish()
    for earlier, later in pairwise([*seen, output.text]):
        assert later.startswith(earlier)
    # the tokens of the stream say what its text says
    kept = b"".join(PIECES[token] for token in tokens[: output.kept_tokens]).decode(
        "utf-8", "replace"
    )
    assert kept + output.remainder == text + output.text
    if reason == "stop":
        whole = b"".join(PIECES[token] for token in tokens).decode("utf-8", "replace")[len(text) :]
        end = min(whole.find(stop) + len(stop) for stop in stops if stop in whole)
        assert output.text == (
            whole[:end] if keep_stop else whole[: end - len(str(output.matched_stop))]
        )


async def test_healing_on_an_engine(tmp_path: Path) -> None:
    model = tiny_directory(tmp_path, chat_template=CHATML)
    async with asgl.Runtime(
        model,
        kernels="reference",
        dtype="float32",
        kv_cache_tokens=3000,
        sampling=asgl.SamplingParams(seed=1, max_tokens=12, ignore_eos=True),
    ) as rt:
        encode = rt.tokenizer.encode
        assert encode("xth") == [*encode("x"), *encode("th")]
        s = rt.prompt("xth")  # "th" begins "the"
        healed = s.gen("x", token_healing=True)
        text = await healed
        assert s.text == "xth" + text
        assert rt.tokenizer.decode(s.token_ids) == s.text
        assert healed.prompt_tokens == 1
        assert s.token_ids[: -len(healed.token_ids)] == encode("x")
        plain = rt.prompt("xth")
        await plain.gen(token_healing=True, max_tokens=0)
        assert (plain.text, plain.token_ids) == ("xth", encode("xth"))
        cut = rt.prompt("xth")
        cut.mark()  # its tokens are sealed
        with pytest.raises(asgl.OutputError):
            await cut.gen(token_healing=True, validate=lambda text: False)
        assert cut.token_ids == encode("xth")


async def test_a_select_scores_the_options_with_the_text_that_was_taken_off(tmp_path: Path) -> None:
    model = tiny_directory(tmp_path, chat_template=CHATML)
    async with asgl.Runtime(
        model, kernels="reference", dtype="float32", kv_cache_tokens=3000
    ) as rt:
        encode = rt.tokenizer.encode
        s = rt.prompt("xth")
        handle = s.select("x", ["e", "en"], token_healing=True)
        await handle
        expected = [await rt.prompt("x").score(text) for text in ("the", "then")]
        for mine, theirs in zip(handle.token_logprobs, expected, strict=True):
            assert mine == pytest.approx([one.logprob for one in theirs], abs=1e-5)
        assert s.text == "xth" + s["x"]
        assert s.token_ids == [*encode("x"), *encode("th" + s["x"])]


def said(rt: asgl.Runtime, s: asgl.PromptStream) -> bytes:
    return b"".join(map(rt.tokenizer.token_bytes, s.token_ids))


async def test_branches_that_healed_what_they_began_with_are_joined_with_all_they_say(
    tmp_path: Path,
) -> None:
    model = tiny_directory(tmp_path, chat_template=CHATML)
    async with asgl.Runtime(
        model,
        kernels="reference",
        dtype="float32",
        kv_cache_tokens=3000,
        sampling=asgl.SamplingParams(seed=4, max_tokens=6, ignore_eos=True),
    ) as rt:
        for text in ("and th", "o", "y ou", "x i"):
            s = rt.prompt(text)
            async with s.fork(4) as branches:
                for branch in branches:
                    branch.gen("x", token_healing=True)
            s.join(branches)
            await s.sync()
            assert s.text == text + "".join(branches.gather("x"))
            beyond = [said(rt, branch)[len(text) :] for branch in branches]
            assert said(rt, s) == text.encode() + b"".join(beyond)


@pytest.mark.model
async def test_an_address_goes_on_as_one_token() -> None:
    async with asgl.Runtime("smollm2-135m", kv_cache_tokens=500) as rt:
        encode = rt.tokenizer.encode
        text = "The address of the page is http:"
        assert len(encode("://")) == 1
        s = rt.prompt(text)
        handle = s.gen(max_tokens=4, temperature=0, token_healing=True)
        assert (await handle).startswith("//")
        assert handle.token_ids[0] == encode("://")[0]
        assert s.text.startswith(text + "//")
        picked = rt.prompt(text).select("x", ["//", " none"], token_healing=True)
        assert await picked == "//"
        assert picked.token_logprobs is not None
        assert len(picked.token_logprobs[0]) == 1
