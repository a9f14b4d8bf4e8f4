"""What notebooks show of streams and handles: text by where it comes from, none of it as markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

import asgl
from asgl.testing import ScriptedRuntime


class Shown(HTMLParser):
    """The texts of a piece of HTML with the colours that they have; no script, nothing loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.spans: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert tag in ("div", "span", "b", "small", "table", "tr", "th", "td")
        assert {name for name, _ in attributes} <= {"style", "title", "scope"}
        self._open.append(dict(attributes).get("style", ""))

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        self.text += data
        color = re.search(r"background: ([^;]+)", self._open[-1] if self._open else "")
        if color:
            self.spans.append((data, color[1]))


def parts_of(s: asgl.PromptStream) -> list[tuple[str, str]]:
    parts = s._queue.origins
    assert "".join(text for text, _ in parts) == s.text
    return [tuple(part) for part in parts]


async def test_a_stream_shows_where_its_text_comes_from() -> None:
    script = {"x": " a word", "y": ["no", "yes"], "n": 17}
    async with ScriptedRuntime(script) as rt:
        s = rt.prompt("Say: ")
        await s.gen("x")
        s += " and"
        await s.gen("n", dtype=int)
        s += "? "
        await s.select("y", ["no", "yes"])
        expected = [
            ("Say: ", "given"),
            (" a word", "sampled"),
            (" and", "given"),
            ("17", "constrained"),
            ("? ", "given"),
            ("no", "selected"),
        ]
        assert parts_of(s) == expected
        mark = s.mark()
        s += " more"
        await s.sync()
        assert parts_of(s) == [*expected, (" more", "given")]
        s.rewind(mark)
        async with s.fork(1) as (branch,):
            branch += "!"
            await branch.sync()
            assert parts_of(branch) == [*expected, ("!", "given")]
        s.join([branch])
        await s.select("y", ["no", "yes"])
        assert parts_of(s)[-2:] == [("!", "joined"), ("yes", "selected")]
        shown = Shown(s._repr_html_())
        assert "variables" in shown.text
        assert "17" in shown.text
        assert len({color for _, color in shown.spans}) == 5


async def test_what_fails_leaves_the_parts_as_they_were() -> None:
    async with ScriptedRuntime({"x": ["a", ValueError("no")]}) as rt:
        s = rt.prompt("Say: ")
        await s.gen("x")
        s += " then"
        before = parts_of(s)
        failing = s.gen("x")
        with pytest.raises(ValueError, match="no"):
            await failing
        assert parts_of(s) == before
        assert "ValueError" in Shown(failing._repr_html_()).text


async def test_a_stream_with_roles_shows_its_messages() -> None:
    async with ScriptedRuntime({"x": "Hi."}) as rt:
        s = rt.prompt()
        s.user("Hello <b>you</b>")
        s.assistant(asgl.gen("x"))
        await s.sync()
        shown = Shown(s._repr_html_())
        assert "messages" in shown.text
        assert "Hello <b>you</b>" in shown.text
        parts_of(s)


async def test_a_handle_shows_its_tokens_with_their_probabilities() -> None:
    async with ScriptedRuntime({"x": " a <word>", None: "b"}) as rt:
        s = rt.prompt("Say: ")
        running = s.gen("x", logprobs=1)
        assert "running" in Shown(running._repr_html_()).text
        await running
        html = running._repr_html_()
        shown = Shown(html)
        assert "".join(text for text, _ in shown.spans).startswith(" a <word>")
        assert html.count('title="100.0 %"') >= 2
        assert "cached" in shown.text
        assert "finished by" in shown.text
        await s.sync()
        message = s.assistant(asgl.gen())
        await message
        assert "b" in Shown(message._repr_html_()).text


async def test_a_finished_program_shows_itself() -> None:
    @asgl.function
    async def say(s, x):
        await s.gen("x")

    async with ScriptedRuntime({"x": "a"}) as rt:
        done = await say(rt, "b")
        assert "the stream 'say'" in Shown(done._repr_html_()).text
