"""A decoder of layers that attend to the past and then compute: what all architectures share.

Which tensors there are, and how a layer attends, follows from the config. In which order a layer
does what, its page says: `queries` and `after_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asgl.kernels.api import (
    Attending,
    Batch,
    ExpertWeights,
    Kernels,
    PartialHead,
    RecordingKernels,
    Rotation,
)
from asgl.kernels.forward import StepByStep, Verbs
from asgl.kernels.quantized import QuantizedTensor
from asgl.models.checkpoint import Checkpoint
from asgl.models.config import ModelConfig, Rope
from asgl.models.rope import query_scales, rope_table


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of a layer, as `Kernels.pack_linear` gave them, and how it attends. What the
    model does not have is None."""

    attention_norm: Tensor | None
    qkv: Any
    rotation: Rotation
    attending: Attending
    o: Any
    post_attention_norm: Tensor | None
    mlp_norm: Tensor | None
    gate_up: Any
    down: Any
    experts: ExpertWeights | None
    post_mlp_norm: Tensor | None


class Transformer:
    """A model on the device of `kernels`, whose layers norm the input of each of their two blocks.

    Reads all tensors of the checkpoint, and keeps copies only. positions: how many a sequence can
    have, as far as memory goes: the context that the model declares may be far longer. `parameters`
    counts the elements of the checkpoint's tensors.
    """

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels, positions: int) -> None:
        self.config = config = checkpoint.config
        self._kernels = kernels
        reader = _Reader(checkpoint, kernels, min(positions, config.context_length))
        embedding = reader.read("embedding")
        self._embedding = kernels.pack_embedding(embedding)
        self._layers = [reader.layer(i) for i in range(config.layers)]
        # dividing the logits is dividing what the head takes
        self._norm = reader.dense("norm") / config.logit_divisor
        self._head = kernels.pack_head(embedding if config.tied_head else reader.read("head"))
        self.parameters = reader.parameters
        self._recorded: Any = None
        if isinstance(kernels, RecordingKernels):
            self._recorded = kernels.record(self._run, config.hidden_size, config.norm_eps)

    def forward(
        self, batch: Batch, caches: Sequence[tuple[Tensor, Tensor]], at: Tensor | None
    ) -> Tensor | None:
        """Computes keys and values of the new tokens of `batch`, and the last hidden states of
        some of them.

        `caches` are the keys and the values of each layer, [slots, kv_heads, head_dim]; the batch's
        slots are written. `at` int64 [m]: flattened tokens; returns what `head` takes, [m, d], or
        None if `at` is None.
        """
        kernels = self._kernels
        hidden = kernels.embed(self._embedding, batch.input_ids)
        if self.config.embedding_multiplier != 1.0:
            hidden *= self.config.embedding_multiplier
        if self._recorded is not None and isinstance(kernels, RecordingKernels):
            return kernels.run(self._recorded, hidden, batch, caches, at)
        return self._run(StepByStep(kernels, hidden, batch, caches, at, self.config.norm_eps))

    def _run(self, verbs: Verbs) -> Any:
        """All layers, and the norm after the last."""
        last = len(self._layers) - 1
        for i, layer in enumerate(self._layers):
            verbs.start_layer(i)
            q = self.queries(verbs, layer)
            if i == last and verbs.only_stores:
                return None
            attended = verbs.attention(q, layer.attending)
            if i == last:  # from here on tokens no longer see each other
                attended = verbs.keep_wanted(attended)
            self.after_attention(verbs, layer, attended)
        return verbs.norm(self._norm)

    def queries(self, verbs: Verbs, layer: Layer) -> Any:
        """The queries of a layer, whose keys and values are stored."""
        x = verbs.norm(layer.attention_norm)
        return verbs.rotate_and_store(verbs.linear(x, layer.qkv), layer.rotation)

    def after_attention(self, verbs: Verbs, layer: Layer, attended: Any) -> None:
        """The rest of a layer."""
        factor = self.config.residual_multiplier
        verbs.add(attended, layer.o, factor)
        x = verbs.norm(layer.mlp_norm)
        if layer.experts is not None:
            verbs.add_experts(x, layer.experts)
        else:
            verbs.add(verbs.gated(x, layer.gate_up, self.config.activation), layer.down, factor)

    def head(self, hidden: Tensor) -> Tensor:
        """float32 logits [m, vocabulary] of hidden states [m, d]. May be a buffer that the next
        call overwrites."""
        return self._capped(self._kernels.head(hidden, self._head))

    def head_some(self, hidden: Tensor, token_ids: Tensor) -> Tensor | None:
        """The logits [m, k] of the tokens `token_ids` (int64 [k]) alone; None if the back end
        computes all or none."""
        if not isinstance(self._kernels, PartialHead):
            return None
        logits = self._kernels.head_some(hidden, self._head, token_ids)
        return None if logits is None else self._capped(logits)

    def _capped(self, logits: Tensor) -> Tensor:
        if (cap := self.config.logit_softcap) is not None:
            logits.div_(cap).tanh_().mul_(cap)
        return logits


class NormsAfter(Transformer):
    """Layers that norm the output of each of their two blocks, and maybe the input."""

    def after_attention(self, verbs: Verbs, layer: Layer, attended: Any) -> None:
        assert layer.post_attention_norm is not None
        assert layer.post_mlp_norm is not None
        verbs.add_normed(attended, layer.o, layer.post_attention_norm)
        inner = verbs.gated(verbs.norm(layer.mlp_norm), layer.gate_up, self.config.activation)
        verbs.add_normed(inner, layer.down, layer.post_mlp_norm)


