"""The CPU back end: `asgl.kernels.api.Kernels` over compiled kernels."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from asgl.errors import ConfigError, EngineError
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
from asgl.kernels.cpu import attention, sampling, weights
from asgl.kernels.cpu.compile import Compiled
from asgl.kernels.cpu.cores import cores, warn_of_spinning_threads
from asgl.kernels.cpu.llvm import PER_WORD
from asgl.kernels.cpu.recorder import Linear, Recorded, Recorder, Unrecordable, Value
from asgl.kernels.cpu.threads import Team
from asgl.kernels.cpu.tiles import OUTPUTS
from asgl.kernels.cpu.weights import Packed, Table
from asgl.kernels.memory import Arena
from asgl.kernels.quantized import QuantizedTensor, quantize, stacked

_MOST_PHASES = 1 << 13
"""Of a job."""


class _Plan:
    """The units of attention of a batch for a window, as addresses; made once for all layers of a
    step."""

    def __init__(self, batch: Batch, arrays: tuple[Any, ...]) -> None:
        units, tokens, limits, merged, parts, order, self.partials = arrays
        self._keep = batch, arrays
        fields = {
            "units": units.ctypes.data,
            "count": len(units),
            "tokens": tokens.ctypes.data,
            "limits": limits.ctypes.data,
            "merged": merged.ctypes.data,
            "merged_count": len(merged),
            "parts": parts.ctypes.data,
            "order": order.ctypes.data,
            "indices": batch.kv_indices.data_ptr(),
        }
        self.row = [fields[name] for name in attention.PLAN]


class CpuKernels:
    """`asgl.kernels.api.Kernels` for the CPU: Numba kernels, with products of bfloat16 where the
    processor has them.

    Keys and values are bfloat16. `weights` is how linear layers are held: "dense" (bfloat16),
    "int8" or "int4" (rounded to so many bits, unless the model file has as few), or "auto": as the
    model file has them. `deterministic`: what a token computes does not depend, in any bit, on the
    other rows of the batch, nor on what is shared or cached. `activations` "int8": inputs of linear
    layers of few bits, but not of the head, are rounded to 8 bits, if that is faster here.
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
        self._byte_inputs = activations == "int8"
        self.activations: ActivationFormat = "auto"
        self._pid = os.getpid()
        allowed = cores()
        if threads is None:
            warn_of_spinning_threads(torch.get_num_threads(), allowed)
        self.threads = min(torch.get_num_threads(), allowed) if threads is None else threads
        if self.threads < 1:
            raise ConfigError(f"threads must be 1 or more, not {threads}")
        self._team = Team(self.threads, phases=_MOST_PHASES)
        self._compiled = Compiled(self._team, progress)
        self._elements = torch.bfloat16 if PER_WORD == 2 else torch.float32
        self._arena = Arena()
        self._tied: tuple[weakref.ref[Tensor], Packed] | None = None
        """What was packed last as an embedding or a head, and its tiles."""
        self._buffers: dict[str, Tensor] = {}
        self._planned: Batch | None = None
        self._plans: dict[tuple[int, int], _Plan] = {}
        """Of the batch that was planned, by query heads of a KV head and window."""
        self._running: list[Recorded] = []
        """What a helper that is late may still read."""

    @staticmethod
    def check_shape(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> None:
        """ConfigError if these kernels cannot compute models of that shape."""
        _check_head_dim(shape.head_dim)
        for width in shape.widths:
            weights.check_width(width)

    # --- weights ---

    def pack_linear(self, *parts: Tensor | QuantizedTensor, bias: Tensor | None = None) -> Linear:
        converted = [self._converted(part, "linear") for part in parts]
        if len(parts) > 1 and (one := _joined(converted)) is not None:
            converted = [one]
        packed = tuple(self._pack(part) for part in converted)
        for part in packed:
            if not self._convert:
                self.weights = "dense" if part.bits == 16 else "int4" if part.bits == 4 else "int8"
            if self._byte_inputs and self._compiled.formats.need(part.code, byte_inputs=True):
                self.activations = "int8"
        return Linear(packed, bias)

    def pack_head(self, weight: Tensor | QuantizedTensor) -> Linear:
        return Linear((self._pack_once(self._converted(weight, "head")),), None)

    def _pack_once(self, weight: Tensor | QuantizedTensor) -> Packed:
        """The same tiles for an embedding and a head that are one matrix."""
        numbers = weight.quants if isinstance(weight, QuantizedTensor) else weight
        if self._tied is None or self._tied[0]() is not numbers:
            self._tied = weakref.ref(numbers), self._pack(weight)
        return self._tied[1]

    def _pack(self, weight: Tensor | QuantizedTensor) -> Packed:
        packed = weights.pack(weight, self._arena, self._compiled.formats, self._compiled.pack)
        self._compiled.formats.need(packed.code)
        return packed

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
        return weights.table(weight, self._pack_once)

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
            tiled=table.tiled,
            code=table.code,
            formats=self._compiled.formats.address,
            out=out.data_ptr(),
        )
        return out

    def add_rms_norm(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor:
        recorder = self._recorder(hidden.shape[1])
        added = 0 if delta is None else recorder.register("delta")
        out = recorder.write_norm(recorder.hidden, added, weight, hidden.shape[1], eps)
        recorded = Recorded(recorder, out)
        recorded.registers[added] = 0 if delta is None else delta.data_ptr()
        return self._once(recorded, hidden)

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        return self._product(x, weight)

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate_up = gate_up.float().contiguous()
        recorder = self._recorder(0)
        out = recorder.write_gate(Value(recorder.hidden, gate_up.shape[1]), activation)
        return self._once(Recorded(recorder, out), gate_up)

    def rotate_and_store(
        self, qkv: Tensor, batch: Batch, rotation: Rotation, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        _check_head_dim(rotation.head_dim)
        qkv = torch.clone(qkv.float(), memory_format=torch.contiguous_format)  # it is changed
        n, heads = qkv.shape[0], qkv.shape[1] // rotation.head_dim - 2 * rotation.kv_heads
        recorder = self._recorder(0)
        out = recorder.rotate_and_store(Value(recorder.hidden, qkv.shape[1]), rotation)
        recorded = Recorded(recorder, out)
        self.run(recorded, qkv, batch, [(k_cache, v_cache)], None)
        return recorded.result(n, self._elements).view(n, heads, rotation.head_dim)

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, attending: Attending
    ) -> Tensor:
        n, heads, head_dim = q.shape
        _check_head_dim(head_dim)
        q = q.to(self._elements).contiguous()
        recorder = self._recorder(0)
        recorder.heads = heads, k_cache.shape[1], head_dim
        recorded = Recorded(
            recorder, recorder.attention(Value(recorder.hidden, heads * head_dim), attending)
        )
        self.run(recorded, q, batch, [(k_cache, v_cache)], None)
        return recorded.result(n)

    def _plan(self, batch: Batch, group: int, window: int) -> _Plan:
        """The plan of a batch; those of the last batch are kept."""
        if self._planned is not batch:
            self._planned, self._plans = batch, {}
        plan = self._plans.get((group, window))
        if plan is None:
            bounds = np.array([(start, end) for start, end, _ in batch.shared], np.int64)
            pointers = np.zeros(len(batch.shared) + 1, np.int64)
            np.cumsum([len(rows) for _, _, rows in batch.shared], out=pointers[1:])
            rows = np.array([row for _, _, rows in batch.shared for row in rows], np.int64)
            arrays = self._compiled.plan_units(
                batch.qo_indptr.numpy(),
                batch.kv_indptr.numpy(),
                bounds.reshape(-1, 2),
                pointers,
                rows,
                group,
                window,
                self.threads,
                self._deterministic,
            )
            plan = self._plans[group, window] = _Plan(batch, arrays)
        return plan

    # --- all layers at once ---

    def record(self, forward: Callable[[Any], object], width: int, eps: float) -> Recorded | None:
        recorder = self._recorder(width, eps)
        try:
            result = forward(recorder)
        except Unrecordable:
            return None
        if recorder.phases > _MOST_PHASES:
            return None
        assert isinstance(result, Value)
        return Recorded(recorder, result)

    def run(
        self,
        recorded: Recorded,
        hidden: Tensor,
        batch: Batch | None,
        caches: Sequence[tuple[Tensor, Tensor]],
        at: Tensor | None,
    ) -> Tensor | None:
        self._check_process()
        rows, wanted, partials = hidden.shape[0], 0 if at is None else len(at), 0
        if batch is not None:
            for i, window in enumerate(recorded.windows):
                plan = self._plan(batch, recorded.group, window)
                recorded.plans[i] = plan.row
                partials = max(partials, plan.partials)
        # a token may be wanted more than once
        recorded.make_room(max(rows, wanted), partials, hidden.data_ptr())
        recorded.use_caches(caches)
        scratch, room = self._scratch(recorded.scratch)
        self._running.append(recorded)
        self._compiled.operations.need(recorded.phases)
        self._compiled.operations(
            program=recorded.address,
            rows=rows,
            wanted=wanted,
            at=0 if at is None else at.data_ptr(),
            positions=0 if batch is None else batch.positions.data_ptr(),
            slots=0 if batch is None else batch.slots.data_ptr(),
            packed_only=self._deterministic,
            scratch=scratch,
            room=room,
        )
        if self._team.idle:
            del self._running[:-1]
        return None if at is None else recorded.result(wanted)

    def _recorder(self, width: int, eps: float = 0.0) -> Recorder:
        formats = self._compiled.formats
        return Recorder(formats, byte_inputs=self._byte_inputs, d=width, eps=eps)

    def _once(self, recorded: Recorded, x: Tensor) -> Tensor:
        """Runs what needs no batch over the rows x."""
        self.run(recorded, x, None, (), None)
        return recorded.result(x.shape[0])

    def _product(self, x: Tensor, weight: Linear, *, exact: bool = False) -> Tensor:
        """x . weight. exact: not with inputs of 8 bits."""
        x = x.float().contiguous()
        if weight.recorded is None:
            recorder = self._recorder(0)
            source, out = Value(recorder.hidden, weight.k), recorder.value("out", weight.outputs)
            out = recorder.write_linear(source, weight, out, exact=exact)
            weight.recorded = Recorded(recorder, out)
        return self._once(weight.recorded, x)

    def head(self, x: Tensor, weight: Linear) -> Tensor:
        return self._product(x, weight, exact=True)

    def head_some(self, x: Tensor, weight: Linear, token_ids: Tensor) -> Tensor:
        """The very numbers of `head`: the tiles that have these tokens are put together to a weight
        of their own."""
        tiles, place = torch.unique(token_ids // OUTPUTS, return_inverse=True)
        some = self._tiles_of(weight, len(tiles))
        (whole,), (part,) = weight.parts, some.parts
        held = whole.memory.view(-(-whole.outputs // OUTPUTS), -1)
        room = part.memory.view(-1, held.shape[1])[: len(tiles)]
        np.take(
            held.numpy(), tiles.numpy(), axis=0, out=room.numpy(), mode="clip"
        )  # torch would wake threads of its own
        product = self._product(x, some, exact=True)
        return product[:, place * OUTPUTS + token_ids % OUTPUTS]

    def _tiles_of(self, weight: Linear, count: int) -> Linear:
        """A weight with room for that many tiles of another one, or up to twice as many, so that
        there are few of them; kept, since to record a product takes longer than to compute it."""
        rooms = 1 << (count - 1).bit_length()
        if (some := weight.some.get(rooms)) is None:
            (whole,) = weight.parts
            size = len(whole.memory) // -(-whole.outputs // OUTPUTS)
            memory = torch.zeros(rooms * size, dtype=torch.uint8)
            part = replace(whole, memory=memory, address=memory.data_ptr(), outputs=rooms * OUTPUTS)
            some = weight.some[rooms] = Linear((part,), None)
        return some

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

    def _scratch(self, room: int) -> tuple[int, int]:
        """Room for each thread: the address of the first's, and the distance from one to the
        next."""
        room = (room + 4095) // 4096 * 4096
        return self._buffer("scratch", (self.threads * room,), torch.uint8).data_ptr(), room


def _joined(parts: Sequence[Tensor | QuantizedTensor]) -> Tensor | QuantizedTensor | None:
    """The rows of all parts as one matrix; None if they are of several formats, or one but the last
    does not fill its tiles."""
    if any(part.shape[0] % OUTPUTS for part in parts[:-1]):
        return None
    dense = [part for part in parts if isinstance(part, Tensor)]
    if len(dense) == len(parts):
        return torch.cat(dense)
    quantized = [part for part in parts if isinstance(part, QuantizedTensor)]
    if len(quantized) < len(parts) or len({part.format for part in quantized}) > 1:
        return None
    return stacked(quantized)


def _check_head_dim(head_dim: int) -> None:
    if head_dim % 32:
        raise ConfigError(
            f"the CPU kernels need heads of a multiple of 32, not of {head_dim}; use "
            "kernels='reference'"
        )
