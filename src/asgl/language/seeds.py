"""Seeds of single ops.

A seed given to an op is used as it is. One that an op inherits, from its stream or its Runtime, is
only where its own comes from: the first 8 bytes, big-endian, of the BLAKE2b hash of

    repr((seed, name and initial text of the prompt, fork path, number of the op,
          index of the gen in the op))

The fork path of a branch is that of its parent and then (number of the fork among the parent's ops,
index of the branch). Nothing of this depends on timing: five forks give five different samples, and
the same ones in the next run. An op without any seed gets a random one from the operating system.
"""

from __future__ import annotations

import hashlib
import os


def derive(
    seed: int, origin: tuple[str | None, str], path: tuple[int, ...], number: int, index: int
) -> int:
    """The seed of one gen, in 64 bits."""
    text = repr((seed, origin, path, number, index)).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def again(seed: int, attempt: int) -> int:
    """The seed of a further try at the same gen; attempt 0 is the first, with the seed itself."""
    return seed if not attempt else derive(seed, ("again", ""), (), 0, attempt)


def random() -> int:
    """A seed that nobody can foresee, in 64 bits."""
    return int.from_bytes(os.urandom(8), "big")