class _Reader:
    """Reads tensors of a checkpoint, prepares them for kernels, and counts their elements."""

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels, positions: int) -> None:
        self._checkpoint, self._kernels, self._positions = checkpoint, kernels, positions
        self._config: ModelConfig = checkpoint.config
        self._ropes: dict[Rope, tuple[Tensor, Tensor | None]] = {}
        self.parameters = 0

    def read(self, name: str) -> Tensor | QuantizedTensor:
        tensor = self._checkpoint.tensor(name)
        self.parameters += math.prod(tensor.shape)
        return tensor

    def dense(self, name: str) -> Tensor:
        """float32, on the device."""
        tensor = self.read(name)
        if isinstance(tensor, QuantizedTensor):
            return tensor.dequantize(torch.float32).to(self._kernels.device)
        # a copy: what a checkpoint gave is gone when the checkpoint is closed
        return tensor.to(self._kernels.device, torch.float32, copy=True)

    def layer(self, i: int) -> Layer:
        config, at = self._config, f"layers.{i}."
        before, after = config.norms != "after", config.norms != "before"
        experts = config.has_experts(i)
        return Layer(
            attention_norm=self.dense(at + "attention_norm") if before else None,
            qkv=self._linear(at, "q", "k", "v"),
            rotation=self._rotation(i),
            attending=self._attending(i),
            o=self._linear(at, "o"),
            post_attention_norm=self.dense(at + "post_attention_norm") if after else None,
            mlp_norm=self.dense(at + "mlp_norm") if before else None,
            gate_up=None if experts else self._linear(at, "gate", "up"),
            down=None if experts else self._linear(at, "down"),
            experts=self._experts(at) if experts else None,
            post_mlp_norm=self.dense(at + "post_mlp_norm") if after else None,
        )

    def _linear(self, at: str, *parts: str) -> Any:
        matrices = [self.read(at + part) for part in parts]
        biased = [part in self._config.biases for part in parts]
        bias = None
        if any(biased):
            bias = torch.cat(
                [
                    self.dense(f"{at}{part}_bias")
                    if has
                    else torch.zeros(matrix.shape[0], device=self._kernels.device)
                    for part, has, matrix in zip(parts, biased, matrices, strict=True)
                ]
            )
        return self._kernels.pack_linear(*matrices, bias=bias)

    def _rotation(self, i: int) -> Rotation:
        config, normed = self._config, self._config.qk_norm is not None
        rope, scale = None, None
        if (found := config.rope_of(i)) is not None:
            if found not in self._ropes:
                table = rope_table(found, self._positions).to(self._kernels.device)
                scales = query_scales(found, self._positions)
                if scales is not None:
                    scales = scales.to(self._kernels.device)
                self._ropes[found] = table, scales
            rope, scale = self._ropes[found]
        return Rotation(
            config.kv_heads,
            config.head_dim,
            rope,
            q_norm=self.dense(f"layers.{i}.q_norm") if normed else None,
            k_norm=self.dense(f"layers.{i}.k_norm") if normed else None,
            eps=config.norm_eps,
            q_scale=scale,
        )

    def _attending(self, i: int) -> Attending:
        config, window = self._config, self._config.window(i)
        return Attending(
            scale=config.head_dim**-0.5
            if config.attention_scale is None
            else config.attention_scale,
            window=window if window is not None and window < self._positions else None,
            softcap=config.attention_softcap,
            sinks=self.dense(f"layers.{i}.sinks") if config.sinks else None,
        )

    def _experts(self, at: str) -> ExpertWeights:
        config, experts = self._config, self._config.experts
        assert experts is not None
        pack, shared = self._kernels.pack_linear, None

        def split(part: str) -> list[Any]:
            """A tensor's rows, by experts."""
            whole = self.read(at + part)
            rows = whole.shape[0] // experts.count
            starts = [slice(i * rows, (i + 1) * rows) for i in range(experts.count)]
            if isinstance(whole, QuantizedTensor):
                return [whole.rows(part) for part in starts]
            return [whole[part] for part in starts]

        def biases(*parts: str) -> list[Tensor | None]:
            if not experts.biases:
                return [None] * experts.count
            found = [self.dense(f"{at}{part}_bias").view(experts.count, -1) for part in parts]
            return list(torch.cat(found, dim=1))

        if experts.shared_width:
            shared = (
                pack(self.read(at + "shared_gate"), self.read(at + "shared_up")),
                pack(self.read(at + "shared_down")),
                pack(self.read(at + "shared_router")),
            )
        router_bias = self.dense(at + "router_bias") if experts.biases else None
        gates, ups, downs = (split(f"experts_{part}") for part in ("gate", "up", "down"))
        gate_up_biases, down_biases = biases("experts_gate", "experts_up"), biases("experts_down")
        return ExpertWeights(
            router=pack(self.read(at + "router"), bias=router_bias),
            gate_up=[
                pack(gate, up, bias=bias)
                for gate, up, bias in zip(gates, ups, gate_up_biases, strict=True)
            ],
            down=[pack(down, bias=bias) for down, bias in zip(downs, down_biases, strict=True)],
            used=experts.used,
            over_used=experts.score == "softmax of the used",
            renormalized=experts.renormalized,
            activation=config.activation,
            shared=shared,
        )
