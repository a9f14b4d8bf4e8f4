"""GGUF files of every architecture: the same numbers as the directory that they were made of.

Names of tensors and keys are those of the gguf package, which llama.cpp's own conversion uses; what
conversion does to tensors is said here once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_oracle import all_logprobs
from test_architectures import TOKENS, saved, tiny_model
from torch import Tensor

from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.models.registry import open_checkpoint
from tiny import MERGES, vocabulary

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e4,
        "original_max_position_embeddings": 32}  # fmt: skip
WINDOW = {"sliding_window": 16}
LONGROPE = {
    "original_max_position_embeddings": 100,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 300.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.1, 1.7],
        "long_factor": [2.0, 5.0],
    },
}
SCALES = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "logits_scaling": 0.5,
          "residual_multiplier": 0.3}  # fmt: skip
MINISTRAL = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
MODELS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", "llama", {"rope_parameters": YARN}),
    ("mistral", "llama", {"sliding_window": None}),
    ("ministral3", "mistral3", {"sliding_window": None, "rope_parameters": MINISTRAL}),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", {}),
    ("gemma2", "gemma2", {"query_pre_attn_scalar": 8, **WINDOW}),
    ("gemma3_text", "gemma3", {"query_pre_attn_scalar": 8, "num_hidden_layers": 6, **WINDOW}),
    ("phi3", "phi3", WINDOW),
    ("phi3", "phi3", LONGROPE),
    ("granite", "granite", SCALES),
    ("smollm3", "smollm3", {"num_hidden_layers": 4}),
    ("olmo2", "olmo2", {}),
    ("olmo3", "olmo2", {"num_hidden_layers": 4, **WINDOW}),
    ("qwen2_moe", "qwen2moe", {"shared_expert_intermediate_size": 24}),
    ("qwen3_moe", "qwen3moe", {"norm_topk_prob": True}),
    ("gpt_oss", "gpt-oss", WINDOW),
]
PERMUTED = ("llama", "mistral3", "granite", "smollm3")


def neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves to neighbouring pairs."""
    rows = weight.shape[0] // heads // 2
    return weight.view(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def tensors(model: Any, architecture: str) -> dict[str, Tensor]:
    """The tensors of the file, by their names there."""
    config, held = model.config, dict(model.state_dict())
    if config.tie_word_embeddings:
        del held["lm_head.weight"]
    split: dict[str, Tensor] = {}
    for name, weight in held.items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            if architecture == "gpt-oss":
                gate, up = weight[..., 0::2].mT, weight[..., 1::2].mT
            else:
                gate, up = weight.chunk(2, dim=1)
            split |= {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
        elif name.endswith("experts.gate_up_proj_bias"):
            stem = name.removesuffix("gate_up_proj_bias")
            split |= {f"{stem}gate_proj.bias": weight[:, 0::2]}
            split |= {f"{stem}up_proj.bias": weight[:, 1::2]}
        elif name.endswith("experts.down_proj"):
            split[f"{name}.weight"] = weight.mT if architecture == "gpt-oss" else weight
        elif name.endswith("experts.down_proj_bias"):
            split[name.replace("_bias", ".bias")] = weight
        else:
            split[name] = weight
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found: dict[str, Tensor] = {}
    for name, weight in split.items():
        if architecture.startswith("gemma") and "norm" in name:
            weight = weight + 1
        if architecture in PERMUTED and ".q_proj." in name:
            weight = neighbours(weight, config.num_attention_heads)
        if architecture in PERMUTED and ".k_proj." in name:
            weight = neighbours(weight, config.num_key_value_heads)
        if name.endswith("sinks"):
            name += ".weight"
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        found[stored] = weight
    return found


def write(path: Path, model: Any, architecture: str) -> Path:
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    local = config.rope_parameters.get("sliding_attention")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if local:
        writer.add_float32(f"{architecture}.rope.freq_base_swa", local["rope_theta"])
    window = getattr(config, "sliding_window", None)
    if window and not architecture.startswith("qwen"):
        writer.add_sliding_window(window)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture == "mistral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        for which in ("short", "long"):
            factors = np.array(rope[f"{which}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{which}.weight", factors)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if experts := getattr(config, "num_local_experts", getattr(config, "num_experts", 0)):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        width = getattr(config, "moe_intermediate_size", config.intermediate_size)
        writer.add_expert_feed_forward_length(width)
    if shared := getattr(config, "shared_expert_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(shared)
    tokens, control = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(tokens.index(control[-1]))
    for name, weight in tensors(model, architecture).items():
        writer.add_tensor(name, weight.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("name", "architecture", "settings"), MODELS)
def test_the_file_says_what_the_directory_says(
    tmp_path: Path, name: str, architecture: str, settings: dict[str, Any]
) -> None:
    transformers.logging.set_verbosity_error()
    model = tiny_model(name, **settings)
    paths = saved(tmp_path / "model", model), write(tmp_path / "a.gguf", model, architecture)
    expected, found = (
        all_logprobs(SerialRunner(open_checkpoint(path), ReferenceKernels(), 200), TOKENS)
        for path in paths
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
