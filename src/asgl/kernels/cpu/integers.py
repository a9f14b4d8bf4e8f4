"""Products of bytes and of int16, in the instructions that a processor has: the arithmetic of
products.py.

Weights come as words of four unsigned bytes, of neighbouring k; inputs are integers of 16 bits, or
on request of 8. Sums of 32 products fit an int32 (8 + 15 + 5 bits), so they are exact whatever the
order and the instruction: all of these compute the same bits.

    Halves   four bytes times four bytes, added to an int32 (`vpdpbusd`, of VNNI), twice: inputs of
             16 bits are 256 * high + low, both signed bytes
    Bytes    the same once, for inputs of 8 bits
    Pairs    two int16 times two int16 (`pmaddwd`, as old as SSE2): weights become pairs by a mask
    Narrow   for inputs of 8 bits without VNNI: four bytes times four bytes, added by twos to int16
             (`pmaddubsw`), which an int32 takes over before they overflow. Not for weights of 8
             bits, two of whose products overflow

The idea of blockwise scales for weights and inputs is that of ggml's quantized products.
"""

from __future__ import annotations

from typing import Any, ClassVar

from llvmlite import ir

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import I8, I16, I32, LANES, const
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.tiles import Tiling

_BYTE_DOTS = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
_BYTE_PRODUCTS = {16: "llvm.x86.avx512.pmaddubs.w.512", 8: "llvm.x86.avx2.pmadd.ub.sw"}
_PAIR_PRODUCTS = {
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
    4: "llvm.x86.sse2.pmadd.wd",
}
_PAIRS = 0x00FF00FF
"""The bytes at even places of a word, as a pair of int16."""


def parts(builder: Any, words: Any, width: int) -> list[Any]:
    """A vector of 16 words as the registers of `width` words that hold it."""
    kind = ir.VectorType(I32, width)
    lanes = [list(range(first, first + width)) for first in range(0, LANES, width)]
    if len(lanes) == 1:
        return [words]
    return [builder.shuffle_vector(words, words, ir.Constant(kind, of)) for of in lanes]


def joined(builder: Any, registers: list[Any]) -> Any:
    """The vector that these registers hold."""
    while len(registers) > 1:
        width = 2 * registers[0].type.count
        lanes = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        registers = [
            builder.shuffle_vector(low, high, lanes)
            for low, high in zip(registers[::2], registers[1::2], strict=True)
        ]
    return registers[0]


def _fenced(builder: Any, vectors: list[Any]) -> list[Any]:
    """The same vectors of words, of which LLVM knows nothing any more: what needs them comes after
    all of them are there.

    Without it LLVM rearranges many chains of sums into trees, one after the other, which needs
    several times the registers.
    """
    if not TARGET.pair_words:
        return vectors
    kinds = [vector.type for vector in vectors]
    outputs = ["=v" if kinds[0].count == 16 else "=x"] * len(vectors)
    constraint = ",".join([*outputs, *map(str, range(len(vectors)))])
    if len(vectors) == 1:
        return [builder.asm(ir.FunctionType(kinds[0], kinds), "", constraint, vectors, False)]
    fenced = builder.asm(
        ir.FunctionType(ir.LiteralStructType(kinds), kinds), "", constraint, vectors, False
    )
    return [builder.extract_value(fenced, i) for i in range(len(vectors))]


class Arithmetic:
    """How sums of products are made; each `sums` is what one register of sums is made of.

    width: words of a register. registers: of a register of sums. inputs: words of an input row that
    four weights meet.
    """

    width: ClassVar[int]
    registers: ClassVar[int]
    byte_inputs: ClassVar[bool]

    def zeros(self, initial: Any) -> list[Any]:
        """Sums before the first product, which begin with these words."""
        none = const(0, ir.VectorType(I32, self.width))
        return [initial, *[none] * (self.registers - 1)]

    def input_places(self, step: int) -> list[int]:
        """Where, in a group of an input row, the words are that the weights of a step meet."""
        raise NotImplementedError

    def weights(self, builder: Any, words: Any) -> list[Any]:
        """What is multiplied, of a register of words of four bytes."""
        return [words]

    def multiply(
        self, builder: Any, step: int, sums: list[Any], weights: list[Any], inputs: list[Any]
    ) -> list[Any]:
        """sums + weights . inputs."""
        raise NotImplementedError

    def settle(self, builder: Any, sums: list[list[Any]]) -> list[list[Any]]:
        """All sums of a block, after each step."""
        return sums

    def total(self, builder: Any, sums: list[Any]) -> Any:
        """The sums as words."""
        return sums[0]


def _byte_dot(builder: Any, width: int, held: Any, weights: Any, inputs: Any) -> Any:
    return llvm.call(builder, _BYTE_DOTS[width], ir.VectorType(I32, width), held, weights, inputs)


