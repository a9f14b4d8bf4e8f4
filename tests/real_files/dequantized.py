"""A GGUF file in transformers, without asgl: the gguf package reads and dequantizes it, and its
metadata and tensors get Hugging Face's names here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "qwen2": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def model(path: Path) -> Any:
    """The causal language model in float32."""
    reader = gguf.GGUFReader(path)
    kind = str(reader.fields["general.architecture"].contents())
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = torch.from_numpy(np.array(values, dtype=np.float32))
        name = _name(tensor.name, PARTS | NORMS[kind])
        if kind == "gemma3" and "norm" in name:
            values = values - 1  # GGUF files hold 1 + w
        weights[name] = values

    def said(key: str) -> Any:
        return reader.fields[f"{kind}.{key}"].contents()

    settings = {
        "vocab_size": len(weights["model.embed_tokens.weight"]),
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_hidden_layers": said("block_count"),
        "num_attention_heads": said("attention.head_count"),
        "num_key_value_heads": said("attention.head_count_kv"),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    theta = {"rope_type": "default", "rope_theta": said("rope.freq_base")}
    if kind == "qwen2":
        config: Any = transformers.Qwen2Config(**settings, rope_parameters=theta)
        made: Any = transformers.Qwen2ForCausalLM
    else:
        config = transformers.Gemma3TextConfig(
            **settings,
            head_dim=said("attention.key_length"),
            query_pre_attn_scalar=said("attention.key_length"),
            sliding_window=said("attention.sliding_window"),
            rope_parameters={
                "full_attention": theta,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        )
        made = transformers.Gemma3ForCausalLM
    with torch.device("meta"):
        empty = made(config)
    rotary = type(empty.model.rotary_emb)(config)
    scale = getattr(empty.model.embed_tokens, "embed_scale", None)
    if "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    empty.load_state_dict(weights, assign=True, strict=True)
    empty.model.rotary_emb = rotary
    if scale is not None:  # a buffer, made on the meta device
        empty.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    return empty.eval()


def _name(stored: str, parts: dict[str, str]) -> str:
    if stored in WHOLE:
        return WHOLE[stored]
    _, layer, part, end = stored.split(".")
    return f"model.layers.{layer}.{parts[part]}.{end}"


@torch.inference_mode()
def logprobs(model: Any, tokens: list[int]) -> torch.Tensor:
    """float32 [tokens - 1, vocabulary]: of each next token."""
    logits = model(torch.tensor([tokens[:-1]])).logits[0]
    return torch.log_softmax(logits.float(), dim=1)
