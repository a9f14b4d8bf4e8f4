"""The GPU back end: `asgl.kernels.api.Kernels` over Triton kernels."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels.api import (
    Activation,
    ActivationFormat,
    Attending,
    Batch,
    ModelShape,
    Progress,
    Rotation,
    SamplingBatch,
    WeightFormat,
)
from asgl.kernels.quantized import QuantizedTensor
from asgl.kernels.reference import gated, rotated
from asgl.kernels.triton import attention, elementwise, sampling, tiles
from asgl.kernels.triton.spans import ENTRY, ROW, UNIT, SpannedBatch, Spans, plan_spans
from asgl.kernels.triton.target import INTERPRETER, Target, target_of_device

_LOG2_E = math.log2(math.e)


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU. Fixed when the kernels were
    imported."""
    return not isinstance(attention.merge_kernel, triton.JITFunction)


class TritonKernels:
    """`asgl.kernels.api.Kernels` for GPUs of NVIDIA (compute capability 8.0 and later) and AMD.

    `dtype` is of weights, keys, values and activations; what the interface says is float32 is.
    Matrix products of layers are torch's; logits have a kernel of their own, which does not round
    them. On the CPU it runs in Triton's interpreter only (TRITON_INTERPRET=1), for tests.
    `progress` hears nothing: kernels are compiled at their first launch, which is what warming up
    is for. `target` overrides what is known of the device: for compiling without one.

    Nothing here waits for the device, and no launch depends on what the device computed, so that a
    step can be captured in a graph. Tokens whose slot is negative are padding: they write no keys
    and values.

    ConfigError for what is not supported: other dtypes, weights that are not "dense", the
    deterministic mode.
    """

    name = "triton"
    weights: WeightFormat = "dense"
    activations: ActivationFormat = "auto"

    def __init__(
        self,
        device: torch.device | str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        weights: WeightFormat | Literal["auto"] = "dense",
        deterministic: bool = False,
        progress: Progress | None = None,
        target: Target | None = None,
    ) -> None:
        self.device = torch.device(device)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(
                f"the Triton kernels compute in float32, bfloat16 or float16, not in {dtype}"
            )
        if weights not in ("auto", "dense"):
            raise ConfigError(
                f"the Triton kernels hold weights in {dtype}, and have none for "
                f"weights={weights!r}; use weights='auto': files of 4 and 8 bits are taken too"
            )
        if deterministic:
            raise ConfigError(
                "the Triton kernels have no deterministic mode; use deterministic=False"
            )
        if target is None and self.device.type == "cpu" and not interpreting():
            raise ConfigError(
                "kernels='triton' runs on GPUs, and on device 'cpu' only in Triton's interpreter: "
                "set TRITON_INTERPRET=1 before Python starts, or use kernels='auto'"
            )
        if target is None:
            target = INTERPRETER if interpreting() else target_of_device(self.device)
        self.target = target
        self.kv_dtype = dtype
        self._precision = (
            "ieee" if dtype == torch.float32 else "tf32"
        )  # of products of float32; 16-bit ones do not ask
        self._planned: tuple[Batch, Spans | None] | None = None
        """The spans of the batch of the last call: all layers of a step ask for the same."""

    @staticmethod
    def check_shape(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> None:
        """ConfigError if these kernels cannot compute models of that shape on that device."""
        if missing := shape.features:
            raise ConfigError(
                f"the Triton kernels cannot compute {', '.join(sorted(missing))} of this model; "
                "use kernels='reference'"
            )
        target = INTERPRETER if interpreting() else target_of_device(device)
        for tile in (tiles.extend_tile, tiles.decode_tile, tiles.span_tile):
            tile(shape.head_dim, shape.group, dtype, target)

    # --- weights ---

    def pack_linear(self, *parts: Tensor | QuantizedTensor, bias: Tensor | None = None) -> Any:
        dense = [self._dense(part) for part in parts]
        weight = dense[0] if len(dense) == 1 else torch.cat(dense)
        return weight, None if bias is None else bias.to(self.device, self.kv_dtype)

    def pack_head(self, weight: Tensor | QuantizedTensor) -> Any:
        return self._dense(weight)

    def pack_embedding(self, weight: Tensor | QuantizedTensor) -> Any:
        return self._dense(weight)

    def _dense(self, weight: Tensor | QuantizedTensor) -> Tensor:
        """A tensor of our own: what a checkpoint gave is gone when the checkpoint is closed."""
        if isinstance(weight, QuantizedTensor):
            return weight.dequantize(self.kv_dtype).to(self.device)
        return torch.empty(weight.shape, dtype=self.kv_dtype, device=self.device).copy_(weight)

    # --- layers ---

    def embed(self, table: Any, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, table).to(torch.float32, copy=True)

    def add_rms_norm(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor:
        n, d = hidden.shape
        out = hidden.new_empty((n, d), dtype=self.kv_dtype)
        block, warps = tiles.row_tile(d, self.target)
        _run(
            elementwise.add_rms_norm_kernel,
            (n,),
            hidden,
            hidden if delta is None else delta,
            weight,
            out,
            d,
            eps,
            ADD=delta is not None,
            BLOCK=block,
            **_options(warps),
        )
        return out

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        return F.linear(x, *weight)

    def rotate_and_store(
        self, qkv: Tensor, batch: Batch, rotation: Rotation, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        kv_heads, head_dim, rope = rotation.kv_heads, rotation.head_dim, rotation.rope
        if rope is None or rope.shape[1] < head_dim or rotation.q_norm is not None:
            return self._rotate_and_store(qkv, batch, rotation, k_cache, v_cache)
        if rotation.q_scale is not None:
            return self._rotate_and_store(qkv, batch, rotation, k_cache, v_cache)
        n, every = qkv.shape[0], qkv.shape[1] // head_dim
        heads = every - 2 * kv_heads
        q = qkv.new_empty((n, heads, head_dim), dtype=self.kv_dtype)
        block_h, block_d, warps = tiles.rope_tile(every, head_dim, self.kv_dtype, self.target)
        _run(
            elementwise.rope_and_store_kernel,
            (n, triton.cdiv(every, block_h)),
            qkv.contiguous(),
            batch.positions,
            batch.slots,
            rope,
            k_cache,
            v_cache,
            q,
            HEADS=heads,
            KV_HEADS=kv_heads,
            HALF=head_dim // 2,
            BLOCK_H=block_h,
            BLOCK_D=block_d,
            **_options(warps),
        )
        return q

    def _rotate_and_store(
        self, qkv: Tensor, batch: Batch, rotation: Rotation, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        """What the kernel does not know, in torch."""
        q, k, v = rotated(qkv, batch, rotation)
        slots = batch.slots.long()
        k_cache[slots], v_cache[slots] = k.to(k_cache.dtype), v.to(v_cache.dtype)
        return q.to(self.kv_dtype)

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, attending: Attending
    ) -> Tensor:
        if attending.window is not None or attending.softcap or attending.sinks is not None:
            raise ConfigError(
                "the Triton kernels have no windows, caps and sinks; use kernels='reference'"
            )
        scale = attending.scale
        n, heads, head_dim = q.shape
        out = q.new_empty((n, heads * head_dim), dtype=self.kv_dtype)
        shape = {
            "HEADS": heads,
            "KV_HEADS": k_cache.shape[1],
            "HEAD_DIM": head_dim,
            "BLOCK_D": tiles.padded(head_dim),
            "PRECISION": self._precision,
        }
        if batch.decode_rows:
            self._decode(q, k_cache, v_cache, batch, scale * _LOG2_E, out, shape)
        if batch.decode_rows < batch.rows:
            group = heads // k_cache.shape[1]
            tile = tiles.extend_tile(head_dim, group, self.kv_dtype, self.target)
            rows = batch.rows - batch.decode_rows
            most = (n - batch.decode_rows) // (tile.block_m // group) + rows
            _run(
                attention.extend_kernel,
                (most, k_cache.shape[1]),
                q,
                k_cache,
                v_cache,
                batch.qo_indptr,
                batch.kv_indptr,
                batch.kv_indices,
                out,
                batch.decode_rows,
                batch.rows,
                scale * _LOG2_E,
                **shape,
                **_launch(tile),
            )
        return out

    def _decode(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: Batch,
        scale: float,
        out: Tensor,
        shape: dict[str, Any],
    ) -> None:
        rows, heads, head_dim, kv_heads = (
            batch.decode_rows,
            q.shape[1],
            q.shape[2],
            k_cache.shape[1],
        )
        group = heads // kv_heads
        tile = tiles.decode_tile(head_dim, group, self.kv_dtype, self.target)
        spans = self._spans(batch, heads, kv_heads, head_dim)
        splits = tiles.decode_splits(rows, kv_heads, batch.max_kv, tile.block_n, self.target)
        direct = splits == 1 and spans is None
        partials = 0 if direct else rows * splits + (spans.partials if spans is not None else 0)
        partial = (
            out
            if direct
            else torch.empty((partials, heads, head_dim), dtype=torch.float32, device=q.device)
        )
        lse = (
            out if direct else torch.empty((partials, heads), dtype=torch.float32, device=q.device)
        )
        row_spans = batch.kv_indptr if spans is None else spans.rows
        _run(
            attention.decode_kernel,
            (rows, kv_heads, splits),
            q,
            k_cache,
            v_cache,
            batch.kv_indptr,
            batch.kv_indices,
            row_spans,
            partial,
            lse,
            out,
            splits,
            scale,
            SPANNED=spans is not None,
            DIRECT=direct,
            **shape,
            **_launch(tile),
        )
        if direct:
            return
        if spans is not None:
            tile = tiles.span_tile(head_dim, group, self.kv_dtype, self.target)
            _run(
                attention.span_kernel,
                (spans.units.shape[0], kv_heads),
                q,
                k_cache,
                v_cache,
                batch.kv_indptr,
                batch.kv_indices,
                spans.units,
                spans.entries,
                partial,
                lse,
                rows * splits,
                scale,
                **shape,
                **_launch(tile),
            )
        merged, warps = tiles.merge_tile(head_dim, self.target)
        _run(
            attention.merge_kernel,
            (rows, heads),
            partial,
            lse,
            row_spans,
            rows * splits,
            out,
            splits,
            SPANNED=spans is not None,
            HEADS=heads,
            HEAD_DIM=head_dim,
            BLOCK_D=shape["BLOCK_D"],
            BLOCK_P=merged,
            **_options(warps),
        )

    def _spans(self, batch: Batch, heads: int, kv_heads: int, head_dim: int) -> Spans | None:
        """The tables of the batch's shared spans on the device: the caller's, or uploaded here,
        once a step."""
        if isinstance(batch, SpannedBatch):
            return batch.spans
        if not batch.shared:
            return None
        if self._planned is None or self._planned[0] is not batch:
            plan = plan_spans(
                batch.shared,
                batch.decode_rows,
                kv_heads,
                self.rows_of_span_tile(heads, kv_heads, head_dim),
                self.target.multiprocessors,
            )
            self._planned = (batch, None)
            if plan is not None:
                sizes = [plan.units.size, plan.entries.size, plan.rows.size]
                host = torch.from_numpy(
                    np.concatenate([plan.units.ravel(), plan.entries.ravel(), plan.rows.ravel()])
                )
                units, entries, rows = host.to(self.device).split(sizes)
                spans = Spans(
                    units.view(-1, UNIT), entries.view(-1, ENTRY), rows.view(-1, ROW), plan.partials
                )
                self._planned = (batch, spans)
        return self._planned[1]

    def rows_of_span_tile(self, heads: int, kv_heads: int, head_dim: int) -> int:
        """How many decode rows the span kernel takes at once: for `plan_spans`."""
        return tiles.span_tile(head_dim, heads // kv_heads, self.kv_dtype, self.target).block_m // (
            heads // kv_heads
        )

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        if activation != "silu":
            return gated(gate_up, activation).to(self.kv_dtype)
        n, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((n, width), dtype=self.kv_dtype)
        block, warps = tiles.flat_tile(width, self.kv_dtype, self.target)
        _run(
            elementwise.silu_and_mul_kernel,
            (n, triton.cdiv(width, block)),
            gate_up.contiguous(),
            out,
            width,
            BLOCK=block,
            **_options(warps),
        )
        return out

    # --- logits ---

    def head(self, x: Tensor, weight: Any) -> Tensor:
        (m, k), n = x.shape, weight.shape[0]
        out = torch.empty((m, n), dtype=torch.float32, device=x.device)
        tile = tiles.head_tile(m, self.kv_dtype, self.target)
        _run(
            elementwise.head_kernel,
            (triton.cdiv(n, tile.block_n), triton.cdiv(m, tile.block_m)),
            x,
            weight,
            out,
            m,
            n,
            k,
            BLOCK_K=tile.block_k,
            PRECISION=self._precision,
            **_launch(tile),
        )
        return out

    def log_softmax(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, dim=1)

    def sample(self, logits: Tensor, how: SamplingBatch) -> Tensor:
        m, vocabulary = logits.shape
        for edits, repetition in ((how.repetition, True), (how.edits, False)):
            if edits is not None and (count := edits[0].shape[0]):
                _run(
                    sampling.edit_kernel,
                    (triton.cdiv(count, 256),),
                    logits,
                    *edits,
                    count,
                    logits.stride(0),
                    REPETITION=repetition,
                    BLOCK=256,
                    **_options(4),
                )
        tokens = torch.empty(m, dtype=torch.int64, device=logits.device)
        block, warps = tiles.vocabulary_tile(self.target)
        _run(
            sampling.sample_kernel,
            (m,),
            logits,
            how.temperature,
            how.top_k,
            how.top_p,
            how.min_p,
            how.key,
            logits if how.ids is None else how.ids,
            tokens,
            vocabulary,
            logits.stride(0),
            GREEDY=how.all_greedy,
            FILTERED=not (how.unfiltered or how.all_greedy),
            NAMED=how.ids is not None,
            BLOCK=block,
            **_options(warps),
        )
        return tokens

    def mask_logits(self, logits: Tensor, allowed: Tensor) -> None:
        """Bans in place what a grammar does not allow: logits float32 [m, vocabulary]; allowed
        int32 [m, words], 32 tokens a word, the lowest bit first."""
        m, vocabulary = logits.shape
        block, warps = tiles.flat_tile(vocabulary, logits.dtype, self.target)
        _run(
            sampling.mask_kernel,
            (m, triton.cdiv(vocabulary, block)),
            logits,
            allowed,
            vocabulary,
            logits.stride(0),
            allowed.shape[1],
            BLOCK=block,
            **_options(warps),
        )

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel on the current stream."""
    kernel[grid](*arguments, **constants)


def _options(num_warps: int) -> dict[str, Any]:
    """Fused multiply-adds are asked for: versions of Triton differ in what they do unasked."""
    return {"num_warps": num_warps, "enable_fp_fusion": True}


def _launch(tile: tiles.AttentionTile | tiles.ProductTile) -> dict[str, Any]:
    """A tile as arguments of a launch."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "num_stages": tile.num_stages,
        **_options(tile.num_warps),
    }
