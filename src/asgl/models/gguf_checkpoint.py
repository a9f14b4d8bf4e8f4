"""A GGUF file as a checkpoint: config and tokenizer from its metadata, tensors under asgl's
names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from asgl.errors import ModelError
from asgl.kernels.quantized import QuantizedTensor
from asgl.models.architectures import gguf_layout
from asgl.models.config import ModelConfig
from asgl.models.gguf_parts import GgufParts
from asgl.models.layout import (
    FileLayout,
    check_config,
    check_tensor,
    check_tensor_names,
    expected_shapes,
    panics_refused,
)
from asgl.models.recommended import recommended_gguf
from asgl.models.rope import with_rope_factors
from asgl.models.settings import GGUF_HARMLESS, GGUF_NEUTRAL, Settings
from asgl.models.tokenizer_gguf import chat_template_gguf, tokenizer_gguf

_EMBEDDING = "token_embd.weight"


class GgufCheckpoint:
    """See `models.checkpoint.Checkpoint`. ModelError if the file is damaged, or describes a model
    that is not known."""

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self._file = GgufParts(path)
        try:
            metadata = self._file.metadata
            self.name = name or str(metadata.get("general.name") or self._file.path.stem)
            self._layout = gguf_layout(self._file.path, metadata.get("general.architecture"))
            self.config = _config(self._file, self._layout)
            self._shapes = expected_shapes(self.config)
            self._check_names()
            self.sampling = recommended_gguf(self._file.path, metadata)
            with panics_refused(self._file.path):
                self.chat_template = chat_template_gguf(metadata)
                self.tokenizer = tokenizer_gguf(self._file.path, metadata, self.chat_template)
            if self.tokenizer.vocabulary != self.config.vocabulary:
                raise ModelError(
                    f"{self._file.path}: the tokenizer has {self.tokenizer.vocabulary} tokens, the "
                    f"embedding {self.config.vocabulary} rows"
                )
        except BaseException:
            self._file.close()
            raise

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """A copy of the tensor of that name."""
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(f"{self._file.path}: the model has no tensor {name!r}")
        layout, stored = self._layout, self._layout.stored(name)
        rows = layout.rows(name, self._shapes)
        tensor = self._file.tensor(stored)
        if rows != slice(None):
            tensor = tensor.rows(rows) if isinstance(tensor, QuantizedTensor) else tensor[rows]
        elif isinstance(tensor, Tensor):
            tensor = tensor.reshape(shape)  # experts lie one below the other
        check_tensor(self._file.path, stored, tensor, shape)
        part = name.rpartition(".")[2]
        if part in layout.interleaved:
            return _rotate_halves(
                tensor, self.config.heads if part[0] == "q" else self.config.kv_heads
            )
        return tensor

    def raw(self) -> Iterator[tuple[str, memoryview]]:
        """See `Checkpoint.raw`."""
        for name, info in sorted(self._file.tensors.items()):
            yield f"{name} {info.type} {list(info.shape)}", self._file.raw(name)

    def close(self) -> None:
        """Unmaps the files. Tensors given out stay valid: they are copies."""
        self._file.close()

    def _check_names(self) -> None:
        """ModelError unless the tensors are those that the model needs, in its shapes, and of types
        that can be read."""
        path, there = self._file.path, self._file.tensors
        layout = self._layout
        needed = layout.stored_shapes(self._shapes)
        ignored = {name for name in there if name.endswith((layout.rope_factors, *layout.ignored))}
        check_tensor_names(path, self.config, needed.keys(), there.keys() - ignored)
        for name, shape in needed.items():
            file = self._file.file(name)
            file.block_type(name)
            if _flat(there[name].shape, shape) != shape:
                raise ModelError(
                    f"{file.path}: tensor {name!r} at offset {there[name].offset} has shape "
                    f"{list(there[name].shape)}, where the model's config needs {list(shape)}"
                )


def _config(file: GgufParts, layout: FileLayout) -> ModelConfig:
    metadata, path = file.metadata, file.path
    architecture = metadata["general.architecture"]
    if metadata.get("general.type", "model") != "model":
        raise ModelError(f"{path}: general.type is {metadata['general.type']!r}, not a model")
    embedding = file.tensors.get(_EMBEDDING)
    if embedding is None:
        raise ModelError(
            f"{path}: there is no tensor {_EMBEDDING!r}; the file is not a whole model"
        )
    prefix = f"{architecture}."
    values = {
        key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
    }
    settings = Settings(path, architecture, {**values, "vocab_size": embedding.shape[0]}, prefix)
    config = check_config(path, layout.config(settings, file.tensors.keys()))
    settings.finish(GGUF_HARMLESS, {**GGUF_NEUTRAL, **layout.neutral})
    if layout.rope_factors in file.tensors:
        factors = _rope_factors(file, layout.rope_factors, config.rope.dimensions // 2)
        rope = with_rope_factors(config.rope, factors)
        config = check_config(path, dataclasses.replace(config, rope=rope))
    return config


def _flat(shape: tuple[int, ...], needed: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor whose first dimension counts experts, without that; a row that is
    needed as a matrix is one."""
    if len(shape) == len(needed) + 1:
        return (shape[0] * shape[1], *shape[2:])
    return (1, *shape) if len(shape) == len(needed) - 1 and needed[0] == 1 else shape


def _rope_factors(file: GgufParts, name: str, frequencies: int) -> list[float]:
    stored = file.tensor(name)
    if isinstance(stored, QuantizedTensor) or tuple(stored.shape) != (frequencies,):
        raise ModelError(
            f"{file.path}: tensor {name!r} is not one factor for each of a head's "
            f"{frequencies} frequencies"
        )
    return stored.tolist()


def _rotate_halves(tensor: Tensor | QuantizedTensor, heads: int) -> Tensor | QuantizedTensor:
    """Reorders the rows of each head from pairs (0, h), (1, h + 1), ... to 0, 1, ..., h, h + 1,
    ..., h half a head."""
    rows = tensor.shape[0]
    order = torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(rows)
    if isinstance(tensor, QuantizedTensor):
        return tensor.rows(order)
    return tensor[order]
