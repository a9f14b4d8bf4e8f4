"""Formats of weights as small integers, and a table that compiled code looks them up in.

A weight carries the code of its format; a row of the table says how large its tiles are, where what
multiplies them is, and what it takes to read single weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asgl.errors import InternalError
from asgl.kernels.cpu.multiply import Tell, compile_product
from asgl.kernels.cpu.tiles import DENSE, Tiling

(
    GROUP_BYTES, WHOLE, BYTE, BITS, PART, ZERO, OFFSETS, WIDE, LEVELED, ENDS,
) = range(0, 80, 8)  # fmt: skip
"""Where the fields of a row are: bytes of 32 k of a tile; the functions that multiply with inputs
of 16 and of 8 bits (or 0); what `Tiling` says; whether it has levels; where scales begin."""
LEVELS = 128
"""Where its 16 levels are, int64 each."""
ROW = 256
"""Bytes of a row."""
DENSE_CODE = 0
"""The code of dense weights."""
_MOST = 64


class Formats:
    """The formats of some models. `table`: int64, never moved: compiled code reads it.

    tell: called with the name of what is compiled next, see `cache.cached`.
    """

    def __init__(self, tell: Tell | None = None) -> None:
        self.table = np.zeros((_MOST, ROW // 8), np.int64)
        self.address = self.table.ctypes.data
        self._tell = tell
        self._codes: dict[Tiling, int] = {}
        self._compiled: list[Any] = []
        assert self.code(DENSE) == DENSE_CODE

    def code(self, tiling: Tiling) -> int:
        """The code of a format."""
        if tiling not in self._codes:
            code = len(self._codes)
            if code == _MOST:
                raise InternalError(f"these kernels have weights in more than {_MOST} formats")
            row = self.table[code]
            row[: ENDS // 8 + 1] = (
                tiling.group_bytes, 0, 0, tiling.bits, tiling.group, tiling.zero, tiling.offsets,
                tiling.wide, bool(tiling.levels), tiling.ends,
            )  # fmt: skip
            row[LEVELS // 8 : LEVELS // 8 + len(tiling.levels)] = tiling.levels
            self._codes[tiling] = code
        return self._codes[tiling]

    def need(self, code: int, *, byte_inputs: bool = False) -> bool:
        """Compiles what multiplies weights of a format, unless it is there. Returns whether it is:
        for inputs of 8 bits, if they are of use."""
        row, column = self.table[code], (BYTE if byte_inputs else WHOLE) // 8
        if row[column] == 0:
            tiling = next(tiling for tiling, known in self._codes.items() if known == code)
            function = compile_product(tiling, byte_inputs=byte_inputs, tell=self._tell)
            if function is None:
                return False
            self._compiled.append(function)
            row[column] = function.address
        return True
