"""The models that this machine has: the registered ones, and those in the cache of the Hugging Face
hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from asgl.errors import ModelError
from asgl.models.gguf_names import part_paths
from asgl.models.hub import Reference, choose, gguf_models
from asgl.models.pull import REGISTERED


class CachedModel(NamedTuple):
    """name: what a Runtime takes. path: the file or directory. size: bytes. architecture, format:
    as the files say, "?" if they do not."""

    name: str
    path: Path
    size: int
    architecture: str
    format: str


_FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""What general.file_type of a GGUF file means."""


def cached_models() -> list[CachedModel]:
    """All models in the caches, sorted by name."""
    registered = [
        describe(model.name, model.path) for model in REGISTERED.values() if model.is_cached()
    ]
    return registered + sorted(_of_hub())


def describe(name: str, path: Path) -> CachedModel:
    """What the model at the path is, from the beginnings of its files."""
    return _directory(name, path) if path.is_dir() else _file(name, path)


def _of_hub() -> Iterator[CachedModel]:
    from huggingface_hub import constants  # only here: few need the hub, and it takes a second

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        _, organization, repository = folder.name.split("--", 2)
        try:
            commit = (folder / "refs" / "main").read_text().strip()
        except OSError:
            continue
        snapshot = folder / "snapshots" / commit
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*")]
        name = f"{organization}/{repository}"
        try:
            if choose(names, Reference(name), name).model is None:
                yield describe(name, snapshot)
        except ModelError:  # not a directory to open: a part of it, or GGUF files
            pass
        for file in gguf_models(names):
            yield describe(f"{name}/{file}", snapshot / file)


def _file(name: str, path: Path) -> CachedModel:
    from asgl.models.gguf import GgufFile  # only here: who lists nothing should not wait for numpy
    from asgl.models.gguf_blocks import type_name

    size = sum(part.stat().st_size for part in part_paths(path) if part.exists())
    try:
        file = GgufFile(path)
    except ModelError:
        return CachedModel(name, path, size, "?", "damaged")
    file.close()
    architecture = file.metadata.get("general.architecture")
    kind = _FILE_TYPES.get(file.metadata.get("general.file_type", -1))
    if kind is None and file.tensors:  # the type that most tensors have
        types = Counter(info.type for info in file.tensors.values() if len(info.shape) > 1)
        kind = type_name(types.most_common(1)[0][0]) if types else None
    return CachedModel(name, path, size, str(architecture or "?"), f"GGUF {kind or '?'}")


def _directory(name: str, path: Path) -> CachedModel:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        config: Any = json.loads((path / "config.json").read_text())
        architecture = str(config.get("model_type") or "?")
        quantized = config.get("quantization_config") or {}
        kind = quantized.get("quant_method") or config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        architecture, kind = "?", "damaged"
    return CachedModel(name, path, size, architecture, f"safetensors {kind or '?'}")
