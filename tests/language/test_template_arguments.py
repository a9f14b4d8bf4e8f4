"""Arguments of the chat template: `rt.prompt(template=...)`."""

from __future__ import annotations

from pathlib import Path

import pytest

import asgl
from asgl.testing import ScriptedRuntime
from tiny import tiny_gguf

THINKING = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ 'no thinking: ' }}{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", chat_template=THINKING)


async def answered(s: asgl.PromptStream) -> str:
    s.user("a")
    with s.role("assistant"):
        await s.gen(max_tokens=2, temperature=0)
    return s.text


async def test_a_prompt_and_its_forks_have_them(model: Path, tmp_path: Path) -> None:
    async with asgl.Runtime(model, kernels="reference") as rt:
        assert "no thinking" not in await answered(rt.prompt())
        s = rt.prompt(template={"enable_thinking": False})
        assert "assistant\nno thinking: " in await answered(s)
        async with s.fork(1) as (branch,):
            branch.start_soon(answered)
        assert branch.text.count("no thinking: ") == 2
        await s.save(tmp_path / "saved")
        loaded = rt.load(tmp_path / "saved")
        assert (await answered(loaded)).count("no thinking: ") == 2
        other = rt.load(tmp_path / "saved", template={"enable_thinking": True})
        assert (await answered(other)).count("no thinking: ") == 1


async def test_what_is_refused_is_refused_at_the_call(model: Path, tmp_path: Path) -> None:
    async with asgl.Runtime(model, kernels="reference") as rt:
        with pytest.raises(asgl.ConfigError, match="does not read 'enable_thought'"):
            rt.prompt(template={"enable_thought": False})
        for wrong in ("enable_thinking", {1: 2}):
            with pytest.raises(asgl.ConfigError, match="template must map names"):
                rt.prompt(template=wrong)
    silent = tiny_gguf(tmp_path / "silent.gguf", chat_template=None)
    async with asgl.Runtime(silent, kernels="reference") as rt:
        with pytest.raises(asgl.ModelError, match="has no chat template"):
            rt.prompt(template={"enable_thinking": False})


async def test_a_scripted_runtime_takes_any() -> None:
    async with ScriptedRuntime({None: ["b"]}) as rt:
        assert "b" in await answered(rt.prompt(template={"enable_thinking": False}))
