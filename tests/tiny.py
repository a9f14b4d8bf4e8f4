"""Tiny random models for tests: two layers, seeded, made on the spot, as a Hugging Face directory
or a GGUF file.

Both forms of one seed are the same model: same weights (float32), same tokenizer, same chat
template. The vocabulary of 288 is the 256 bytes (ids 0-255, so that ASCII text encodes to its
codes), a few merges, and control tokens.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file

from asgl.models.gguf import GgufFile
from asgl.models.tokenizer import BYTE_ALPHABET

MERGES = [
    "t h",
    "th e",
    "i n",
    "Ġ the",
    "e r",
    "Ġ a",
    "o n",
    "r e",
    "a n",
    "an d",
    "Ġ and",
    "o r",
    "Ġ o",
    "Ġo r",
    "i s",
    "e n",
    "a t",
    "l l",
    "s t",
    "o u",
    "y ou",
    "Ġ you",
]
BOS, IM_START, IM_END, EOS = "<|bos|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "float32",
}


def vocabulary() -> tuple[list[str], list[str]]:
    """All tokens in the order of their ids, and those of them that are control tokens."""
    by_byte = {byte: character for character, byte in BYTE_ALPHABET.items()}
    control = [BOS, IM_START, IM_END, EOS]
    tokens = [by_byte[byte] for byte in range(256)]
    tokens += [merged for merge in MERGES if (merged := merge.replace(" ", "")) not in tokens]
    return [
        *tokens,
        *control,
        *(f"<|spare{i}|>" for i in range(288 - len(tokens) - len(control))),
    ], control


def tokenizer_definition() -> dict[str, Any]:
    """The content of tokenizer.json."""
    tokens, _ = vocabulary()
    special = [token for token in tokens if token.startswith("<|") and token.endswith("|>")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "added_tokens": [
            {
                "id": tokens.index(token),
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in special
        ],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens) if token not in special},
            "merges": MERGES,
        },
    }


def tiny_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under Hugging Face's names. Norms are near one; the rest keeps
    activations near one."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(d, generator=generator)

    d, f, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    weights = {
        "model.embed_tokens.weight": 0.25
        * torch.randn(config["vocab_size"], d, generator=generator)
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            weights[f"{layer}self_attn.{part}_proj.weight"] = matrix(rows, d)
            if config["attention_bias"]:
                weights[f"{layer}self_attn.{part}_proj.bias"] = 0.1 * torch.randn(
                    rows, generator=generator
                )
        weights[layer + "self_attn.o_proj.weight"] = matrix(d, q)
        weights[layer + "mlp.gate_proj.weight"] = matrix(f, d)
        weights[layer + "mlp.up_proj.weight"] = matrix(f, d)
        weights[layer + "mlp.down_proj.weight"] = matrix(d, f)
        weights[layer + "input_layernorm.weight"] = norm()
        weights[layer + "post_attention_layernorm.weight"] = norm()
    weights["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], d)
    return weights


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """The content of config.json; overrides are its keys."""
    tokens, _ = vocabulary()
    return {
        **CONFIG,
        "vocab_size": len(tokens),
        "bos_token_id": tokens.index(BOS),
        "eos_token_id": tokens.index(IM_END),
        **overrides,
    }


def tiny_directory(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    chat_template: str | None = CHATML,
    shards: int = 1,
    add_bos: bool = False,
    **overrides: Any,
) -> Path:
    """Writes a tiny llama in Hugging Face's layout into the directory `path` (made if need be), and
    returns it."""
    path.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**overrides)
    weights = {name: weight.to(dtype) for name, weight in tiny_weights(config, seed).items()}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_definition()))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": IM_END,
        "add_bos_token": add_bos,
    }
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if shards == 1:
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return path
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {name: names[order % shards] for order, name in enumerate(weights)}
    for file in names:
        save_file(
            {name: weight for name, weight in weights.items() if where[name] == file},
            path / file,
            metadata={"format": "pt"},
        )
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    return path


def tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    quantize: str | Mapping[str, str] = "F32",
    chat_template: str | None = CHATML,
    add_bos: bool = False,
    metadata: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Writes the same model as a GGUF file: matrices in the type `quantize`, or each in that of the
    part of its name, as in {"attn_v": "Q6_K", "": "Q4_K"} ("" is for all others).

    `metadata` replaces single keys of the file's (None: leaves them out).
    """
    config = tiny_config(**overrides)
    tokens, _ = vocabulary()
    special = [token.startswith("<|") and token.endswith("|>") for token in tokens]
    kind = config["model_type"]
    pairs: dict[str, Any] = {
        "general.architecture": kind,
        "general.name": "tiny",
        f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.context_length": config["max_position_embeddings"],
        f"{kind}.embedding_length": config["hidden_size"],
        f"{kind}.feed_forward_length": config["intermediate_size"],
        f"{kind}.attention.head_count": config["num_attention_heads"],
        f"{kind}.attention.head_count_kv": config["num_key_value_heads"],
        f"{kind}.attention.key_length": config["head_dim"],
        f"{kind}.attention.value_length": config["head_dim"],
        f"{kind}.rope.dimension_count": config["head_dim"],
        f"{kind}.rope.freq_base": float(config["rope_theta"]),
        f"{kind}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if control else 1 for control in special],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.add_bos_token": add_bos,
        "tokenizer.chat_template": chat_template,
        **(metadata or {}),
    }
    types = {"": quantize} if isinstance(quantize, str) else quantize
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = []
    for name, weight in tiny_weights(config, seed).items():
        stored = _gguf_name(name)
        kind = next((types[part] for part in types if part and part in stored), types[""])
        tensors.append((stored, *_encoded(_reordered(name, weight, config), kind)))
    return write_gguf(
        path, {key: value for key, value in pairs.items() if value is not None}, tensors
    )