class Halves(Arithmetic):
    """Inputs of 16 bits by VNNI: sums of the low halves, sums of the high halves."""

    width, registers, byte_inputs = TARGET.dot_words, 2, False

    def input_places(self, step: int) -> list[int]:
        return [4 * step, 32 + 4 * step]

    def multiply(
        self, builder: Any, step: int, sums: list[Any], weights: list[Any], inputs: list[Any]
    ) -> list[Any]:
        return [
            _byte_dot(builder, self.width, held, weights[0], half)
            for held, half in zip(sums, inputs, strict=True)
        ]

    def total(self, builder: Any, sums: list[Any]) -> Any:
        eight = const(8, ir.VectorType(I32, self.width))
        return builder.add(sums[0], builder.shl(sums[1], eight))


class Bytes(Arithmetic):
    """Inputs of 8 bits by VNNI."""

    width, registers, byte_inputs = TARGET.dot_words, 1, True

    def input_places(self, step: int) -> list[int]:
        return [4 * step]

    def multiply(
        self, builder: Any, step: int, sums: list[Any], weights: list[Any], inputs: list[Any]
    ) -> list[Any]:
        return [_byte_dot(builder, self.width, sums[0], weights[0], inputs[0])]


def _pair_products(builder: Any, width: int, a: Any, b: Any) -> Any:
    """a . b of words of two int16, in int32, of one register."""
    if not TARGET.pair_words:
        sixteen = const(16, a.type)
        low = builder.mul(*(builder.ashr(builder.shl(v, sixteen), sixteen) for v in (a, b)))
        return builder.add(low, builder.mul(*(builder.ashr(v, sixteen) for v in (a, b))))
    kind = ir.VectorType(I16, 2 * width)
    return llvm.call(
        builder,
        _PAIR_PRODUCTS[width],
        ir.VectorType(I32, width),
        *(builder.bitcast(v, kind) for v in (a, b)),
    )


class Pairs(Arithmetic):
    """Inputs of 16 bits, in int16."""

    width, registers, byte_inputs = TARGET.pair_words or LANES, 1, False

    def input_places(self, step: int) -> list[int]:
        return [8 * step, 8 * step + 4]

    def weights(self, builder: Any, words: Any) -> list[Any]:
        eight, mask = const(8, words.type), const(_PAIRS, words.type)
        return [builder.and_(v, mask) for v in (words, builder.lshr(words, eight))]

    def multiply(
        self, builder: Any, step: int, sums: list[Any], weights: list[Any], inputs: list[Any]
    ) -> list[Any]:
        total = sums[0]
        for a, b in zip(weights, inputs, strict=True):
            total = builder.add(total, _pair_products(builder, self.width, a, b))
        return [total]

    def settle(self, builder: Any, sums: list[list[Any]]) -> list[list[Any]]:
        return [[one] for one in _fenced(builder, [own[0] for own in sums])]


class Narrow(Arithmetic):
    """Inputs of 8 bits without VNNI: sums in int32, and in int16 (of the products since the last
    that an int32 took over). Weights have up to `bits` bits, below 8, and scales for each
    `group`."""

    width, registers, byte_inputs = TARGET.pair_words, 2, True

    def __init__(self, bits: int, group: int) -> None:
        # a product adds up to 2 * 127 * (2**bits - 1) to an int16
        self._steps = min(1 << (32767 // (254 * (2**bits - 1))).bit_length() - 1, group // 4)

    def input_places(self, step: int) -> list[int]:
        return [4 * step]

    def multiply(
        self, builder: Any, step: int, sums: list[Any], weights: list[Any], inputs: list[Any]
    ) -> list[Any]:
        twos, fours = ir.VectorType(I16, 2 * self.width), ir.VectorType(I8, 4 * self.width)
        product = llvm.call(
            builder,
            _BYTE_PRODUCTS[self.width],
            twos,
            *(builder.bitcast(v, fours) for v in (weights[0], inputs[0])),
        )
        whole, narrow = sums
        words = ir.VectorType(I32, self.width)
        narrow = builder.bitcast(builder.add(builder.bitcast(narrow, twos), product), words)
        if (step + 1) % self._steps == 0:
            ones = const(0x00010001, words)
            whole = builder.add(whole, _pair_products(builder, self.width, narrow, ones))
            narrow = const(0, words)
        return [whole, narrow]

    def settle(self, builder: Any, sums: list[list[Any]]) -> list[list[Any]]:
        if isinstance(sums[0][1], ir.Constant):
            return sums
        narrow = _fenced(builder, [own[1] for own in sums])
        return [[own[0], one] for own, one in zip(sums, narrow, strict=True)]


def arithmetic(tiling: Tiling, *, byte_inputs: bool) -> Arithmetic | None:
    """What this processor multiplies such weights in. None if inputs of 8 bits would be no
    faster."""
    if TARGET.dot_words:
        return Bytes() if byte_inputs else Halves()
    if not byte_inputs:
        return Pairs()
    narrow = TARGET.pair_words >= 8 and tiling.bits < 8 and not tiling.levels
    return Narrow(tiling.bits, tiling.group) if narrow else None
