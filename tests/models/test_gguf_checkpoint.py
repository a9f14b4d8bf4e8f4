from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asgl.errors import ModelError
from asgl.kernels.quantized import QuantizedTensor
from asgl.models.gguf import GgufFile
from asgl.models.gguf_checkpoint import GgufCheckpoint
from asgl.models.layout import expected_shapes
from asgl.models.rope import rope_table
from asgl.models.safetensors_checkpoint import SafetensorsCheckpoint
from tiny import tiny_config, tiny_directory, tiny_gguf, tiny_weights, write_gguf


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4, "head_dim": 32},
    ],
)
def test_the_same_model_from_a_gguf_file_and_from_a_directory(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    """The GGUF has q and k in interleaved order: equality shows that this is undone."""
    gguf = GgufCheckpoint(tiny_gguf(tmp_path / "tiny.gguf", **overrides))
    directory = SafetensorsCheckpoint(tiny_directory(tmp_path / "tiny", **overrides))
    assert gguf.name == "tiny"
    assert gguf.config.norm_eps == pytest.approx(directory.config.norm_eps)
    for field in (
        "architecture",
        "layers",
        "heads",
        "kv_heads",
        "head_dim",
        "vocabulary",
        "context_length",
        "tied_head",
        "biases",
        "rope",
    ):
        assert getattr(gguf.config, field) == getattr(directory.config, field)
    for name, shape in expected_shapes(gguf.config).items():
        one, other = gguf.tensor(name), directory.tensor(name)
        assert isinstance(one, torch.Tensor)
        assert tuple(one.shape) == shape
        assert torch.equal(one, other), name
    text = "The other <|im_end|> you"
    assert gguf.tokenizer.encode(text) == directory.tokenizer.encode(text)
    assert gguf.tokenizer.end_tokens == directory.tokenizer.end_tokens
    assert gguf.chat_template is not None
    assert directory.chat_template is not None
    assert gguf.chat_template.parts(("user", "assistant"), "user") == directory.chat_template.parts(
        ("user", "assistant"), "user"
    )
    gguf.close()
    directory.close()


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_0", 0.15), ("Q4_1", 0.1)])
def test_quantized_rows_are_put_in_order_too(tmp_path: Path, kind: str, error: float) -> None:
    checkpoint = GgufCheckpoint(tiny_gguf(tmp_path / "tiny.gguf", quantize=kind))
    weights = tiny_weights(tiny_config())
    for part in ("q", "k", "v"):
        tensor = checkpoint.tensor(f"layers.1.{part}")
        assert isinstance(tensor, QuantizedTensor)
        expected = weights[f"model.layers.1.self_attn.{part}_proj.weight"]
        assert (tensor.dequantize(torch.float32) - expected).abs().max() < error


def rewritten(
    path: Path,
    source: Path,
    *,
    rename: dict[str, str | None] | None = None,
    add: tuple[tuple[str, tuple[int, ...], int, bytes], ...] = (),
) -> Path:
    """The file with some tensors renamed, left out or added."""
    file = GgufFile(source)
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = []
    for info in file.tensors.values():
        name = (rename or {}).get(info.name, info.name)
        tensor = file.tensor(info.name)
        assert isinstance(tensor, torch.Tensor)
        if name is not None:
            tensors.append((name, info.shape, info.type, tensor.numpy().tobytes()))
    return write_gguf(path, file.metadata, [*tensors, *add])


def test_a_tensor_that_is_missing_or_would_be_ignored(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "tiny.gguf")
    path = rewritten(tmp_path / "missing.gguf", source, rename={"blk.1.attn_k.weight": None})
    with pytest.raises(
        ModelError,
        match=r"missing\.gguf: tensor 'blk\.1\.attn_k\.weight' is missing",
    ):
        GgufCheckpoint(path)
    path = rewritten(
        tmp_path / "more.gguf", source, add=(("blk.0.attn_q_norm.weight", (16,), 0, b"\0" * 64),)
    )
    with pytest.raises(
        ModelError, match=r"tensor 'blk\.0\.attn_q_norm\.weight' is of no use .*'llama'"
    ):
        GgufCheckpoint(path)
    path = rewritten(tmp_path / "none.gguf", source, rename={"token_embd.weight": None})
    with pytest.raises(ModelError, match=r"no tensor 'token_embd\.weight'"):
        GgufCheckpoint(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": None}, "general.architecture is None"),
        ({"llama.block_count": None}, "llama.block_count is None"),
        ({"llama.block_count": "two"}, "llama.block_count is 'two'"),
        ({"llama.block_count": 0}, "layers is 0"),
        ({"llama.block_count": 3}, r"9 tensors \(blk\.2\.attn_k\.weight, .*\) are missing"),
        ({"llama.block_count": 4_000_000}, "4000000 layers"),
        ({"llama.embedding_length": 32}, "shape"),
        ({"llama.attention.head_count": 0}, "heads is 0"),
        ({"llama.attention.head_count_kv": 3}, "evenly"),
        ({"llama.attention.head_count": [4, 4]}, "an integer is needed"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base is nan"),
        ({"split.count": 4}, "part of a model in 4 files, .* call them NAME-00001-of-00004.gguf"),
    ],
)
def test_metadata_that_is_wrong(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        GgufCheckpoint(tiny_gguf(tmp_path / "tiny.gguf", metadata=metadata))
    assert "tiny.gguf" in str(raised.value)


KEYS = [
    "general.architecture",
    "llama.block_count",
    "llama.embedding_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.rope.freq_base",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.context_length",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template",
    "tokenizer.ggml.scores",
    "general.name",
    "split.count",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "llama.rope.scale_linear",
    "llama.attention.key_length",
    "llama.attention.sliding_window",
]
VALUES = [
    None,
    0,
    1,
    3,
    (1 << 32) - 1,
    -0.5,
    float("nan"),
    True,
    "",
    "llama",
    "a b",
    "yarn",
    ["a"],
    [0],
    [1.5],
    [["a"]],
    [3] * 288,
    ["a b"] * 288,
]


@settings(max_examples=150)
@given(
    metadata=st.dictionaries(
        st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3
    ),
    data=st.data(),
)
def test_no_metadata_raises_anything_but_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any], data: st.DataObject
) -> None:
    path = tiny_gguf(
        tmp_path_factory.getbasetemp() / "fuzzed.gguf",
        metadata=metadata,
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(24, 12_000), max_size=3)):
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        checkpoint = GgufCheckpoint(path)
        for name in expected_shapes(checkpoint.config):
            checkpoint.tensor(name)
        checkpoint.tokenizer.encode("the other é")
        checkpoint.close()


