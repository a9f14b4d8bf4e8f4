"""The same weights in transformers' own model, and the log-probabilities of both."""

from __future__ import annotations

from typing import Any

import torch
from steps import Row, step

from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.quantized import QuantizedTensor
from asgl.models.checkpoint import Checkpoint
from asgl.models.config import ModelConfig


def _dense(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    tensor = checkpoint.tensor(name)
    return (
        tensor.dequantize(torch.float32)
        if isinstance(tensor, QuantizedTensor)
        else tensor.float().clone()
    )


def _settings(config: ModelConfig) -> dict[str, Any]:
    assert config.rope.divisors is None
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden_size,
        "rms_norm_eps": config.norm_eps,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tied_head,
        "rope_parameters": {"rope_theta": config.rope.theta, "rope_type": "default"},
        "bos_token_id": None,
        "eos_token_id": None,
    }


def oracle(checkpoint: Checkpoint) -> Any:
    """LlamaForCausalLM (Qwen2ForCausalLM if there are biases) in float32, built from the
    checkpoint's tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config = checkpoint.config
    names = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm"}
    names["lm_head.weight"] = "embedding" if config.tied_head else "head"
    parts = {
        "input_layernorm.weight": "attention_norm",
        "post_attention_layernorm.weight": "mlp_norm",
        "self_attn.q_proj.weight": "q",
        "self_attn.k_proj.weight": "k",
        "self_attn.v_proj.weight": "v",
        "self_attn.o_proj.weight": "o",
        "mlp.gate_proj.weight": "gate",
        "mlp.up_proj.weight": "up",
        "mlp.down_proj.weight": "down",
    }
    if config.biases:
        parts |= {f"self_attn.{part}_proj.bias": f"{part}_bias" for part in "qkv"}
    for i in range(config.layers):
        names |= {
            f"model.layers.{i}.{theirs}": f"layers.{i}.{ours}" for theirs, ours in parts.items()
        }
    with torch.device("meta"):
        if config.biases:
            model: Any = Qwen2ForCausalLM(Qwen2Config(**_settings(config)))
        else:
            model = LlamaForCausalLM(LlamaConfig(**_settings(config), attention_bias=False))
    rotary = type(model.model.rotary_emb)(
        model.config
    )  # its buffers are no weights: made anew, off the meta device
    model.load_state_dict(
        {theirs: _dense(checkpoint, ours) for theirs, ours in names.items()},
        assign=True,
        strict=True,
    )
    model.model.rotary_emb = rotary
    return model.eval()


@torch.inference_mode()
def logprobs(model: Any, tokens: list[int], places: list[int] | None = None) -> torch.Tensor:
    """float32 [places, vocabulary]: after each token, or after those at `places`, of the next."""
    keep = torch.arange(len(tokens)) if places is None else torch.tensor(places)
    return torch.log_softmax(
        model(torch.tensor([tokens]), logits_to_keep=keep).logits[0].float(), dim=1
    )


def all_logprobs(runner: SerialRunner, tokens: list[int]) -> torch.Tensor:
    """As `logprobs`, after each token, of the runner's model."""
    everything = tuple(range(runner.info.vocabulary))
    slots = list(range(len(tokens)))
    result = runner.run(
        step([Row(tokens, slots, score=[(i, everything) for i in range(len(tokens))])])
    )
    return torch.tensor(result.scores)
