"""The CPU back end: `asgl.kernels.api.Kernels` over compiled kernels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from asgl.errors import ConfigError, EngineError
from asgl.kernels.api import (
    ActivationFormat,
    Batch,
    LayerWeights,
    ModelShape,
    Progress,
    QuantizedTensor,
    SamplingBatch,
    WeightFormat,
    quantize,
)
from asgl.kernels.cpu import attention, linear, sampling, weights
from asgl.kernels.cpu.compile import Compiled
from asgl.kernels.cpu.cores import cores, warn_of_spinning_threads
from asgl.kernels.cpu.dots import GROUP, OUTPUTS
from asgl.kernels.cpu.layers import (
    ATTENTION_NORM,
    COLUMNS,
    DOWN,
    GATE_UP,
    KEYS,
    LAYER_PHASES,
    MLP_NORM,
    OUT,
    QKV,
    QKV_BIAS,
    VALUES,
)
from asgl.kernels.cpu.llvm import PER_WORD
from asgl.kernels.cpu.threads import Team
from asgl.kernels.cpu.units import QUERIES
from asgl.kernels.cpu.weights import Packed, Table
from asgl.kernels.memory import Arena

MAX_LAYERS = 256


class _Units:
    """The units of attention of a batch, as addresses; made once for all layers of a step."""

    def __init__(self, batch: Batch, arrays: tuple[Any, ...]) -> None:
        self.batch = batch
        units, tokens, limits, merged, parts, order, self.partials = arrays
        self._keep = arrays
        self.fields = {
            "units": units.ctypes.data,
            "unit_count": len(units),
            "tokens": tokens.ctypes.data,
            "limits": limits.ctypes.data,
            "merged": merged.ctypes.data,
            "merged_count": len(merged),
            "parts": parts.ctypes.data,
            "order": order.ctypes.data,
            "indices": batch.kv_indices.data_ptr(),
        }


class Fused:
    """The layers of a model as a table of addresses."""

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        rope: Tensor,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> None:
        self.heads, self.kv_heads, self.head_dim, self.eps = heads, kv_heads, head_dim, eps
        self.norm, self.rope, self.f = norm, rope, layers[0].down.k
        self._layers = layers
        self.table = np.zeros((len(layers), COLUMNS), np.int64)
        for row, layer in zip(self.table, layers, strict=True):
            row[ATTENTION_NORM] = layer.attention_norm.data_ptr()
            row[MLP_NORM] = layer.mlp_norm.data_ptr()
            row[QKV_BIAS] = layer.qkv_bias.data_ptr() if layer.qkv_bias is not None else 0
            for column, weight in (
                (QKV, layer.qkv),
                (OUT, layer.o),
                (GATE_UP, layer.gate_up),
                (DOWN, layer.down),
            ):
                row[column : column + 2] = weight.address, weight.bits
        self._caches: Sequence[tuple[Tensor, Tensor]] | None = None

    def table_at(self, caches: Sequence[tuple[Tensor, Tensor]]) -> int:
        """The address of the table with these caches in it."""
        if self._caches is not caches:
            for row, (keys, values) in zip(self.table, caches, strict=True):
                row[[KEYS, VALUES]] = keys.data_ptr(), values.data_ptr()
            self._caches = caches
        return self.table.ctypes.data


class CpuKernels:
    """`asgl.kernels.api.Kernels` for the CPU: Numba kernels, with products of bfloat16 where the
    processor has them.

    Keys and values are bfloat16. `weights` is how linear layers are held: "dense" (bfloat16),
    "int8" or "int4" (rounded to so many bits, unless the model file has as few), or "auto": as the
    model file has them. `deterministic`: what a token computes does not depend, in any bit, on the
    other rows of the batch, nor on what is shared or cached. `activations` "int8": inputs of linear
    layers of 4 bits, but not of the head, are rounded to 8 bits, if that is faster here.
    `progress(kernel, ready, all)` is told of the compiling, which takes a minute once per
    installation; it hears nothing where the cache has all kernels.

    `threads`: by default as many as torch has (OMP_NUM_THREADS), at most one for each core that the
    process may use.

    ConfigError for another dtype or a device that is no CPU. EngineError from every method in a
    forked child, where the threads are missing.
    """

    name = "cpu"

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        weights: WeightFormat | Literal["auto"] = "auto",
        deterministic: bool = False,
        activations: ActivationFormat = "auto",
        progress: Progress | None = None,
        threads: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type != "cpu":
            raise ConfigError(f"the CPU kernels run on device 'cpu', not on {str(device)!r}")
        if dtype != torch.bfloat16:
            raise ConfigError(
                f"the CPU kernels hold keys and values in bfloat16, not in {dtype}; use "
                "dtype='bfloat16', or kernels='reference' for float32"
            )
        self.kv_dtype = dtype
        self.weights: WeightFormat = "dense" if weights == "auto" else weights
        self._convert = weights != "auto"
        self._deterministic = deterministic
        self._byte_inputs = linear.BYTES and activations == "int8"
        self.activations: ActivationFormat = "auto"
        self._pid = os.getpid()
        allowed = cores()
        if threads is None:
            warn_of_spinning_threads(torch.get_num_threads(), allowed)
        self.threads = min(torch.get_num_threads(), allowed) if threads is None else threads
        if self.threads < 1:
            raise ConfigError(f"threads must be 1 or more, not {threads}")
        self._team = Team(self.threads, phases=MAX_LAYERS * LAYER_PHASES + 1)
        self._compiled = Compiled(self._team, progress)
        self._elements = torch.bfloat16 if PER_WORD == 2 else torch.float32
        self._arena = Arena()
        self._buffers: dict[str, Tensor] = {}
        self._units: _Units | None = None

    @staticmethod
    def check_shape(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> None:
        """ConfigError if these kernels cannot compute models of that shape."""
        _check_head_dim(shape.head_dim)
        for width in shape.widths:
            weights.check_width(width)

    # --- weights ---

    def pack_linear(self, weight: Tensor | QuantizedTensor) -> Packed:
        packed = weights.pack(
            self._converted(weight, "linear"), self._arena, self._compiled.fill_tiles
        )
        if not self._convert:
            self.weights = "dense" if packed.bits == 16 else "int8" if packed.bits == 8 else "int4"
        if self._byte_inputs and packed.bits == 4:
            self.activations = "int8"
        return packed

    def pack_head(self, weight: Tensor | QuantizedTensor) -> Packed:
        return weights.pack(self._converted(weight, "head"), self._arena, self._compiled.fill_tiles)

    def _converted(
        self, weight: Tensor | QuantizedTensor, use: Literal["linear", "head"]
    ) -> Tensor | QuantizedTensor:
        """The weight in the format asked for. Heads are never rounded: a logit is what they are
        for."""
        if not self._convert or (
            use == "head" and isinstance(weight, QuantizedTensor) and self.weights != "dense"
        ):
            return weight
        if self.weights == "dense" or use == "head":
            return (
                weight.dequantize(torch.float32) if isinstance(weight, QuantizedTensor) else weight
            )
        bits = 8 if self.weights == "int8" else 4
        if not isinstance(weight, QuantizedTensor):
            return quantize(weight, bits)
        return weight if weight.bits <= bits else quantize(weight.dequantize(torch.float32), bits)

    def pack_embedding(self, weight: Tensor | QuantizedTensor) -> Table:
        return weights.table(weight)

    # --- layers ---

    def embed(self, table: Table, input_ids: Tensor) -> Tensor:
        self._check_process()
        n = input_ids.shape[0]
        out = torch.empty(n, table.d)
        self._compiled.embed(
            ids=input_ids.data_ptr(),
            rows=n,
            d=table.d,
            table=table.memory.data_ptr(),
            kind=table.kind,
            scale=table.scale.data_ptr() if table.scale is not None else 0,
            offset=table.offset.data_ptr() if table.offset is not None else 0,
            share=table.share,
            out=out.data_ptr(),
        )
        return out

    def add_rms_norm(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor:
        self._check_process()
        n, d = hidden.shape
        out = self._buffer("norm", (n, d), self._elements)
        self._compiled.add_rms_norm(
            hidden=hidden.data_ptr(),
            delta=delta.data_ptr() if delta is not None else 0,
            rows=n,
            d=d,
            weight=weight.data_ptr(),
            eps=eps,
            out=out.data_ptr(),
        )
        return out

    def linear(self, x: Tensor, weight: Packed) -> Tensor:
        return self._product("linear", x, weight, byte_inputs=self._byte_inputs)

    def head(self, x: Tensor, weight: Packed) -> Tensor:
        return self._product("head", x, weight)

    def head_some(self, x: Tensor, weight: Packed, token_ids: Tensor) -> Tensor:
        """The very numbers of `head`: the tiles that have these tokens are put together to a weight
        of their own."""
        tiles, place = torch.unique(token_ids // OUTPUTS, return_inverse=True)
        held = weight.memory.view(-(-weight.outputs // OUTPUTS), -1)
        memory = self._buffer("some tiles", (len(tiles), held.shape[1]), torch.uint8)
        np.take(
            held.numpy(), tiles.numpy(), axis=0, out=memory.numpy(), mode="clip"
        )  # torch would wake threads of its own
        some = Packed(memory, memory.data_ptr(), weight.bits, len(tiles) * OUTPUTS, weight.k)
        return self._product("some", x, some)[:, place * OUTPUTS + token_ids % OUTPUTS]

    def _product(
        self, name: str, x: Tensor, weight: Packed, *, byte_inputs: bool = False
    ) -> Tensor:
        self._check_process()
        x = x.to(self._elements).contiguous()
        rows = x.shape[0]
        out = self._buffer(name, (rows, weight.outputs), torch.float32)
        scratch, room = self._scratch(linear.room(weight.k))
        self._compiled.linear(
            x=x.data_ptr(),
            rows=rows,
            weight=weight.address,
            bits=weight.bits,
            k=weight.k,
            outputs=weight.outputs,
            out=out.data_ptr(),
            inputs=self._inputs(rows, weight.k),
            scratch=scratch,
            room=room,
            packed_only=self._deterministic,
            byte_inputs=byte_inputs,
        )
        return out

    def rope_and_store(
        self, qkv: Tensor, batch: Batch, rope: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        self._check_process()
        _, kv_heads, head_dim = k_cache.shape
        n, heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads
        _check_head_dim(head_dim)
        qkv = qkv.float().contiguous()
        q = self._buffer("q", (n, heads, head_dim), self._elements)
        self._compiled.rope_and_store(
            qkv=qkv.data_ptr(),
            rows=n,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            rope=rope.data_ptr(),
            k_cache=k_cache.data_ptr(),
            v_cache=v_cache.data_ptr(),
            out=q.data_ptr(),
        )
        return q

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, scale: float
    ) -> Tensor:
        self._check_process()
        n, heads, head_dim = q.shape
        kv_heads = k_cache.shape[1]
        _check_head_dim(head_dim)
        q = q.to(self._elements).contiguous()
        units = self._units_of(batch, heads // kv_heads)
        out = self._buffer("attention", (n, heads * head_dim), self._elements)
        partials = self._buffer("partials", (units.partials, heads, head_dim + 16), torch.float32)
        scratch, room = self._scratch(
            attention.room(max(QUERIES, heads // kv_heads), kv_heads, head_dim)
        )
        self._compiled.attention(
            **units.fields,
            q=q.data_ptr(),
            k_cache=k_cache.data_ptr(),
            v_cache=v_cache.data_ptr(),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=scale,
            partials=partials.data_ptr(),
            out=out.data_ptr(),
            scratch=scratch,
            room=room,
            packed_only=self._deterministic,
        )
        return out

    def _units_of(self, batch: Batch, group: int) -> _Units:
        if self._units is None or self._units.batch is not batch:
            bounds = np.array([(start, end) for start, end, _ in batch.shared], np.int64).reshape(
                -1, 2
            )
            pointers = np.zeros(len(batch.shared) + 1, np.int64)
            np.cumsum([len(rows) for _, _, rows in batch.shared], out=pointers[1:])
            rows = np.array([row for _, _, rows in batch.shared for row in rows], np.int64)
            self._units = _Units(
                batch,
                self._compiled.plan_units(
                    batch.qo_indptr.numpy(),
                    batch.kv_indptr.numpy(),
                    bounds,
                    pointers,
                    rows,
                    group,
                    self.threads,
                    self._deterministic,
                ),
            )
        return self._units

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        self._check_process()
        n, width = gate_up.shape[0], gate_up.shape[1] // 2
        gate_up = gate_up.float().contiguous()
        out = self._buffer("gated", (n, width), self._elements)
        self._compiled.silu_and_mul(
            gate_up=gate_up.data_ptr(),
            rows=n,
            width=width,
            out=out.data_ptr(),
        )
        return out

    # --- all layers at once ---

    def fuse(
        self,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        rope: Tensor,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> Fused | None:
        _check_head_dim(head_dim)
        if len(layers) > MAX_LAYERS or layers[0].down.k % OUTPUTS:
            return None
        fused = Fused(layers, norm, rope, heads, kv_heads, head_dim, eps)
        self._team.keep.append(fused.table)
        self._compiled.layers.need(len(layers) * LAYER_PHASES + 1)
        return fused

    def run_layers(
        self,
        fused: Fused,
        hidden: Tensor,
        batch: Batch,
        caches: Sequence[tuple[Tensor, Tensor]],
        at: Tensor | None,
    ) -> Tensor | None:
        self._check_process()
        rows, d = hidden.shape
        heads, head_dim, f = fused.heads, fused.head_dim, fused.f
        qkv_width, width, wanted = (
            (heads + 2 * fused.kv_heads) * head_dim,
            heads * head_dim,
            0 if at is None else len(at),
        )
        most = max(rows, wanted)  # a token may be wanted more than once
        units = self._units_of(batch, heads // fused.kv_heads)
        scratch, room = self._scratch(
            max(
                attention.room(max(QUERIES, heads // fused.kv_heads), fused.kv_heads, head_dim),
                linear.room(max(d, f, width)),
            )
        )
        elements, floats = self._elements, torch.float32
        out = self._buffer("norm", (wanted, d), elements)
        self._compiled.layers(
            table=fused.table_at(caches),
            layers=len(fused.table),
            hidden=hidden.data_ptr(),
            rows=rows,
            d=d,
            f=f,
            heads=heads,
            kv_heads=fused.kv_heads,
            head_dim=head_dim,
            eps=fused.eps,
            rope=fused.rope.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            norm=fused.norm.data_ptr(),
            packed_only=self._deterministic,
            byte_inputs=self._byte_inputs,
            normed=self._room("normed", (most, d), elements),
            qkv=self._room("qkv", (rows, qkv_width), floats),
            q=self._room("q", (rows, width), elements),
            **units.fields,
            scale=head_dim**-0.5,
            partials=self._room("partials", (units.partials, heads, head_dim + 16), floats),
            attended=self._room("attention", (rows, width), elements),
            gated=self._room("gated", (most, f), elements),
            wanted=wanted,
            at=at.data_ptr() if at is not None else 0,
            kept_attended=self._room("kept attention", (wanted, width), elements),
            kept_hidden=self._room("kept hidden", (wanted, d), floats),
            out=out.data_ptr(),
            inputs=self._room(
                "inputs", (most, max(d, f, width) // GROUP * linear.GROUP_INPUTS), torch.uint8
            ),
            scratch=scratch,
            room=room,
        )
        return None if at is None else out

    # --- logits ---

    def log_softmax(self, logits: Tensor) -> Tensor:
        self._check_process()
        logits = logits.contiguous()
        m, n = logits.shape
        out = torch.empty_like(logits)
        self._compiled.log_softmax(logits=logits.data_ptr(), m=m, n=n, out=out.data_ptr())
        return out

    def sample(self, logits: Tensor, how: SamplingBatch) -> Tensor:
        self._check_process()
        logits = logits.contiguous()
        m, n = logits.shape
        for edits, repetition in ((how.repetition, 1), (how.edits, 0)):
            if edits is not None:
                self._compiled.edit(
                    logits.data_ptr(), n, *(part.numpy() for part in edits), repetition
                )
        ranks = self._buffer("ranks", (self.threads, sampling.rank_words(n)), torch.int64)
        out = torch.empty(m, dtype=torch.int64)
        self._compiled.sample(
            logits=logits.data_ptr(),
            m=m,
            n=n,
            temperature=how.temperature.data_ptr(),
            top_k=how.top_k.data_ptr(),
            top_p=how.top_p.data_ptr(),
            min_p=how.min_p.data_ptr(),
            keys=how.key.data_ptr(),
            ids=0 if how.ids is None else how.ids.data_ptr(),
            greedy=how.all_greedy,
            ranks=ranks.data_ptr(),
            out=out.data_ptr(),
        )
        return out

    def synchronize(self) -> None:
        """Nothing is ever under way when a method returns."""

    # --- memory ---

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(
                "this process was forked from one that had opened the CPU kernels, whose threads "
                "did not come along; open the Runtime in the child, or start it by "
                "multiprocessing's 'spawn'"
            )

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory that the next call for the same name gives out again."""
        size = 1
        for extent in shape:
            size *= extent
        held = self._buffers.get(name)
        if held is None or held.shape[0] < size:
            held = self._buffers[name] = torch.empty(max(size, 64), dtype=dtype)
        return held[:size].view(shape)

    def _room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """The address of a buffer."""
        return self._buffer(name, shape, dtype).data_ptr()

    def _inputs(self, rows: int, k: int) -> int:
        """Room for what packed weights want to know of rows of k inputs."""
        return self._room("inputs", (rows, k // GROUP * linear.GROUP_INPUTS), torch.uint8)

    def _scratch(self, room: int) -> tuple[int, int]:
        """Room for each thread: the address of the first's, and the distance from one to the
        next."""
        room = (room + 4095) // 4096 * 4096
        return self._buffer("scratch", (self.threads * room,), torch.uint8).data_ptr(), room


def _check_head_dim(head_dim: int) -> None:
    if head_dim % 32:
        raise ConfigError(
            f"the CPU kernels need heads of a multiple of 32, not of {head_dim}; use "
            "kernels='reference'"
        )
