"""Lists of messages as the OpenAI API has them: into a prompt, and out of it."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine, FakeTemplate

import asgl
from asgl.errors import ConfigError
from asgl.language import Session


def session() -> Session:
    return Session(FakeEngine(template=FakeTemplate()))


def asking(*ids: str) -> dict[str, Any]:
    calls = [
        {"id": one, "type": "function", "function": {"name": "add", "arguments": '{"a":  1}'}}
        for one in ids
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answer(to: str, content: str = "2") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": to, "content": content}


USER = {"role": "user", "content": "hi"}


async def test_a_prompt_begins_with_messages_and_gives_them_back() -> None:
    given = [{"role": "system", "content": "Be good."}, USER, {"role": "assistant", "content": ""}]
    s = session().prompt(given)
    assert s.messages() == given
    assert s.text.count("<|start|>") == 3
    t = session().prompt()
    t.system("Be good.")
    t.user("hi")
    t.assistant("")
    assert (s.text, s.token_ids) == (t.text, t.token_ids)


async def test_parts_of_content_are_joined_and_what_is_unset_is_left_out() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    s = session().prompt([{"role": "user", "content": parts, "refusal": None, "tool_calls": []}])
    assert s.messages() == [{"role": "user", "content": "ab"}]


async def test_objects_of_a_client() -> None:
    class Said:
        def model_dump(self, *, exclude_none: bool) -> dict[str, Any]:
            return {"role": "user", "content": "hi"}

    assert session().prompt([Said()]).messages() == [USER]  # type: ignore[list-item]


async def test_calls_and_results() -> None:
    given = [USER, asking("x", "y"), answer("y", '{"error": "no"}'), answer("x"), USER]
    s = session().prompt(given)
    shown = s.messages()
    assert [message["role"] for message in shown] == ["user", "assistant", "tool", "tool", "user"]
    assert [call["id"] for call in shown[1].get("tool_calls", [])] == ["call_0", "call_1"]
    assert [message.get("tool_call_id") for message in shown[2:4]] == ["call_0", "call_1"]
    assert [message["content"] for message in shown[2:4]] == ["2", '{"error": "no"}']
    assert (
        '[{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 1}}]' in s.text
    )
    assert '{"name": "add", "error": "no"}' in s.text
    again = session().prompt(shown)
    assert (again.text, again.messages()) == (s.text, shown)
    s += asgl.messages([asking("x"), answer("x")])
    assert s.messages()[-1].get("tool_call_id") == "call_2"


async def test_what_is_given_back_is_a_copy() -> None:
    s = session().prompt([USER, asking("x"), answer("x")])
    s.messages()[1].get("tool_calls", [])[0]["function"]["name"] = "other"
    assert s.messages()[1].get("tool_calls", [])[0]["function"]["name"] == "add"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"role": "user", "content": "hi"}, "a list of messages"),
        (3, "a list of messages"),
        (["hi"], "message 0 must be a dict"),
        ([USER, {"content": "hi"}], "message 1 needs a role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "must be text"),
        ([{"role": "user", "content": 3}], "must be text, not 3"),
        ([{**USER, "name": "Ann"}], "has name, which no chat template writes"),
        ([answer("x")], "answers the call 'x', and no message before it makes calls"),
        ([USER, asking("x")], "no message answers it"),
        ([USER, asking("x"), answer("y")], "no message answers it"),
        ([USER, asking("x"), answer("x"), answer("z")], "answer others"),
        ([USER, {**asking("x"), "content": "I look."}, answer("x")], "text beside tool_calls"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}], "a call that is none"),
        (
            [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "x", "function": {"name": "a", "arguments": "[1]"}}],
                },
                answer("x"),
            ],
            "a call that is none",
        ),
    ],
)
async def test_what_is_no_list_of_messages(given: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        session().prompt(given)


async def test_tools_are_told_of_in_the_system_message() -> None:
    @asgl.tool
    async def add(a: int) -> int:
        """Adds one."""
        return a + 1

    system = {"role": "system", "content": "Be good."}
    s = session().prompt()
    s += asgl.messages([system, USER], tools=[add])
    assert "Adds one." in s.text
    with pytest.raises(ConfigError, match="begin the list with one"):
        asgl.messages([USER], tools=[add])


async def test_calls_come_after_a_message() -> None:
    s = session().prompt([asking("x"), answer("x")])
    with pytest.raises(asgl.StreamError, match="after a message that asks"):
        await s.sync()


async def test_calls_stand_between_messages_and_in_no_graph() -> None:
    s = session().prompt([USER])
    with s.role("assistant"), pytest.raises(ConfigError, match="inside a 'assistant' message"):
        s += asgl.messages([asking("x"), answer("x")])

    @asgl.function
    async def program(s: asgl.PromptStream) -> None:
        s += asgl.messages([USER, asking("x"), answer("x")])

    with pytest.raises(asgl.CompileError, match="no place in a graph"):
        program.graph()
