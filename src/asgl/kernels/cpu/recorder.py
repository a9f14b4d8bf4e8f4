"""Forward passes as tables of operations: written down once, run at each step.

See operations.py for what a table is.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asgl.kernels.api import Activation, Attending, ExpertWeights, Rotation
from asgl.kernels.cpu import attention, experts, operations
from asgl.kernels.cpu.activations import CODES
from asgl.kernels.cpu.formats import BYTE, DENSE_CODE, GROUP_BYTES, WHOLE, Formats
from asgl.kernels.cpu.linear import (
    ADD,
    AS_THEY_ARE,
    BYTES,
    DENSE,
    GATE,
    SCRATCH,
    STORE,
    described_bytes,
)
from asgl.kernels.cpu.linear import WHOLE as WHOLE_INPUTS
from asgl.kernels.cpu.llvm import ELEMENT, LANES
from asgl.kernels.cpu.tiles import GROUP, OUTPUTS
from asgl.kernels.cpu.units import QUERIES
from asgl.kernels.cpu.weights import Packed

_ALIGNED = 64


class Unrecordable(Exception):
    """What a model does has no operation."""


@dataclass(slots=True)
class Linear:
    """The weight of a linear layer: matrices of one width, one below the other, and their bias
    float32 [outputs] or None."""

    parts: tuple[Packed, ...]
    bias: Tensor | None
    recorded: Recorded | None = None
    """The product alone, once it was asked for."""
    some: dict[int, Linear] = field(default_factory=dict[int, "Linear"])
    """Weights with room for so many of its tiles."""

    @property
    def outputs(self) -> int:
        return sum(part.outputs for part in self.parts)

    @property
    def k(self) -> int:
        return self.parts[0].k


@dataclass(frozen=True, slots=True)
class Value:
    """What an operation leaves in a register: float32 [rows, width]."""

    register: int
    width: int


class Recorder:
    """Writes operations down, as `kernels.forward.Verbs` for a model whose residual stream is of
    width d and has norms of that `eps`.

    byte_inputs: whether inputs of linear layers have 8 bits where that is of use.
    """

    only_stores = False

    def __init__(self, formats: Formats, *, byte_inputs: bool, d: int, eps: float) -> None:
        self._formats, self._byte_inputs, self._d, self._eps = formats, byte_inputs, d, eps
        self.rows: list[list[int]] = []
        self.phases = 0
        self.registers: dict[str, int] = {}
        self.rooms: dict[int, int] = {}
        """Bytes that a register needs for each new token."""
        self.fixed: dict[int, int] = {}
        """Bytes that it needs beside those."""
        self.windows: list[int] = []
        """Of the plans of attention; 0 for none."""
        self.group = 1
        self.scratch = SCRATCH
        self.partial_width = 0
        """float32 of a partial result of attention."""
        self.cached: list[tuple[int, int]] = []
        """Rows that read and write the cache, and of which layer."""
        self.kept: list[Any] = []
        """What the rows have addresses of."""
        self.hidden = self.register("hidden")
        self._layer, self._wanted, self._attention = 0, 0, 0
        self.heads = 0, 0, 0
        self._described: dict[int, tuple[int, int]] = {}
        """What was described last, by the kind: the register, and its width."""

    # --- verbs ---

    def start_layer(self, layer: int) -> None:
        self._layer = layer

    def norm(self, weight: Tensor | None) -> Value:
        return self.write_norm(self.hidden, 0, weight, self._d, self._eps)

    def linear(self, x: Value, weight: Linear) -> Value:
        return self.write_linear(x, weight, self.value("product", weight.outputs))

    def gated(self, x: Value, weight: Linear, activation: Activation) -> Value:
        width = weight.outputs // 2
        out = self.value("gated", width)
        if len(weight.parts) == 1 and width % OUTPUTS == 0:
            return self.write_linear(x, weight, out, GATE, CODES[activation])
        return self.write_gate(self.linear(x, weight), activation)

    def rotate_and_store(self, qkv: Value, rotation: Rotation) -> Value:
        kv_heads, head_dim = rotation.kv_heads, rotation.head_dim
        heads = qkv.width // head_dim - 2 * kv_heads
        out = self.value("queries", heads * head_dim, ELEMENT)
        self.heads = heads, kv_heads, head_dim
        rope, q_norm = rotation.rope, rotation.q_norm
        self.cached.append((len(self.rows), self._layer))
        self.write(
            "rotate", qkv.register, out, keys=0, values=0, heads=heads, kv_heads=kv_heads,
            head_dim=head_dim, rope=self._address(rope),
            half=0 if rope is None else rope.shape[1] // 2, q_norm=self._address(q_norm),
            k_norm=self._address(rotation.k_norm), normed=0 if q_norm is None else len(q_norm),
            q_scale=self._address(rotation.q_scale), eps=rotation.eps,
        )  # fmt: skip
        return out

    def attention(self, q: Value, attending: Attending) -> Value:
        heads, kv_heads, head_dim = self.heads
        out = self.value("attended", heads * head_dim)
        window = attending.window or 0
        if window not in self.windows:
            self.windows.append(window)
        self.group = heads // kv_heads
        self.partial_width = max(self.partial_width, heads * (head_dim + LANES))
        room = attention.room(max(QUERIES, self.group), kv_heads, head_dim)
        self.scratch = max(self.scratch, room)
        self.cached.append((len(self.rows), self._layer))
        self._attention = len(self.rows)
        self.write(
            "attention", q.register, out, keys=0, values=0, heads=heads, kv_heads=kv_heads,
            head_dim=head_dim, window=window, plan=self.windows.index(window),
            sinks=self._address(attending.sinks), partials=self.register("partials"), last=0,
            scale=attending.scale, softcap=attending.softcap or 0.0,
        )  # fmt: skip
        return out

    def keep_wanted(self, x: Value) -> Value:
        self.rows[self._attention][operations.column("attention", "last")] = 1
        self._wanted = 1
        out, hidden = self.value("kept", x.width), self.value("kept hidden", self._d)
        self.write("keep", x.register, out, width=x.width)
        self.write("keep", self.hidden, hidden, width=self._d)
        self.hidden = hidden.register
        return out

    def add(self, x: Value, weight: Linear, factor: float = 1.0) -> None:
        out = Value(self.hidden, self._d)
        self.write_linear(x, weight, out, ADD, factor=factor)

    def add_normed(self, x: Value, weight: Linear, norm: Tensor) -> None:
        delta, out = self.linear(x, weight), Value(self.hidden, self._d)
        address = self._address(norm)
        self.write("add_normed", delta.register, out, weight=address, d=self._d, eps=self._eps)

    def add_experts(self, x: Value, weights: ExpertWeights) -> None:
        count, used, d = len(weights.gate_up), weights.used, self._d
        width, hidden = weights.gate_up[0].outputs // 2, Value(self.hidden, d)
        if width % OUTPUTS:
            raise Unrecordable(f"experts of width {width}")
        # exactly: what is rounded here may choose another expert
        logits = self.write_linear(x, weights.router, self.value("logits", count), exact=True)
        routed = self.register("routed")
        self.rooms[routed] = max(self.rooms.get(routed, 0), 8 * experts.routed_words(1, 0, used))
        self.fixed[routed] = 8 * experts.routed_words(0, count, used)
        self.write(
            "route", logits.register, Value(routed, 0), experts=count, used=used,
            over_used=int(weights.over_used), renormalized=int(weights.renormalized),
        )  # fmt: skip
        gathered = self.value("gathered", used * d)
        self.write("gather", x.register, gathered, routed=routed, used=used, d=d)
        inner, outer = self.value("inner", used * width), self.value("outer", used * d)
        self._write_experts(
            Value(gathered.register, d), weights.gate_up, inner, used, routed, GATE,
            CODES[weights.activation],
        )  # fmt: skip
        self._write_experts(Value(inner.register, width), weights.down, outer, used, routed)
        self.write("combine", outer.register, hidden, routed=routed, used=used, d=d)
        if weights.shared is not None:
            gate_up, down, router = weights.shared
            share = self.write_linear(x, router, self.value("share", 1), exact=True)
            inner = self.gated(x, gate_up, weights.activation)
            delta = self.write_linear(inner, down, self.value("delta", d))
            own = share.register
            self.write("add_share", delta.register, hidden, share=own, d=d)

    # --- operations ---

    def register(self, name: str) -> int:
        """The number of the register of that name."""
        return self.registers.setdefault(name, len(self.registers) + 1)

    def value(self, name: str, width: int, element: int = 4) -> Value:
        """A value in the register of that name, which gets room for it."""
        number = self.register(name)
        self.rooms[number] = max(self.rooms.get(number, 0), width * element)
        return Value(number, width)

    def write(self, name: str, x: int, out: Value, **fields: float) -> None:
        """Writes an operation down."""
        row = [0] * operations.WIDTH
        row[0], row[1] = operations.KINDS[name], self.phases
        fields |= {"wanted": self._wanted, "x": x, "out": out.register}
        parts = [part.partition(":") for part in operations.FIELDS[name].split()]
        kinds = {field: kind for field, _, kind in parts}
        if fields.keys() != kinds.keys():
            raise TypeError(f"{name} takes {', '.join(kinds)}, not {', '.join(fields)}")
        for column, (key, kind) in enumerate(kinds.items(), operations.FIRST):
            value = fields[key]
            row[column] = _float_bits(value) if kind else int(value)
        self.rows.append(row)
        self.phases += operations.PHASES.get(name, 1)
        if name != "describe":
            own = {kind for kind, (source, _) in self._described.items() if source == out.register}
            for kind in own:
                del self._described[kind]

    def write_norm(self, x: int, delta: int, weight: Tensor | None, d: int, eps: float) -> Value:
        """The norm of register x, to which that of `delta` is added first, unless it is 0."""
        out = self.value("normed", d)
        self.write("norm", x, out, delta=delta, weight=self._address(weight), d=d, eps=eps)
        return out

    def write_gate(self, gate_up: Value, activation: Activation) -> Value:
        """The gate's activation times up."""
        out = self.value("gated", gate_up.width // 2)
        code = CODES[activation]
        self.write("gate", gate_up.register, out, width=out.width, activation=code)
        return out

    def write_linear(
        self, x: Value, weight: Linear, out: Value, mode: int = STORE, activation: int = 0,
        factor: float = 1.0, exact: bool = False,
    ) -> Value:  # fmt: skip
        """A linear layer: an operation for each part of its weight, waited for together. exact: not
        with inputs of 8 bits."""
        # what inputs are described as first: an operation between parts would keep them apart
        inputs = [self._inputs(x, part, exact=exact) for part in weight.parts]
        column = 0
        for i, (part, (described, size, multiply)) in enumerate(
            zip(weight.parts, inputs, strict=True)
        ):
            last = i == len(weight.parts) - 1
            self.write(
                "linear", described, out, multiply=multiply, weight=part.address,
                tile_bytes=self._tile_bytes(part), groups=part.k // GROUP,
                outputs=part.outputs // 2 if mode == GATE else part.outputs, mode=mode,
                activation=activation,
                bias=0 if weight.bias is None else weight.bias.data_ptr() + 4 * column,
                joined=i if last else 0, waits=int(last), ldx=size, ldo=4 * out.width,
                column=column, factor=factor,
            )  # fmt: skip
            column += part.outputs
        self.kept.append((weight.parts, weight.bias))  # not it: it may hold what is recorded
        return out

    def _write_experts(
        self, x: Value, weights: Sequence[Linear], out: Value, used: int, routed: int,
        mode: int = STORE, activation: int = 0,
    ) -> None:  # fmt: skip
        """What experts do with x, of which each row has `used` in the order of experts."""
        first = weights[0].parts[0]
        described, size, _ = self._inputs(x, first, used)
        table = np.zeros((len(weights), experts.EXPERT), np.int64)
        for row, weight in zip(table, weights, strict=True):
            part, *others = weight.parts
            if others or part.code != first.code:
                raise Unrecordable("experts of several formats")
            _, multiply = self._multiplier(part, exact=False)
            bias = 0 if weight.bias is None else weight.bias.data_ptr()
            row[:] = multiply, part.address, bias
        self.kept += [weights, table]
        self.write(
            "experts", described, out, routed=routed, weights=table.ctypes.data,
            tile_bytes=self._tile_bytes(first), groups=first.k // GROUP,
            outputs=first.outputs // 2 if mode == GATE else first.outputs, mode=mode,
            activation=activation, used=used, ldx=size,
        )  # fmt: skip

    def _multiplier(self, part: Packed, *, exact: bool) -> tuple[int, int]:
        """What inputs are described as for a matrix, and the address of what multiplies it."""
        row = self._formats.table[part.code]
        if self._byte_inputs and not exact and row[BYTE // 8]:
            return BYTES, int(row[BYTE // 8])
        kind = DENSE if part.code == DENSE_CODE else WHOLE_INPUTS
        return kind, int(row[WHOLE // 8])

    def _inputs(
        self, x: Value, part: Packed, times: int = 1, *, exact: bool = False
    ) -> tuple[int, int, int]:
        """(register, bytes of a row, what multiplies) of inputs as a matrix wants them. times: how
        many rows of x there are for each of the step's."""
        kind, multiply = self._multiplier(part, exact=exact)
        if kind == DENSE and AS_THEY_ARE:
            return x.register, 4 * x.width, multiply
        size = described_bytes(kind, x.width)
        out = self.value(f"inputs {kind}", times * size, 1)
        if self._described.get(kind) != (x.register, x.width):
            self.write("describe", x.register, out, k=x.width, kind=kind, size=size, times=times)
            self._described[kind] = x.register, x.width
        return out.register, size, multiply

    def _tile_bytes(self, part: Packed) -> int:
        return part.k // GROUP * int(self._formats.table[part.code][GROUP_BYTES // 8])

    def _address(self, tensor: Tensor | None) -> int:
        """The address of a tensor, which is kept; 0 of none."""
        if tensor is None:
            return 0
        self.kept.append(tensor)
        return tensor.data_ptr()


class Recorded:
    """What was recorded, and the memory that it works in. result: what is given back."""

    def __init__(self, recorder: Recorder, result: Value) -> None:
        self.table = np.array(recorder.rows, np.int64)
        self.phases, self.scratch = recorder.phases, recorder.scratch
        self.windows, self.group = recorder.windows, recorder.group
        self.partial_width = recorder.partial_width
        self.plans = np.zeros((max(len(self.windows), 1), len(attention.PLAN)), np.int64)
        self.registers = np.zeros(len(recorder.registers) + 1, np.int64)
        self._program = np.array(
            [
                len(self.table),
                *(part.ctypes.data for part in (self.table, self.registers, self.plans)),
            ]
        )
        self.address = self._program.ctypes.data
        """Of what the job runs: see `operations.run_operations`."""
        self._hidden = recorder.registers["hidden"]
        self._partials = recorder.registers.get("partials", 0)
        self._result, self._rooms, self._fixed = result, recorder.rooms, recorder.fixed
        self._kept, self._cached = recorder.kept, recorder.cached
        self._memory: dict[int, Tensor] = {}
        self._most = 0
        self._caches: Sequence[tuple[Tensor, Tensor]] | None = None

    def make_room(self, rows: int, partials: int, hidden: int) -> None:
        """Memory for a step of so many rows and partial results of attention; what there is, stays
        if it is enough. hidden: the address of the residual stream."""
        if rows > self._most:
            self._most = rows
            for number, size in self._rooms.items():
                self._take(number, size * rows + self._fixed.get(number, 0))
        if partials and self._partials:
            self._take(self._partials, partials * self.partial_width * 4)
        self.registers[self._hidden] = hidden

    def result(self, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The first rows of what is given back, of that type."""
        memory, width = self._memory[self._result.register], self._result.width
        return memory[: rows * width * dtype.itemsize].view(dtype).view(rows, width)

    def use_caches(self, caches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Has the table work on these caches."""
        if self._caches is not caches:
            first = operations.column("rotate", "keys")
            assert first == operations.column("attention", "keys")
            for row, layer in self._cached:
                keys, values = caches[layer]
                self.table[row, first : first + 2] = keys.data_ptr(), values.data_ptr()
            self._caches = caches

    def _take(self, number: int, size: int) -> None:
        """Memory of a register."""
        held = self._memory.get(number)
        if held is None or len(held) < size:
            if number in self._fixed:  # a late helper may read how many experts there are
                self._kept.append(held)
            memory = torch.empty(size + size // 4 + 2 * _ALIGNED, dtype=torch.uint8)
            memory = memory[-memory.data_ptr() % _ALIGNED :]
            self._memory[number] = memory
            self.registers[number] = memory.data_ptr()


def _float_bits(value: float) -> int:
    """The bits of a float32, as an int."""
    return int.from_bytes(struct.pack("<f", value), "little")
