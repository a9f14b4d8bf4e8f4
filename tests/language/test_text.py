"""Runs: how text is cut makes no difference to its tokens, and sealing happens once."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from fake_engine import BOS, END, EOS, START, FakeEngine, FakeTemplate, FakeTokenizer, Source
from hypothesis import given
from hypothesis import strategies as st

import asgl
from asgl.errors import StreamError
from asgl.language import PromptStream, Session
from asgl.language.transcript import Run, Transcript

texts = st.text(alphabet="abcé \n", max_size=30)
cuts = st.lists(st.integers(0, 30), max_size=6)


def split(text: str, places: list[int]) -> list[str]:
    inner = sorted(min(place, len(text)) for place in places)
    return [text[start:end] for start, end in itertools.pairwise([0, *inner, len(text)])]


def test_the_tokenizer_of_these_tests_can_tell_runs_apart() -> None:
    encode = FakeTokenizer().encode
    assert encode("abcd") != encode("a") + encode("bcd")


@given(texts, cuts)
def test_random_splits_give_the_tokens_of_one_run(text: str, places: list[int]) -> None:
    run = Run()
    for piece in split(text, places):
        run.append(piece)
    assert run.token_ids(FakeTokenizer(), None) == (FakeTokenizer().encode(text) if text else [])
    assert run.parts == ((text,) if text else ())


@given(st.lists(st.one_of(texts, st.sampled_from([START, END])), max_size=8), cuts)
def test_control_tokens_stand_between_runs(parts: list[str | int], places: list[int]) -> None:
    run, expected, text = Run(), list[int](), ""
    for part in parts:
        if isinstance(part, int):
            expected += [*FakeTokenizer().encode(text), part]
            text = ""
            run.append(part)
        else:
            text += part
            for piece in split(part, places):
                run.append(piece)
    assert run.token_ids(FakeTokenizer(), None) == expected + FakeTokenizer().encode(text)


@given(texts, cuts)
async def test_random_appends_to_a_stream_give_the_tokens_of_one_run(
    text: str, places: list[int]
) -> None:
    s = Session(FakeEngine()).prompt()
    for piece in split(text, places):
        s += piece
        _ = s.text, s.token_ids, s.messages()  # reading never changes what will be tokenized
    whole = Session(FakeEngine()).prompt(text)
    await s.gen("a")
    await whole.gen("a")
    assert s.token_ids == whole.token_ids
    assert s.text == whole.text == text + "ok"


def test_a_run_is_tokenized_once_as_long_as_nothing_is_added() -> None:
    tokenizer, run = FakeTokenizer(), Run()
    run.append("ab")
    assert run.token_ids(tokenizer, None) == run.token_ids(tokenizer, None)
    assert tokenizer.encoded == ["ab"]
    run.append("c")
    assert run.token_ids(tokenizer, None) == tokenizer.encode("abc")


def test_bytes_counts_utf8() -> None:
    run = Run()
    run.append("é")
    run.append(START)
    run.append("ab")
    assert run.size == 4


def test_token_ids_of_keeps_control_tokens() -> None:
    run = Run((START, "ab", END))
    assert run.token_ids(FakeTokenizer(), None) == [START, 1024 + 1, END]


@pytest.mark.parametrize("adds_bos", [False, True])
async def test_a_bos_goes_first_if_the_tokenizer_adds_one(adds_bos: bool) -> None:
    engine = FakeEngine(tokenizer=FakeTokenizer(adds_bos=adds_bos))
    s = Session(engine).prompt("x y")
    assert s.token_ids == [BOS] * adds_bos + [120, 32, 121]
    await s.gen()
    s += "z"
    await s.gen()
    assert engine.prompts[0] == [BOS] * adds_bos + [120, 32, 121]
    assert engine.prompts[1].count(BOS) == adds_bos
    assert "<s>" not in s.text


async def test_an_empty_prompt_begins_with_the_bos_or_fails_at_the_await() -> None:
    engine = FakeEngine()
    s = Session(engine).prompt()
    assert s.token_ids == []
    assert await s.gen("a") == "ok"
    assert engine.prompts == [[BOS]]
    bare = Session(FakeEngine(tokenizer=FakeTokenizer(bos=None))).prompt()
    handle = bare.gen("a")
    with pytest.raises(StreamError, match="the prompt is empty") as caught:
        await handle
    assert caught.value.stream is bare
    bare += "x"
    assert await bare.gen("a") == "ok"


async def test_a_failed_op_leaves_the_run_unsealed() -> None:
    engine = FakeEngine(context_length=3)
    s = Session(engine).prompt("abc")
    mark = s.mark()
    s += "d e f g"
    with pytest.raises(Exception, match="tokens"):
        await s.gen()
    assert s.text == "abcd e f g"
    s.rewind(mark)
    s += "d"
    assert s.token_ids == engine.tokenizer.encode("abc") + engine.tokenizer.encode("d")


async def test_long_runs_are_tokenized_off_the_loop() -> None:
    engine = FakeEngine()
    engine.thread_gate = asyncio.Event()
    s = Session(engine).prompt("a " * 20_000)
    handle = s.gen("a")
    s += "tail"
    await asyncio.sleep(0)
    assert engine.threaded == 1
    assert not engine.requests
    engine.thread_gate.set()
    assert await handle == "ok"
    assert engine.prompts == [engine.tokenizer.encode("a " * 20_000)]
    assert s.text.endswith("oktail")


async def test_a_cancel_while_tokenizing_off_the_loop_undoes_everything() -> None:
    engine = FakeEngine()
    engine.thread_gate = asyncio.Event()
    s = Session(engine).prompt("a " * 20_000)
    handle = s.gen("a")
    await asyncio.sleep(0)
    assert handle.cancel()
    engine.thread_gate.set()
    assert s.text == "a " * 20_000
    assert await s.gen("b") == "ok"
    engine.check()


def test_a_state_rolls_back_to_where_it_was() -> None:
    tokenizer = FakeTokenizer(adds_bos=True)
    state = Transcript(tokenizer)
    state.append("ab")
    point = state.savepoint()
    state.append("cd")
    state.seal()
    state.append_tokens([1, 2], "??", "joined")
    assert state.bos_added
    state.roll_back(point)
    assert (state.text, list(state.tokens), state.run.parts, state.bos_added) == (
        "ab",
        [],
        ("ab",),
        False,
    )


async def test_a_lone_surrogate_is_in_the_text_what_it_is_in_the_tokens() -> None:
    s = Session(FakeEngine()).prompt("a\ud800b")
    s += "\udc80"
    await s.extend("c\udfff")
    assert s.text == "a?b?c?"


# --- tokens, on purpose


async def test_control_tokens_are_appended_by_name() -> None:
    engine = FakeEngine(["ok"])
    s = Session(engine).prompt("ab<eos>")
    s += asgl.token("<|end|>") + "cd" + asgl.gen("x")
    await s.sync()
    assert s.text == "ab<eos><|end|>cdok"
    assert s.token_ids.count(END) == 1
    assert EOS not in s.token_ids
    engine.check()


async def test_tokens_are_appended_by_their_ids() -> None:
    s = Session(FakeEngine()).prompt("ab")
    handle = s.submit(asgl.tokens([END, ord("x")]))
    await handle
    assert (handle.token_ids, handle.text, s.text) == ([END, ord("x")], "<|end|>x", "ab<|end|>x")
    assert s.token_ids[-2:] == [END, ord("x")]


async def test_tokens_that_the_model_does_not_have() -> None:
    s = Session(FakeEngine()).prompt("ab")
    for wrong, match in (
        (asgl.token("<think>"), "no control token '<think>'; those it has: <s>"),
        (asgl.token("ab"), "no control token"),
        (asgl.tokens([97, 2048]), "no token 2048: the model's vocabulary has 2048"),
    ):
        with pytest.raises(asgl.ModelError, match=match):
            await s.submit(wrong)
        assert s.text == "ab"
    for make in (lambda: asgl.token(""), lambda: asgl.tokens([-1]), lambda: asgl.tokens("ab")):  # type: ignore[arg-type]
        with pytest.raises(asgl.ConfigError):
            make()


async def test_tokens_inside_a_message_and_in_a_graph() -> None:
    engine = FakeEngine(["ok"] * 2, template=FakeTemplate())

    @asgl.function
    async def program(s: PromptStream, topic: str) -> str:
        s += asgl.user(topic)
        s += asgl.assistant(asgl.token("<eos>") + asgl.gen("x"))
        s += asgl.token("<s>")
        return await s.get("x")

    source = Source(engine)
    direct = await program(source, "hi")
    graph = program.graph(asgl.arg)
    compiled = await graph(source, "hi")
    assert (direct.text, direct.token_ids) == (compiled.text, compiled.token_ids)
    assert EOS in direct.token_ids
    assert "tokens" in str(graph)
    assert "<s>" in str(graph)
