"""A model in one GGUF file, or split over several.

Part 2 of 3 (see `gguf_names`) says split.no 1 and split.count 3 in its metadata. The first part has
the metadata of the model, and each has some of its tensors.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from asgl.errors import ModelError
from asgl.kernels.quantized import QuantizedTensor
from asgl.models.gguf import GgufFile, TensorInfo
from asgl.models.gguf_names import MAX_PARTS, part_paths

if TYPE_CHECKING:
    from torch import Tensor


class GgufParts:
    """The files of one model, opened: all of them, whichever part is named. `path`, `metadata`: of
    the first one. `tensors`: of all.

    ModelError if a file is missing, damaged, or no part of this model: it names the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        named = GgufFile(path)
        self._files = [named]
        try:
            if _count(named) > 1:
                self._files = _open_others(named)
            self.path = self._files[0].path
            self.metadata: dict[str, Any] = self._files[0].metadata
            self._where: dict[str, GgufFile] = {}
            for file in self._files:
                for name in file.tensors:
                    if name in self._where:
                        raise ModelError(
                            f"{file.path}: tensor {name!r} is in {self._where[name].path.name} "
                            "too; the files are not parts of one model"
                        )
                    self._where[name] = file
            self._check_total()
        except BaseException:
            self.close()
            raise
        self.tensors: dict[str, TensorInfo] = {
            name: file.tensors[name] for name, file in self._where.items()
        }

    def close(self) -> None:
        """Unmaps the files. Tensors given out stay valid: they are copies."""
        for file in self._files:
            file.close()

    def file(self, name: str) -> GgufFile:
        """The file that has the tensor of that name."""
        return self._where[name]

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """See `GgufFile.tensor`."""
        return self._where.get(name, self._files[0]).tensor(name)

    def raw(self, name: str) -> memoryview:
        """See `GgufFile.raw`."""
        return self._where[name].raw(name)

    def _check_total(self) -> None:
        total = self.metadata.get("split.tensors.count", len(self._where))
        if len(self._files) > 1 and total != len(self._where):
            raise ModelError(
                f"{self.path}: the model has {total!r} tensors, and its {len(self._files)} parts "
                f"have {len(self._where)}; a part is of another model, fetch all again"
            )


def _count(file: GgufFile) -> int:
    count = file.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= MAX_PARTS:
        raise ModelError(f"{file.path}: split.count is {count!r}, no number of files")
    return int(count)


def _open_others(named: GgufFile) -> list[GgufFile]:
    """All parts in order, `named` among them. If one cannot be opened, only `named` is open."""
    count = _count(named)
    paths = part_paths(named.path)
    if len(paths) != count:
        raise ModelError(
            f"{named.path}: this is a part of a model in {count} files, which are found by their "
            f"names: call them NAME-00001-of-{count:05}.gguf and so on"
        )
    if missing := [path for path in paths if not path.exists()]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{missing[0]}: this part of a model in {count} files{others} is not there; fetch it"
        )
    files: list[GgufFile] = []
    try:
        for number, path in enumerate(paths):
            file = named if path == named.path else GgufFile(path)
            files.append(file)
            says = (file.metadata.get("split.no"), _count(file))
            if says != (number, count):
                raise ModelError(
                    f"{path}: by its name this is part {number + 1} of {count}, by its metadata it "
                    f"is not (split.no {says[0]!r}, split.count {says[1]}); it was renamed, or "
                    "belongs to another model"
                )
    except BaseException:
        for file in files:
            if file is not named:
                file.close()
        raise
    return files
