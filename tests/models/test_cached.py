from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from fake_wheel import CONTENT, MODEL, NAME
from huggingface_hub import constants

from asgl.models.cached import _FILE_TYPES, cached_models, describe
from asgl.models.pull import REGISTERED
from tiny import tiny_directory, tiny_gguf


def test_names_of_file_types_are_those_of_ggml() -> None:
    for number, name in _FILE_TYPES.items():
        known = gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        assert known.removesuffix("_MOE") == name


def test_what_files_say(tmp_path: Path) -> None:
    named = tiny_gguf(tmp_path / "a.gguf", metadata={"general.file_type": 15})
    assert describe("a", named)[2:] == (named.stat().st_size, "llama", "GGUF Q4_K_M")
    by_tensors = tiny_gguf(tmp_path / "b.gguf", quantize={"attn_v": "Q8_0", "": "Q4_0"})
    assert describe("b", by_tensors).format == "GGUF Q4_0"
    by_tensors.write_bytes(by_tensors.read_bytes()[:500])
    assert describe("b", by_tensors)[2:] == (500, "?", "damaged")
    directory = tiny_directory(tmp_path / "c")
    assert describe("c", directory)[3:] == ("llama", "safetensors float32")
    (directory / "config.json").write_text("[]")
    assert describe("c", directory)[3:] == ("?", "safetensors damaged")


def test_what_is_in_no_cache_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASGL_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(REGISTERED, NAME, MODEL)
    for folder in ("models--org--begun/blobs", "models--org--empty/refs", "models--odd"):
        (tmp_path / "hub" / folder).mkdir(parents=True)
    (tmp_path / "hub" / "models--org--empty" / "refs" / "main").write_text("0123")
    assert cached_models() == []
    MODEL.path.parent.mkdir(parents=True)
    MODEL.path.write_bytes(CONTENT)
    assert [model.name for model in cached_models()] == [NAME]
