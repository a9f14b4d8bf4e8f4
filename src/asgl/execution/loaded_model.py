"""What a runner holds of a model while it is open: weights, and memory for keys and values."""

from __future__ import annotations

from asgl.errors import EngineClosedError
from asgl.execution.kv_pool import KVPool
from asgl.kernels.api import Kernels
from asgl.models.checkpoint import Checkpoint
from asgl.models.transformer import Transformer
from asgl.types import ModelInfo


class LoadedModel:
    """The weights and the pool of a runner, until `close`; after that they raise
    EngineClosedError."""

    def __init__(self, weights: Transformer, pool: KVPool) -> None:
        self._weights: Transformer | None = weights
        self._pool: KVPool | None = pool

    @property
    def weights(self) -> Transformer:
        if self._weights is None:
            raise EngineClosedError("the runner was closed")
        return self._weights

    @property
    def pool(self) -> KVPool:
        if self._pool is None:
            raise EngineClosedError("the runner was closed")
        return self._pool

    @property
    def closed(self) -> bool:
        return self._weights is None

    def close(self) -> None:
        """Frees both. May be called again."""
        self._weights = self._pool = None


def describe(checkpoint: Checkpoint, kernels: Kernels, weights: Transformer) -> ModelInfo:
    """What was loaded, in words."""
    config = checkpoint.config
    return ModelInfo(
        name=checkpoint.name,
        architecture=config.architecture,
        parameters=weights.parameters,
        context_length=config.context_length,
        vocabulary=config.vocabulary,
        dtype=str(kernels.kv_dtype).removeprefix("torch."),
        device=str(kernels.device),
        kernels=kernels.name,
        weights=kernels.weights,
        activations=kernels.activations,
    )