def split_gguf(path: Path, source: Path, count: int) -> list[Path]:
    """Writes the model of a GGUF file as parts, in files called after `path`: the tensors in turn,
    the metadata in the first."""
    file = GgufFile(source)
    infos = list(file.tensors.values())
    paths: list[Path] = []
    for part in range(count):
        metadata = {"split.no": part, "split.count": count, "split.tensors.count": len(infos)}
        if part == 0:
            metadata = {**file.metadata, **metadata}
        paths.append(path.with_name(f"{path.stem}-{part + 1:05}-of-{count:05}.gguf"))
        write_gguf(
            paths[-1],
            metadata,
            [
                (info.name, info.shape, info.type, bytes(file.raw(info.name)))
                for info in infos[part::count]
            ],
        )
    file.close()
    return paths


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, tuple[int, ...], int, bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Writes a GGUF file of these pairs and tensors: name, shape (row-major), type, data."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + _value(value)
    offset, data = 0, bytearray()
    for name, shape, kind, content in tensors:
        out += _string(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset
        )
        data += content + b"\0" * (-len(content) % alignment)
        offset = len(data)
    out += b"\0" * (-len(out) % alignment)
    path.write_bytes(out + data)
    return path


def quantized(weight: np.ndarray | torch.Tensor, kind: str) -> bytes:
    """The matrix in blocks of that type, as ggml's own C code makes them."""
    rows = np.ascontiguousarray(weight, dtype=np.float32)
    return libgguf.quantize_rows(rows, GGMLQuantizationType[kind]).tobytes()


def _encoded(weight: torch.Tensor, kind: str) -> tuple[tuple[int, ...], int, bytes]:
    shape = tuple(weight.shape)
    if weight.dim() == 1 or kind == "F32":
        return shape, 0, weight.numpy().tobytes()
    if kind == "F16":
        return shape, 1, weight.half().numpy().tobytes()
    if kind == "BF16":
        return shape, 30, weight.bfloat16().view(torch.int16).numpy().tobytes()
    return shape, int(GGMLQuantizationType[kind]), quantized(weight, kind)


def _reordered(name: str, weight: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Rows of q and k in the order that GGUF keeps for llama: row 2j of a head is row j, row 2j + 1
    is row j + half. For other architectures as they are."""
    if config["model_type"] != "llama" or (".q_proj." not in name and ".k_proj." not in name):
        return weight
    heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    half = config["head_dim"] // 2
    rows = [
        head * 2 * half + j + odd * half
        for head in range(heads)
        for j in range(half)
        for odd in (0, 1)
    ]
    return weight[rows]


def _gguf_name(name: str) -> str:
    for old, new in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ):
        name = name.replace(old, new)
    return name


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    kind = _value(value[0])[:4]
    return (
        struct.pack("<I", 9)
        + kind
        + struct.pack("<Q", len(value))
        + b"".join(_value(item)[4:] for item in value)
    )
