"""Saved caches and prompts: what one Runtime writes another goes on from, and nothing else is
accepted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import asgl
from asgl.engine.kv_files import read_header, sealed, write_file
from tiny import tiny_directory

PROMPTS = ["the other thing and the other", "the other thing on", "and now something else", "the"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def opened(model: Path, **options: Any) -> AsyncIterator[asgl.Runtime]:
    """A Runtime whose books balance whenever it is left."""
    async with asgl.Runtime(
        model,
        kernels="reference",
        sampling=asgl.SamplingParams(seed=5, max_tokens=6, ignore_eos=True),
        **{"kv_cache_tokens": 1000, "dtype": "float32", **options},
    ) as rt:
        yield rt
        seen = rt.statistics()
        assert seen.free + seen.evictable + seen.pinned == seen.capacity
        assert seen.running == seen.waiting == 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def filled(rt: asgl.Runtime) -> list[str]:
    """Caches some prompts, one in a namespace of its own; what is generated after each."""
    said = [await rt.prompt(text, name="p").gen() for text in PROMPTS]
    return [*said, await rt.prompt(PROMPTS[0], name="p", cache_salt="salt").gen()]


async def test_a_saved_cache_is_a_warm_start_with_the_same_output(
    model: Path, tmp_path: Path
) -> None:
    async with opened(model) as rt:
        said = await filled(rt)
        saved = await rt.save_cache(tmp_path / "cache")
        assert saved == rt.statistics().evictable
    assert names(tmp_path) == ["cache"]
    async with opened(model) as rt:
        assert await rt.load_cache(tmp_path / "cache") == saved
        assert await rt.load_cache(tmp_path / "cache") == 0  # it is there already
        assert rt.statistics().evictable == saved
        assert await filled(rt) == said
        seen = rt.statistics()
        assert seen.prompt_tokens - seen.cached_tokens == len(PROMPTS) + 1  # the last token of each
        assert await rt.prompt(PROMPTS[0], cache_salt="other").extend("") is None
        assert rt.statistics().cached_tokens == seen.cached_tokens


@pytest.mark.parametrize("capacity", [20, 35, 61])
async def test_a_smaller_cache_takes_what_was_used_last(
    model: Path, tmp_path: Path, capacity: int
) -> None:
    async with opened(model) as rt:
        await filled(rt)
        await rt.prompt("used last of all").extend("")
        saved = await rt.save_cache(tmp_path / "cache")
    async with opened(model, kv_cache_tokens=capacity) as rt:
        loaded = await rt.load_cache(tmp_path / "cache")
        assert loaded == rt.statistics().evictable == min(saved, capacity)
        handle = rt.prompt("used last of all").gen(max_tokens=1)
        await handle
        assert handle.cached_tokens == handle.prompt_tokens - 1  # type: ignore[operator]


async def test_loading_evicts_nothing_and_goes_on_beside_requests(
    model: Path, tmp_path: Path
) -> None:
    async with opened(model) as rt:
        said = await filled(rt)
        saved = await rt.save_cache(tmp_path / "cache")
    async with opened(model, kv_cache_tokens=saved + 80) as rt:
        await rt.prompt("what was there before " * 3).extend("")
        running = [rt.prompt(text, name="p").gen() for text in PROMPTS]
        loading = asyncio.ensure_future(rt.load_cache(tmp_path / "cache"))
        assert [await handle for handle in running] == said[: len(PROMPTS)]
        assert 0 <= await loading <= saved
    async with opened(model, kv_cache_tokens=saved + 80) as rt:
        await rt.prompt("what was there before " * 3).extend("")
        loaded = await rt.load_cache(tmp_path / "cache")
        seen = rt.statistics()
        assert (seen.evicted_tokens, seen.free) == (0, max(0, seen.capacity - seen.evictable))
        assert loaded > saved // 2


async def test_loading_takes_no_slot_that_is_reserved_for_who_runs(
    model: Path, tmp_path: Path
) -> None:
    """The file has more tokens than slots are free, and the plan while they are filled needs one of
    them."""
    async with opened(model) as rt:
        for number in range(8):
            await rt.prompt(f"{number} something that is cached " * 2).extend("")
        saved = await rt.save_cache(tmp_path / "cache")
    async with opened(model, kv_cache_tokens=saved) as rt:
        handle = rt.prompt("a").gen(max_tokens=60)
        async for _ in handle:
            break
        loaded = await rt.load_cache(tmp_path / "cache")
        assert not handle.done()
        await handle
        assert 0 < loaded < saved
        assert rt.statistics().retractions == 0


async def test_an_empty_cache(model: Path, tmp_path: Path) -> None:
    async with opened(model) as rt:
        assert await rt.save_cache(tmp_path / "cache") == 0
        assert await rt.load_cache(tmp_path / "cache") == 0


async def test_a_loading_that_is_cancelled_or_fails_frees_its_slots(
    model: Path, tmp_path: Path
) -> None:
    async with opened(model) as rt:
        await filled(rt)
        await rt.save_cache(tmp_path / "cache")
        await rt.flush_cache()
        engine = rt._running.engine  # type: ignore[attr-defined]

        def broken(slots: object, values: object) -> None:
            raise RuntimeError("the device is gone")

        engine.runner.write_kv, working = broken, engine.runner.write_kv
        with pytest.raises(RuntimeError, match="device is gone"):
            await rt.load_cache(tmp_path / "cache")
        engine.runner.write_kv = working
        task = asyncio.ensure_future(rt.load_cache(tmp_path / "cache"))
        while not engine.scheduler.kv_cache.reserved:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        seen = rt.statistics()
        assert seen.free == seen.capacity


async def test_what_is_not_for_this_model_is_refused(
    model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tiny_directory(tmp_path_factory.mktemp("other"), seed=1)
    merged = tiny_directory(tmp_path_factory.mktemp("merged"))
    weights = load_file(merged / "model.safetensors")
    adapted = weights["model.layers.0.self_attn.k_proj.weight"]
    adapted += torch.outer(torch.linspace(-1, 1, 32), torch.linspace(1, -1, 64))
    save_file(weights, merged / "model.safetensors")
    async with opened(model) as rt:
        await filled(rt)
        await rt.save_cache(tmp_path / "cache")
        s = rt.prompt("the prompt")
        await s.save(tmp_path / "prompt", kv=True)
    for another in (other, merged):
        async with opened(another) as rt:
            with pytest.raises(asgl.ModelError, match="saved by the model"):
                await rt.load_cache(tmp_path / "cache")
            with pytest.raises(asgl.ModelError, match="saved by the model"):
                rt.load(tmp_path / "prompt")
    async with opened(model, dtype="bfloat16") as rt:
        with pytest.raises(asgl.ModelError, match="dtype='float32'"):
            await rt.load_cache(tmp_path / "cache")
        with pytest.raises(asgl.ModelError, match="dtype='float32'"):
            rt.load(tmp_path / "prompt")
        assert rt.load(tmp_path / "prompt", kv=False).text == "the prompt"
        with pytest.raises(asgl.ModelError, match="not a saved cache"):
            await rt.load_cache(tmp_path / "prompt")


async def test_damaged_files_are_refused(model: Path, tmp_path: Path) -> None:
    async with opened(model) as rt:
        await filled(rt)
        path, bad = tmp_path / "cache", tmp_path / "bad"
        await rt.save_cache(path)
        header, tensors, whole = read_header(path), load_file(path), path.read_bytes()
        for content in (b"", b"{}", whole[:100], whole[:-10], b"\xff" * 100):
            bad.write_bytes(content)
            with pytest.raises(asgl.ModelError, match="bad"):
                await rt.load_cache(bad)
        nodes = tensors["nodes"]
        for change in (
            {"nodes": nodes.index_fill(1, torch.tensor(0), 7)},
            {"nodes": nodes[:1]},
            {"nodes": nodes * 0},
            {"tokens": tensors["tokens"][:-1]},
            {"kv": tensors["kv"][:, :, :-1].contiguous()},
            {"kv": tensors["kv"].half()},
        ):
            write_file(bad, header, tensors | change)
            with pytest.raises(asgl.ModelError, match="bad"):
                await rt.load_cache(bad)
        with pytest.raises(asgl.ModelError, match="nowhere"):
            await rt.load_cache(tmp_path / "nowhere")
        with pytest.raises(asgl.ConfigError, match="cannot be written"):
            await rt.save_cache(tmp_path / "no folder" / "cache")
        assert names(tmp_path) == ["bad", "cache"]


async def test_one_bit_that_changed_is_seen(model: Path, tmp_path: Path) -> None:
    """In the header of a file, and in each of its tensors."""
    async with opened(model) as rt:
        await filled(rt)
        await rt.save_cache(tmp_path / "cache")
        s = rt.prompt("the prompt")
        await s.save(tmp_path / "prompt", kv=True)
        bad = tmp_path / "bad"
        for name in ("cache", "prompt"):
            whole = (tmp_path / name).read_bytes()
            end = 8 + int.from_bytes(whole[:8], "little")
            for at in (whole.index(b"fingerprint") + 20, end, (end + len(whole)) // 2, -1):
                content = bytearray(whole)
                content[at] ^= 1
                bad.write_bytes(content)
                with pytest.raises((asgl.ModelError, asgl.OpCancelledError)) as raised:
                    if name == "cache":
                        await rt.load_cache(bad)
                    else:
                        await rt.load(bad).gen(max_tokens=1)
                assert "damaged" in str(raised.value.__cause__) + str(raised.value)
        prompt = load_file(tmp_path / "prompt")
        header = read_header(tmp_path / "prompt")
        save_file(prompt, bad, metadata=sealed({**header, "tensors": {}}))
        with pytest.raises(asgl.OpCancelledError) as cancelled:
            await rt.load(bad).gen(max_tokens=1)
        assert "cannot be read" in str(cancelled.value.__cause__)
        save_file(prompt, bad, metadata={"asgl": json.dumps({**header, "format": 1})})
        with pytest.raises(asgl.ModelError, match="format 2, but 'prompt' of format 1"):
            rt.load(bad)


@pytest.mark.parametrize("kv", [False, True])
async def test_a_saved_prompt_goes_on_as_it_would_have(
    model: Path, tmp_path: Path, kv: bool
) -> None:
    async with opened(model) as rt:
        s = rt.prompt(name="chat")
        s.system("Be good.")
        s.user("Say a thing.")
        s.assistant(asgl.gen("first"))
        s["numbers"] = [1, 2.5, None]
        await s.save(tmp_path / "prompt", kv=kv)
        before = (s.text, s.token_ids, dict(s.variables), s.messages())
        s.user("More.")
        s.assistant(asgl.gen("second"))
        await s.sync()
        after = s.text
    async with opened(model) as rt:
        s = rt.load(tmp_path / "prompt")
        await s.sync()
        assert (s.text, s.token_ids, dict(s.variables), s.messages()) == before
        assert s.name == "chat"
        s.user("More.")
        handle = s.assistant(asgl.gen("second"))
        await handle
        assert s.text == after
        assert (handle.cached_tokens or 0) >= (len(before[1]) if kv else 0)
        if not kv:
            assert handle.cached_tokens == 0


async def test_variables_of_a_prompt_that_is_still_loading_are_waited_for(
    model: Path, tmp_path: Path
) -> None:
    async with opened(model) as rt:
        s = rt.prompt("a text")
        s["x"] = "y"
        await s.save(tmp_path / "prompt", kv=True)
        await rt.flush_cache()
        loaded = rt.load(tmp_path / "prompt")
        with pytest.raises(asgl.VariableError, match="not finished"):
            loaded["x"]
        assert await loaded.get("x") == "y"
        broken = load_file(tmp_path / "prompt")["kv"][:, :, :-1].contiguous().half()
        header = read_header(tmp_path / "prompt")
        write_file(tmp_path / "prompt", header, {"kv": broken})
        failing = rt.load(tmp_path / "prompt")
        with pytest.raises(asgl.OpCancelledError) as caught:
            await failing.gen()
        assert isinstance(caught.value.__cause__, asgl.ModelError)
        assert "keys and values are torch.float16" in str(caught.value.__cause__)
        with pytest.raises(asgl.StreamClosedError, match="could not be read"):
            failing += "more"


async def test_what_cannot_be_saved(model: Path, tmp_path: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("a text")
        s["x"] = object()
        with pytest.raises(asgl.ConfigError, match="'x'"):
            await s.save(tmp_path / "prompt")
        s["x"] = (1, 2)  # would come back as a list
        with pytest.raises(asgl.ConfigError, match="'x'"):
            await s.save(tmp_path / "prompt")
        s["x"] = None
        with s.role("user"):
            s += "hi"
            with pytest.raises(asgl.ConfigError, match="open"):
                await s.save(tmp_path / "prompt")
        await s.save(tmp_path / "prompt")
        state = read_header(tmp_path / "prompt")
        state["state"]["tokens"] = [10**9]
        write_file(tmp_path / "prompt", state, {})
        with pytest.raises(asgl.ModelError, match="vocabulary"):
            rt.load(tmp_path / "prompt")


async def test_text_that_is_no_utf8_is_saved_all_the_same(model: Path, tmp_path: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("a\ud800", name="name\udc80")
        s["v"] = "\udfff é"
        await s.save(tmp_path / "prompt")
        again = rt.load(tmp_path / "prompt")
        assert (again.text, again.name, again["v"]) == ("a?", "name\udc80", "\udfff é")
        assert await again.gen() == await s.gen()
