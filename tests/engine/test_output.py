"""Where a generation ends, whatever tokens its text comes in."""

from __future__ import annotations

import codecs
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from asgl.engine.output import OutputText
from asgl.engine.stop_regex import WINDOW, compiled
from asgl.errors import ConfigError, GrammarError
from asgl.sampling import SamplingParams


class Pieces:
    """A detokenizer over a list of byte strings: token t is piece t."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._pieces[token_id])

    @property
    def pending(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def run(pieces: list[bytes], **options):
    """Pushes the pieces until the output ends; the output, the reason, and the text after each
    push."""
    output = OutputText(lambda: Pieces(pieces), **options)
    seen: list[str] = []
    for token in range(len(pieces)):
        reason = output.push(token)
        seen.append(output.text)
        if reason is not None:
            return output, reason, seen
    output.finish()
    return output, None, seen


def cut(text: str, sizes: list[int]) -> list[bytes]:
    data, pieces = text.encode(), []
    for size in sizes:
        if data:
            pieces.append(data[:size])
            data = data[size:]
    return [*pieces, data] if data else pieces


TEXT = st.text(alphabet="ab\n é漢😀", max_size=30)
SIZES = st.lists(st.integers(1, 4), max_size=60)
STOPS = st.lists(st.text(alphabet="ab\n é漢", min_size=1, max_size=3), max_size=3)


REGEXES = [
    "a+",
    "b\\n",
    "[ab]{2,}é",
    "(?:ab|ba)+\\s",
    "(?<=b)a",
    "a(?!b)",
    "漢?\\n",
    "b$",
    "(a)b*\\1",
    "\\bé",
    "aba|b b",
    "\\s+é",
]


def first_match(text, stops, regexes):
    """Where the match begins and ends that is complete first, by looking at every prefix of the
    whole text."""
    for end in range(1, len(text) + 1):
        prefix = text[:end]
        found = [at for stop in stops if (at := prefix.find(stop)) >= 0]
        found += [match.start() for pattern in regexes if (match := regex.search(pattern, prefix))]
        if found:
            return min(found), end
    return None


@settings(max_examples=1000)
@given(TEXT, SIZES, STOPS, st.lists(st.sampled_from(REGEXES), max_size=2), st.booleans())
def test_the_first_match_ends_the_text_however_it_is_cut_to_tokens(
    text, sizes, stops, regexes, keep_stop
):
    pieces = cut(text, sizes)
    output, reason, seen = run(pieces, stops=stops, stop_regexes=regexes, keep_stop=keep_stop)
    match, expected = first_match(text, stops, regexes), text
    if match is not None:
        expected = text[: match[1] if keep_stop else match[0]]
        assert output.matched_stop == text[slice(*match)]
    assert output.text == expected
    assert (reason == "stop") == (match is not None)
    for earlier, later in pairwise([*seen, output.text]):
        assert later.startswith(earlier)
    kept = b"".join(pieces[: output.kept_tokens]).decode("utf-8", "replace")
    assert kept + output.remainder == output.text


def test_what_may_begin_a_match_is_held_back_up_to_the_window():
    _, _, seen = run([b"x", b"a", b"b", b"q"], stop_regexes=["ab+c"])
    assert seen == ["x", "x", "x", "xabq"]
    _, _, seen = run([b"a" * 100] * 20, stop_regexes=["a+b"])
    assert [len(text) for text in seen] == [max(0, 100 * count - WINDOW) for count in range(1, 21)]


def test_an_expression_that_takes_too_long_ends_the_generation_with_an_error():
    output = OutputText(lambda: Pieces([b"a" * 60, b"!"]), stop_regexes=["(?:(?:a|a)+)+$b"])
    while output.error is None:
        assert output.push(0 if not output.count else 1) in (None, "stopped")
        assert output.count < 3
    assert isinstance(output.error, GrammarError)


@pytest.mark.parametrize("pattern", ["(", "a*", ""])
def test_bad_expressions(pattern):
    with pytest.raises(ConfigError, match="stop_regex"):
        SamplingParams(stop_regex=pattern)
        compiled(pattern)


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "kept", "remainder"),
    [
        ([b"The", b" cat", b".\nQ:"], ["\n"], "The cat.", 2, "."),
        ([b"ab", b"cd"], ["bc"], "a", 0, "a"),
        ([b"ab", b"cd"], ["cd"], "ab", 1, ""),
        ([b"\xe6", b"\xbc", b"\xa2", b"x"], ["x"], "漢", 3, ""),
        ([b"a", b"\xe6", b"\xbc\xa2x"], ["漢"], "a", 1, ""),
        ([b"stop"], ["stop"], "", 0, ""),
    ],
)
def test_where_a_stop_cuts(pieces, stops, text, kept, remainder):
    output, reason, _ = run(pieces, stops=stops)
    assert (output.text, output.kept_tokens, output.remainder, reason) == (
        text,
        kept,
        remainder,
        "stop",
    )


def test_what_may_begin_a_stop_is_held_back_and_given_when_it_was_none():
    _, _, seen = run([b"a", b"b", b"c", b"x"], stops=["abcd"])
    assert seen == ["", "", "", "abcx"]
    output, _, seen = run([b"x", b"a", b"b"], stops=["abcd"])
    assert seen == ["x", "x", "x"]
    assert output.text == "xab"


def test_half_a_character_is_never_shown_and_ends_as_a_replacement():
    output, _, seen = run([b"a", b"\xe6\xbc"])
    assert seen == ["a", "a"]
    assert output.text == "a\ufffd"


def test_end_tokens_and_stop_tokens():
    output, reason, _ = run([b"a", b"b", b"c"], end_tokens=[1])
    assert (output.text, output.kept_tokens, reason, output.matched_stop) == ("a", 1, "eos", None)
    output, reason, _ = run([b"a", b"b", b"c"], stop_tokens=[1])
    assert (output.text, output.kept_tokens, reason, output.matched_stop) == ("a", 1, "stop", 1)
    output, reason, _ = run([b"a", b"b", b"c"], stop_tokens=[1], keep_stop=True)
    assert (output.text, output.kept_tokens, reason) == ("ab", 2, "stop")


def test_before_min_tokens_nothing_stops():
    output, reason, _ = run([b"x", b"x", b"x", b"x"], stops=["x"], min_tokens=3)
    assert (reason, output.matched_stop, output.count) == ("stop", "x", 3)
