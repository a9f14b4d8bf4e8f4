"""What a model is known by, so that nothing computed by one is used with another."""

from __future__ import annotations

import hashlib

from asgl.models.checkpoint import Checkpoint

_BLOCK = 1024
_BLOCKS = 16
"""Of a tensor so many blocks of so many bytes are hashed: all of a small one."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of the model's shape, of its vocabulary, and of blocks of each tensor as the file has
    it, spread from its first byte to its last.

    Training changes most weights of the matrices that it touches, so every block of these differs
    afterwards (a LoRA adapter that was merged, too). Another format of the same model is another
    model: its keys and values differ.
    """
    tokenizer = checkpoint.tokenizer
    digest = hashlib.sha256(repr(checkpoint.config).encode())
    for token in range(tokenizer.vocabulary):
        digest.update(tokenizer.token_bytes(token) + b"\0")
    digest.update(repr(sorted(tokenizer.special_tokens.items())).encode())
    for what, data in checkpoint.raw():
        digest.update(what.encode() + b"\0")
        step = max(_BLOCK, (len(data) - _BLOCK) // (_BLOCKS - 1))
        for begin in range(0, len(data), step):
            digest.update(data[begin : begin + _BLOCK])
        data.release()
    return digest.hexdigest()[:32]
