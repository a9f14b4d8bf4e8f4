"""A character whose bytes come in several ops is whole in the end: text is what the tokens say."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine, FakeTemplate

from asgl.language import PromptStream, Session

EMOJI = "\N{GRINNING FACE}"


def start(**options) -> PromptStream:
    """A model that says an emoji, one byte a token, wherever it is asked."""
    said = "ok " + EMOJI + "!"

    def answer(prompt: str) -> str:
        return said

    class Resumes(FakeEngine):
        def _answer(self, prompt: str) -> str:
            return said

        def generate(self, prompt, params, **rest):
            ticket = super().generate(prompt, params, **rest)
            done = len(prompt) - self.base
            left = self.active.get(ticket)
            if isinstance(left, list):
                del left[:done]
            return ticket

    engine = Resumes(answer, **options)
    s = Session(engine).prompt("a")
    engine.base = 1
    return s


async def test_pieces_of_a_character_in_ops_of_their_own() -> None:
    s = start()
    values = [await s.gen(max_tokens=1) for _ in range(7)]
    assert s.text == "aok " + EMOJI + "!"
    assert values == ["ok", " ", "�", "�", "�", EMOJI, "!"]
    one = start()
    await one.gen()
    assert one.token_ids == s.token_ids
    assert one.text == s.text


async def test_over_fork_and_join() -> None:
    s = start()
    await s.gen(max_tokens=4)
    assert s.text == "aok �"
    async with s.fork(1) as branches:
        branches[0].gen()
    assert branches[0].text == "aok " + EMOJI + "!"
    s.join(branches)
    await s.sync()
    assert s.text == "aok " + EMOJI + "!"


async def test_a_cut_character_stays_what_it_is_where_something_else_follows() -> None:
    s = start()
    await s.gen(max_tokens=4)
    s += "x"
    await s.extend("")
    assert s.text == "aok �x"


@pytest.mark.parametrize("tokens", [1, 3])
async def test_in_a_message(tokens: int) -> None:
    engine = FakeEngine(["ok", "no"], template=FakeTemplate())
    s = Session(engine).prompt()
    s.user("hi")
    with s.role("assistant"):
        s.gen(max_tokens=tokens)
    await s.sync()
    assert s.messages()[-1]["content"] in s.text