def test_llama_3_rope_factors(tmp_path: Path) -> None:
    """GGUF holds the factors themselves; they are computed here frequency by frequency, from the
    paper's description."""
    source = tiny_gguf(tmp_path / "tiny.gguf", rope_theta=500000.0)
    factors: list[float] = []
    for j in range(8):
        wavelength = 2 * torch.pi * 500000.0 ** (2 * j / 16)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    data = torch.tensor(factors).numpy().tobytes()
    checkpoint = GgufCheckpoint(
        rewritten(tmp_path / "a.gguf", source, add=(("rope_freqs.weight", (8,), 0, data),))
    )
    assert checkpoint.config.rope.divisors == pytest.approx(factors)
    half = torch.tensor([2.0 * factor for factor in factors]).numpy().tobytes()
    linear = tiny_gguf(
        tmp_path / "linear.gguf", rope_theta=500000.0, metadata={"llama.rope.scaling.factor": 2.0}
    )
    both = GgufCheckpoint(
        rewritten(tmp_path / "b.gguf", linear, add=(("rope_freqs.weight", (8,), 0, data),))
    )
    stretched = GgufCheckpoint(
        rewritten(tmp_path / "d.gguf", source, add=(("rope_freqs.weight", (8,), 0, half),))
    )
    assert torch.equal(rope_table(both.config.rope, 99), rope_table(stretched.config.rope, 99))
    zero = torch.tensor([0.0, *factors[1:]]).numpy().tobytes()
    with pytest.raises(ModelError, match=r"rope divisor 0 is 0"):
        GgufCheckpoint(
            rewritten(tmp_path / "e.gguf", source, add=(("rope_freqs.weight", (8,), 0, zero),))
        )
    with pytest.raises(ModelError, match="not one factor for each"):
        GgufCheckpoint(
            rewritten(tmp_path / "c.gguf", source, add=(("rope_freqs.weight", (1,), 0, b"\0" * 4),))
        )


def test_unknown_tensor_names_and_closing(tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(tiny_gguf(tmp_path / "tiny.gguf", chat_template=None), name="mine")
    assert checkpoint.name == "mine"
    assert checkpoint.chat_template is None
    with pytest.raises(ModelError, match=r"no tensor 'layers\.2\.q'"):
        checkpoint.tensor("layers.2.q")
    checkpoint.close()
    with pytest.raises(ModelError, match="closed"):
        checkpoint.tensor("norm")
