from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asgl.models.fingerprint import fingerprint
from asgl.models.registry import open_checkpoint
from tiny import tiny_directory, tiny_gguf


def known_by(path: Path) -> str:
    checkpoint = open_checkpoint(path)
    found = fingerprint(checkpoint)
    checkpoint.close()
    return found


def test_the_same_model_has_the_same_fingerprint(tmp_path: Path) -> None:
    """Wherever it lies, and in however many files."""
    one = known_by(tiny_directory(tmp_path / "one"))
    assert known_by(tiny_directory(tmp_path / "two", shards=3)) == one
    assert known_by(tiny_gguf(tmp_path / "a.gguf")) == known_by(tiny_gguf(tmp_path / "b.gguf"))


@pytest.mark.parametrize("matrix", ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"])
def test_a_merged_adapter_is_another_model(tmp_path: Path, matrix: str) -> None:
    """Of rank one, on one matrix of one layer, in bfloat16: some weights stay what they were."""
    path = tiny_directory(tmp_path / "tiny", dtype=torch.bfloat16)
    base = known_by(path)
    weights = load_file(path / "model.safetensors")
    name = f"model.layers.1.{matrix}.weight"
    generator = torch.Generator().manual_seed(1)
    rows, columns = weights[name].shape
    up = torch.randn(rows, 1, generator=generator)
    down = torch.randn(1, columns, generator=generator)
    weights[name] = (weights[name].float() + 1e-3 * up @ down).bfloat16()
    save_file(weights, path / "model.safetensors")
    assert known_by(path) != base


@pytest.mark.parametrize("place", [0, 1 << 17, -1])
def test_the_ends_and_the_middle_of_a_large_tensor_count(tmp_path: Path, place: int) -> None:
    """The head has 288 rows of 1,024 elements, of which a part is hashed."""
    path = tiny_directory(
        tmp_path / "tiny",
        hidden_size=1024,
        num_attention_heads=64,
        num_hidden_layers=1,
        tie_word_embeddings=False,
    )
    base = known_by(path)
    weights = load_file(path / "model.safetensors")
    head = weights["lm_head.weight"].view(-1)
    assert head.numel() == 288 * 1024
    changed = head[place : place + 20_000] if place >= 0 else head[-20_000:]
    changed += 0.01
    save_file(weights, path / "model.safetensors")
    assert known_by(path) != base


def test_settings_and_the_tokenizer_count(tmp_path: Path) -> None:
    found = {
        known_by(tiny_directory(tmp_path / str(number), **overrides))
        for number, overrides in enumerate(
            ({}, {"rope_theta": 5e5}, {"rms_norm_eps": 1e-6}, {"max_position_embeddings": 256})
        )
    }
    path = tiny_directory(tmp_path / "other")
    settings = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(settings.replace("spare1|", "another|"))
    assert len(found | {known_by(path)}) == 5
