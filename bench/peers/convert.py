"""Writes asgl's model as a directory in Hugging Face's layout, for the peers that read no GGUF. In
bfloat16.

python -m bench.peers.convert MODEL DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_LAYER = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def convert(model: str, directory: Path) -> None:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    import torch
    from safetensors.torch import save_file

    from asgl.models.gguf import GgufFile
    from asgl.models.gguf_checkpoint import GgufCheckpoint
    from asgl.models.layout import expected_shapes
    from asgl.models.pull import pull
    from asgl.models.tokenizer_gguf import byte_level_bpe

    path = pull(model)
    checkpoint = GgufCheckpoint(path)
    tensors = {}
    for name in expected_shapes(checkpoint.config):
        tensor = checkpoint.tensor(name)
        dense = tensor if isinstance(tensor, torch.Tensor) else tensor.dequantize(torch.float32)
        tensors[_hf_name(name)] = dense.to(torch.bfloat16).contiguous()
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    metadata = GgufFile(path).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    definition = byte_level_bpe(
        metadata["tokenizer.ggml.pre"], tokens, types, metadata["tokenizer.ggml.merges"]
    )
    definition["model"]["vocab"] = {text: number for number, text in enumerate(tokens)}
    definition["added_tokens"] = [
        {
            "id": number,
            "content": text,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for number, text in enumerate(tokens)
        if types[number] == 3
    ]
    definition["decoder"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    end = metadata["tokenizer.ggml.eos_token_id"]
    _write(directory / "tokenizer.json", definition)
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokens[end],
            "pad_token": tokens[end],
            "clean_up_tokenization_spaces": False,
            "model_max_length": checkpoint.config.context_length,
            "chat_template": metadata["tokenizer.chat_template"],
        },
    )
    _write(directory / "config.json", _config(checkpoint.config, metadata))
    checkpoint.close()


def _config(config: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope.theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }


def _hf_name(name: str) -> str:
    top = {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
    }
    if name in top:
        return top[name]
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}.weight"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
