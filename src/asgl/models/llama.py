"""The Llama architecture (arXiv 2302.13971, 2407.21783): its forward pass, which serves those that
differ in numbers and biases only, and how files hold it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from asgl.kernels.api import Batch, FusedKernels, Kernels, LayerWeights, PartialHead
from asgl.kernels.quantized import QuantizedTensor, stacked
from asgl.models.checkpoint import Checkpoint
from asgl.models.config import ModelConfig
from asgl.models.layout import FileLayout
from asgl.models.rope import gguf_rope, hugging_face_rope, rope_table
from asgl.models.settings import Settings


class Llama:
    """A model on the device of `kernels`. Reads all tensors of the checkpoint, and keeps copies
    only.

    positions: how many a sequence can have, as far as memory goes: the context that the model
    declares may be far longer. `parameters` counts the elements of the checkpoint's tensors.
    """

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels, positions: int) -> None:
        self.config = config = checkpoint.config
        self.parameters = 0
        self._kernels = kernels
        self._scale = config.head_dim**-0.5

        def read(name: str) -> Tensor | QuantizedTensor:
            tensor = checkpoint.tensor(name)
            self.parameters += math.prod(tensor.shape)
            return tensor

        def dense(*names: str) -> Tensor:
            parts = [_dense(read(name)) for name in names]
            return torch.cat(parts).to(kernels.device)

        embedding = read("embedding")
        self._embedding = kernels.pack_embedding(embedding)
        self._layers: list[LayerWeights] = []
        for i in range(config.layers):
            at = f"layers.{i}."
            self._layers.append(
                LayerWeights(
                    attention_norm=dense(at + "attention_norm"),
                    qkv=kernels.pack_linear(
                        _stacked([read(at + name) for name in ("q", "k", "v")])
                    ),
                    qkv_bias=dense(at + "q_bias", at + "k_bias", at + "v_bias")
                    if config.attention_bias
                    else None,
                    o=kernels.pack_linear(read(at + "o")),
                    mlp_norm=dense(at + "mlp_norm"),
                    gate_up=kernels.pack_linear(
                        _stacked([read(at + name) for name in ("gate", "up")])
                    ),
                    down=kernels.pack_linear(read(at + "down")),
                )
            )
        self._norm = dense("norm")
        self._head = kernels.pack_head(embedding if config.tied_head else read("head"))
        self._rope = rope_table(config, positions).to(kernels.device)
        self._fused: Any = None
        if isinstance(kernels, FusedKernels):
            self._fused = kernels.fuse(
                self._layers,
                self._norm,
                self._rope,
                config.heads,
                config.kv_heads,
                config.head_dim,
                config.norm_eps,
            )

    def forward(
        self, batch: Batch, caches: Sequence[tuple[Tensor, Tensor]], at: Tensor | None
    ) -> Tensor | None:
        """Computes keys and values of the new tokens of `batch`, and the last hidden states of
        some of them.

        `caches` are the keys and the values of each layer, [slots, kv_heads, head_dim]; the batch's
        slots are written. `at` int64 [m]: flattened tokens; returns what `head` takes, [m, d], or
        None if `at` is None.
        """
        kernels, eps = self._kernels, self.config.norm_eps
        hidden = kernels.embed(self._embedding, batch.input_ids)
        if self._fused is not None and isinstance(
            kernels, FusedKernels
        ):  # the loop below, in one call
            return kernels.run_layers(self._fused, hidden, batch, caches, at)
        delta: Tensor | None = None
        last = len(self._layers) - 1
        for i, (layer, (k_cache, v_cache)) in enumerate(zip(self._layers, caches, strict=True)):
            qkv = kernels.linear(
                kernels.add_rms_norm(hidden, delta, layer.attention_norm, eps), layer.qkv
            )
            if layer.qkv_bias is not None:
                qkv = qkv + layer.qkv_bias.to(qkv.dtype)
            q = kernels.rope_and_store(qkv, batch, self._rope, k_cache, v_cache)
            if i == last and at is None:
                return None
            attended = kernels.attention(q, k_cache, v_cache, batch, self._scale)
            if i == last:  # from here on tokens no longer see each other
                hidden, attended = hidden[at], attended[at]
            delta = kernels.linear(attended, layer.o)
            gate_up = kernels.linear(
                kernels.add_rms_norm(hidden, delta, layer.mlp_norm, eps), layer.gate_up
            )
            delta = kernels.linear(kernels.silu_and_mul(gate_up), layer.down)
        return kernels.add_rms_norm(hidden, delta, self._norm, eps)

    def head(self, hidden: Tensor) -> Tensor:
        """float32 logits [m, vocabulary] of hidden states [m, d]. May be a buffer that the next
        call overwrites."""
        return self._kernels.head(hidden, self._head)

    def head_some(self, hidden: Tensor, token_ids: Tensor) -> Tensor | None:
        """The logits [m, k] of the tokens `token_ids` (int64 [k]) alone; None if the back end
        computes all or none."""
        kernels = self._kernels
        return (
            kernels.head_some(hidden, self._head, token_ids)
            if isinstance(kernels, PartialHead)
            else None
        )


def _dense(tensor: Tensor | QuantizedTensor) -> Tensor:
    return (
        tensor.dequantize(torch.float32) if isinstance(tensor, QuantizedTensor) else tensor.float()
    )


def _stacked(parts: Sequence[Tensor | QuantizedTensor]) -> Tensor | QuantizedTensor:
    """One matrix of the rows of all parts, in the parts' format if they have one in common."""
    quantized = [part for part in parts if isinstance(part, QuantizedTensor)]
    if len(quantized) == len(parts) and len({part.format for part in quantized}) == 1:
        return stacked(quantized)
    return torch.cat([part if isinstance(part, Tensor) else _dense(part) for part in parts])


def hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    """The config of a config.json."""
    heads, hidden = settings.integer("num_attention_heads"), settings.integer("hidden_size")
    head_dim = settings.integer("head_dim", hidden // max(heads, 1))
    context = settings.integer("max_position_embeddings")
    theta, scaling = hugging_face_rope(settings, head_dim, context)
    return ModelConfig(
        architecture=settings.architecture,
        layers=settings.integer("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=settings.integer("intermediate_size"),
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        vocabulary=settings.integer("vocab_size"),
        context_length=context,
        rope_theta=theta,
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        tied_head=settings.flag("tie_word_embeddings", False),
        rope_scaling=scaling,
    )


def gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    """The config of a GGUF file's metadata."""
    heads, hidden = settings.integer("attention.head_count"), settings.integer("embedding_length")
    head_dim = settings.integer("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.integer(key, head_dim) != head_dim:
            raise settings.error(key, f"only the {head_dim} dimensions of a head can be computed")
    context = settings.integer("context_length")
    window = settings.integer("attention.sliding_window", 0) or None
    check_window(settings, "attention.sliding_window", window, context)
    theta, scaling = gguf_rope(settings, head_dim, context)
    return ModelConfig(
        architecture=settings.architecture,
        layers=settings.integer("block_count"),
        hidden_size=hidden,
        intermediate_size=settings.integer("feed_forward_length"),
        heads=heads,
        kv_heads=settings.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary=settings.integer("vocab_size"),
        context_length=context,
        rope_theta=theta,
        norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
        tied_head=GGUF.names["head"] not in tensors,
        attention_bias=GGUF.stored("layers.0.q_bias") in tensors,
        rope_scaling=scaling,
    )


def check_window(settings: Settings, key: str, window: int | None, context: int) -> None:
    """ModelError if attention has a sliding window, which is of that key, and the context is
    longer: nothing else of a window would be felt."""
    if window is not None and window < context:
        raise settings.error(
            key, f"a window of {window} tokens in a context of {context} is not computed"
        )


HUGGING_FACE = FileLayout(
    names={
        "embedding": "model.embed_tokens.weight",
        "attention_norm": "model.layers.{}.input_layernorm.weight",
        "q": "model.layers.{}.self_attn.q_proj.weight",
        "k": "model.layers.{}.self_attn.k_proj.weight",
        "v": "model.layers.{}.self_attn.v_proj.weight",
        "q_bias": "model.layers.{}.self_attn.q_proj.bias",
        "k_bias": "model.layers.{}.self_attn.k_proj.bias",
        "v_bias": "model.layers.{}.self_attn.v_proj.bias",
        "o": "model.layers.{}.self_attn.o_proj.weight",
        "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
        "gate": "model.layers.{}.mlp.gate_proj.weight",
        "up": "model.layers.{}.mlp.up_proj.weight",
        "down": "model.layers.{}.mlp.down_proj.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
    },
    config=hugging_face,
    neutral={
        "attention_bias": (False,),
        "hidden_act": ("silu", "swish"),
        "is_llama_config": (True,),
        "mlp_bias": (False,),
        "rope_interleaved": (False,),
    },
)
GGUF = FileLayout(
    names={
        "embedding": "token_embd.weight",
        "attention_norm": "blk.{}.attn_norm.weight",
        "q": "blk.{}.attn_q.weight",
        "k": "blk.{}.attn_k.weight",
        "v": "blk.{}.attn_v.weight",
        "q_bias": "blk.{}.attn_q.bias",
        "k_bias": "blk.{}.attn_k.bias",
        "v_bias": "blk.{}.attn_v.bias",
        "o": "blk.{}.attn_output.weight",
        "mlp_norm": "blk.{}.ffn_norm.weight",
        "gate": "blk.{}.ffn_gate.weight",
        "up": "blk.{}.ffn_up.weight",
        "down": "blk.{}.ffn_down.weight",
        "norm": "output_norm.weight",
        "head": "output.weight",
    },
    config=gguf,
    interleaved=frozenset({"q", "k", "q_bias", "k_bias"}),
)
