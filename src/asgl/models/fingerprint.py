"""What a model is known by, so that nothing computed by one is used with another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from asgl.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of the model's shape, of its vocabulary, and of the weights of its norms.

    The norms of all layers are some thousand numbers that any training changes and no quantization
    touches, so the same model in another file format has the same fingerprint.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    digest = hashlib.sha256(repr(config).encode())
    for token in range(tokenizer.vocabulary):
        digest.update(tokenizer.token_bytes(token) + b"\0")
    digest.update(repr(sorted(tokenizer.special_tokens.items())).encode())
    norms = [
        f"layers.{layer}.{kind}_norm"
        for layer in range(config.layers)
        for kind in ("attention", "mlp")
    ]
    for name in [*norms, "norm"]:
        weights: Tensor = checkpoint.tensor(name)  # pyright: ignore[reportAssignmentType]
        digest.update(weights.float().numpy().tobytes())
    return digest.hexdigest()[:32]
