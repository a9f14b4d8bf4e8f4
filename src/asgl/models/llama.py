"""Llama (arXiv 2302.13971, 2407.21783): how files hold it. Its forward pass is `Transformer`'s, and
most other architectures begin with what is said here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from asgl.models.config import QKV, ModelConfig
from asgl.models.layout import FileLayout, both
from asgl.models.rope import KINDS, gguf_rope, hugging_face_rope
from asgl.models.settings import Settings
from asgl.models.windows import uniform


def hugging_face(
    settings: Settings,
    tensors: Collection[str],
    *,
    kinds: Sequence[str] = KINDS,
    partial: bool = False,
    theta: float = 10_000.0,
    nested_rope: bool = False,
    head_dim: int | None = None,
    eps: float = 1e-6,
) -> ModelConfig:
    """The config of a config.json. kinds, partial, theta, nested_rope: of its rope, see
    `hugging_face_rope`. head_dim, eps: if the file does not say it; None: what follows from the
    number of heads."""
    heads, hidden = settings.integer("num_attention_heads"), settings.integer("hidden_size")
    size: int = settings.integer("head_dim", head_dim or hidden // max(heads, 1))
    context = settings.integer("max_position_embeddings")
    return ModelConfig(
        architecture=settings.architecture,
        layers=settings.integer("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=settings.integer("intermediate_size"),
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_dim=size,
        vocabulary=settings.integer("vocab_size"),
        context_length=context,
        rope=hugging_face_rope(
            settings,
            size,
            context,
            kinds=kinds,
            partial=partial,
            theta=theta,
            nested=nested_rope,
        ),
        norm_eps=settings.number("rms_norm_eps", eps),
        tied_head=settings.flag("tie_word_embeddings", False),
    )


def biases(settings: Settings) -> frozenset[str]:
    """The parts that have biases."""
    attention, mlp = settings.flag("attention_bias", False), settings.flag("mlp_bias", False)
    found = QKV | {"o"} if attention else frozenset[str]()
    return found | {"gate", "up", "down"} if mlp else found


def _hugging_face(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    return replace(hugging_face(settings, tensors), biases=biases(settings))


def gguf(
    settings: Settings,
    tensors: Collection[str],
    *,
    partial: bool = False,
    truncated: bool = True,
) -> ModelConfig:
    """The config of a GGUF file's metadata. partial: whether a part of a head may be rotated.
    truncated: see `gguf_rope`."""
    heads, hidden = settings.integer("attention.head_count"), settings.integer("embedding_length")
    head_dim = settings.integer("attention.key_length", hidden // max(heads, 1))
    dimensions = settings.integer("rope.dimension_count", head_dim)
    if dimensions != head_dim and not (partial and 0 < dimensions < head_dim):
        raise settings.error(
            "rope.dimension_count", f"only the {head_dim} dimensions of a head can be rotated"
        )
    if settings.integer("attention.value_length", head_dim) != head_dim:
        raise settings.error(
            "attention.value_length", f"only the {head_dim} dimensions of a head can be computed"
        )
    context = settings.integer("context_length")
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
        rope=gguf_rope(settings, dimensions, context, truncated=truncated),
        norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
        tied_head=GGUF.names["head"] not in tensors,
        biases=frozenset(
            part
            for part in ("q", "k", "v", "o", "gate", "up", "down")
            if GGUF.stored(f"layers.0.{part}_bias") in tensors
        ),
    )


def _gguf(settings: Settings, tensors: Collection[str]) -> ModelConfig:
    config = gguf(settings, tensors)
    window = settings.integer("attention.sliding_window", 0) or None
    return replace(config, windows=uniform(window, config.layers))


HUGGING_FACE = FileLayout(
    names={
        "embedding": "model.embed_tokens.weight",
        "attention_norm": "model.layers.{}.input_layernorm.weight",
        "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
        **both("q", "model.layers.{}.self_attn.q_proj"),
        **both("k", "model.layers.{}.self_attn.k_proj"),
        **both("v", "model.layers.{}.self_attn.v_proj"),
        **both("o", "model.layers.{}.self_attn.o_proj"),
        **both("gate", "model.layers.{}.mlp.gate_proj"),
        **both("up", "model.layers.{}.mlp.up_proj"),
        **both("down", "model.layers.{}.mlp.down_proj"),
    },
    config=_hugging_face,
    neutral={
        "hidden_act": ("silu", "swish"),
        "is_llama_config": (True,),
        "rope_interleaved": (False,),
    },
)
GGUF = FileLayout(
    names={
        "embedding": "token_embd.weight",
        "attention_norm": "blk.{}.attn_norm.weight",
        "mlp_norm": "blk.{}.ffn_norm.weight",
        "norm": "output_norm.weight",
        "head": "output.weight",
        **both("q", "blk.{}.attn_q"),
        **both("k", "blk.{}.attn_k"),
        **both("v", "blk.{}.attn_v"),
        **both("o", "blk.{}.attn_output"),
        **both("gate", "blk.{}.ffn_gate"),
        **both("up", "blk.{}.ffn_up"),
        **both("down", "blk.{}.ffn_down"),
    },
    config=_gguf,
    interleaved=frozenset({"q", "k", "q_bias", "k_bias"}),
)
