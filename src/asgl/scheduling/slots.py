"""The slots of the KV cache that hold nothing."""

from __future__ import annotations

from array import array

from asgl.errors import InternalError
from asgl.plan import INT


class SlotPool:
    """A stack of free slots. Slots freed last are given first; those given together ascend where
    they can."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = array(INT, range(capacity - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> array[int]:
        """`count` slots. The caller has made sure that there are so many."""
        if count > len(self._free):
            raise InternalError(f"{count} slots were taken of {len(self._free)} free ones")
        if count == 0:
            return array(INT)
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def give(self, slots: array[int]) -> None:
        """Frees the slots. They become free in reverse order, so that a run of them is given out as
        a run again."""
        self._free.extend(slots[::-1])

    def snapshot(self) -> array[int]:
        """The free slots, for checks."""
        return self._free[:]
