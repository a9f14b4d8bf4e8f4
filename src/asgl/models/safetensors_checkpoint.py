"""A directory in Hugging Face's layout as a checkpoint: config.json, *.safetensors, a tokenizer, a
chat template."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asgl.errors import ModelError
from asgl.kernels.quantized import QuantizedTensor, stacked
from asgl.models.architectures import hugging_face_layout
from asgl.models.config import ModelConfig
from asgl.models.layout import (
    check_config,
    check_tensor,
    check_tensor_names,
    expected_shapes,
    panics_refused,
)
from asgl.models.quantization import MatrixFormat, quantization
from asgl.models.recommended import recommended_hugging_face
from asgl.models.settings import HUGGING_FACE_HARMLESS, HUGGING_FACE_NEUTRAL, Settings
from asgl.models.tokenizer_directory import open_tokenizer, read_json

_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})


class SafetensorsCheckpoint:
    """See `models.checkpoint.Checkpoint`. ModelError names the file of the directory that is
    missing or wrong."""

    def __init__(self, directory: str | os.PathLike[str], name: str | None = None) -> None:
        self._directory = Path(directory)
        self.name = name or self._directory.resolve().name
        path = self._directory / "config.json"
        config = read_json(path)
        if (adapter := self._directory / "adapter_config.json").exists():
            raise ModelError(
                f"{adapter}: an adapter belongs to this model, and none is applied; merge it, or "
                "delete its files if the weights have it already"
            )
        self._layout = hugging_face_layout(path, config.get("model_type"))
        stated = config.pop("quantization_config", None)
        self._formats = quantization(path, str(config["model_type"]), stated)
        self._files: dict[str, Any] = {}
        self._where = self._find_tensors()
        self.config = self._with_head(self._config(path, config))
        self._shapes = expected_shapes(self.config)
        self._stored_shapes = self._layout.stored_shapes(self._shapes)
        self._check_names()
        path = self._directory / "generation_config.json"
        generation = read_json(path, optional=True)
        self.sampling = recommended_hugging_face(path, generation)
        with panics_refused(self._directory):
            self.tokenizer, self.chat_template = open_tokenizer(
                self._directory,
                vocabulary=self.config.vocabulary,
                end_tokens=_ids(config) | _ids(generation),
            )

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """The tensor of that name, in the dtype of the file, or quantized."""
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(f"{self._directory}: the model has no tensor {name!r}")
        layout, part = self._layout, name.rpartition(".")[2]
        stored, rows = layout.stored(name), layout.rows(name, self._shapes)
        tensor = self._whole(stored)
        if part in layout.views:
            tensor = layout.views[part][1](tensor)
        if isinstance(tensor, QuantizedTensor):
            tensor = tensor if rows == slice(None) else tensor.rows(rows)
        else:
            tensor = tensor[rows].reshape(shape) if tensor.dim() > len(shape) else tensor[rows]
            if layout.less_one and part.endswith("norm"):
                tensor = tensor.float() + 1  # in float32, as transformers adds them
        check_tensor(self._directory, stored, tensor, shape)
        return tensor

    def _whole(self, stored: str) -> Tensor | QuantizedTensor:
        """The tensor of the files of that name; of those that experts have each, all rows one below
        the other."""
        shape = self._stored_shapes[stored]
        if "{}" not in stored:
            return self._one(stored, shape)
        names = self._of_experts(stored)
        parts = [self._one(name, (shape[0] // len(names), *shape[1:])) for name in names]
        quantized = [part for part in parts if isinstance(part, QuantizedTensor)]
        if len(quantized) == len(parts) and len({part.format for part in quantized}) == 1:
            return stacked(quantized)
        return torch.cat(
            [
                part.dequantize(torch.float32) if isinstance(part, QuantizedTensor) else part
                for part in parts
            ]
        )

    def _of_experts(self, stored: str) -> list[str]:
        """The names of a tensor that each expert has one of."""
        experts = self.config.experts
        return [stored.replace("{}", str(i)) for i in range(experts.count if experts else 0)]

    def _one(self, stored: str, shape: tuple[int, ...]) -> Tensor | QuantizedTensor:
        """One tensor; `shape` is that of a matrix which is held in several."""
        for form in self._formats:
            if names := form.names(stored, self._where):
                return self._quantized(stored, form, names, shape)
        return self._checked(stored)

    def _checked(self, stored: str) -> Tensor:
        tensor = self._read(stored)
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{self._where[stored]}: tensor {stored!r} is of {tensor.dtype}; only float32, "
                "float16 and bfloat16 can be read"
            )
        return tensor

    def _quantized(
        self, stored: str, form: MatrixFormat, names: Mapping[str, str], shape: tuple[int, ...]
    ) -> Tensor | QuantizedTensor:
        """The matrix that the tensors of those names make; all dimensions but the last are rows."""
        path = self._where[next(iter(names.values()))]
        try:
            parts = {end: self._read(name) for end, name in names.items()}
            tensor = form.read(parts, (math.prod(shape[:-1]), shape[-1]))
        except (ValueError, RuntimeError, IndexError) as error:  # torch's, of shapes and types
            raise ModelError(
                f"{path}: {form.stem(stored)!r}, a quantized matrix of {list(shape)}, cannot be "
                f"read: {error}"
            ) from error
        finite = (
            tensor.is_finite()
            if isinstance(tensor, QuantizedTensor)
            else bool(tensor.isfinite().all())
        )
        if not finite:
            raise ModelError(f"{path}: {form.stem(stored)!r} has scales that are NaN or infinite")
        return tensor

    def raw(self) -> Iterator[tuple[str, memoryview]]:
        """See `Checkpoint.raw`."""
        for name in sorted(self._where):
            tensor = self._read(name)
            yield f"{name} {tensor.dtype} {list(tensor.shape)}", _bytes(tensor).numpy().data

    def close(self) -> None:
        """Lets go of the files."""
        self._files.clear()

    def _find_tensors(self) -> dict[str, Path]:
        """The file of each tensor. ModelError if a tensor is in two files.

        Of which files, transformers decides so, too: model.safetensors if there is one, whatever
        an index beside it says; else those of the index. Without either, all there are.
        """
        single = self._directory / "model.safetensors"
        index = self._directory / "model.safetensors.index.json"
        named: Mapping[str, str] = {}
        if single.exists():
            files = [single]
        elif index.exists():
            named = self._weight_map(index)
            files = sorted({self._directory / file for file in named.values()})
        else:
            files = sorted(self._directory.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"{self._directory}: there is no *.safetensors file; other formats "
                "(pytorch_model.bin) are not read, convert them"
            )
        where: dict[str, Path] = {}
        for path in files:
            for name in self._open(path):
                if name in where:
                    raise ModelError(
                        f"{path}: tensor {name!r} is in {where[name].name} too; delete the file "
                        "that is not of the model"
                    )
                where[name] = path
        if missing := named.keys() - where.keys():
            raise ModelError(f"{index}: {min(missing)!r} is in none of the files")
        return where

    def _weight_map(self, index: Path) -> Mapping[str, str]:
        named: Any = read_json(index).get("weight_map")
        if not isinstance(named, dict) or any(
            file != Path(str(file)).name for file in named.values()
        ):
            raise ModelError(
                f"{index}: weight_map does not map tensors to files of the same directory"
            )
        for file in sorted(set(named.values())):
            if not (self._directory / file).exists():
                raise ModelError(
                    f"{self._directory / file}: {index.name} names this file, and it is not "
                    "there; fetch it again, or delete the index if the model has other files"
                )
        return named

    def _open(self, path: Path) -> list[str]:
        try:
            self._files[str(path)] = safe_open(path, framework="pt")
            return list(self._files[str(path)].keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: not a whole safetensors file: {error}; fetch it again"
            ) from error

    def _read(self, stored: str) -> Tensor:
        path = self._where[stored]
        try:
            return self._files[str(path)].get_tensor(stored)
        except (SafetensorError, KeyError, OSError) as error:
            raise ModelError(f"{path}: tensor {stored!r} cannot be read: {error}") from error

    def _config(self, path: Path, config: Mapping[str, Any]) -> ModelConfig:
        settings = Settings(path, config["model_type"], config)
        read = check_config(path, self._layout.config(settings, self._where.keys()))
        settings.finish(HUGGING_FACE_HARMLESS, {**HUGGING_FACE_NEUTRAL, **self._layout.neutral})
        return read

    def _with_head(self, config: ModelConfig) -> ModelConfig:
        """The config, not tied if the files have a head that differs from the embedding: a head
        that is there is used, as transformers does."""
        names = [self._layout.stored(name) for name in ("embedding", "head")]
        if not config.tied_head or not self._where.keys() >= set(names):
            return config
        embedding, head = (self._read(name) for name in names)
        same = (embedding.dtype, embedding.shape) == (head.dtype, head.shape)
        return dataclasses.replace(
            config, tied_head=same and torch.equal(_bytes(embedding), _bytes(head))
        )

    def _check_names(self) -> None:
        """ModelError if a tensor is missing, or one would be ignored."""
        needed: set[str] = set()
        for whole in self._stored_shapes:
            for stored in self._of_experts(whole) if "{}" in whole else (whole,):
                forms = (form.names(stored, self._where).values() for form in self._formats)
                needed.update(next(filter(None, forms), (stored,)))
        head = self._layout.stored("head")
        if head in needed - self._where.keys():
            raise ModelError(
                f"{self._directory}: tensor {head!r} is missing; a file of the model may be. If "
                "the model's head is its embedding, set tie_word_embeddings to true in config.json"
            )
        # transformers ignores inv_freq, which old files have; a tied head was compared
        ends = ("rotary_emb.inv_freq", *self._layout.ignored)
        ignored = {name for name in self._where if name.endswith(ends)}
        if self.config.tied_head:
            ignored.add(head)
        if self._formats:  # packers of GPTQ write biases for all matrices
            extra = self._where.keys() - needed
            ignored |= {
                name for name in extra if name.endswith(".bias") and not self._read(name).any()
            }
        check_tensor_names(self._directory, self.config, needed, self._where.keys() - ignored)


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8)


def _ids(config: Mapping[str, Any]) -> set[int]:
    """The end tokens of a config.json or generation_config.json: one, several or none."""
    ids = config.get("eos_token_id")
    return {
        id for id in (ids if isinstance(ids, list) else [ids]) if isinstance(id, int) and id >= 0
    }
