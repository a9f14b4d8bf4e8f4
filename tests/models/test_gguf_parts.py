from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from asgl.errors import ModelError
from asgl.models.gguf import GgufFile
from asgl.models.gguf_checkpoint import GgufCheckpoint
from asgl.models.gguf_names import part_paths
from asgl.models.gguf_parts import GgufParts
from asgl.models.layout import expected_shapes
from asgl.models.registry import open_checkpoint
from tiny import split_gguf, tiny_gguf, write_gguf


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    source = tiny_gguf(tmp_path / "whole.gguf", quantize="Q8_0")
    (tmp_path / "split").mkdir()
    return split_gguf(tmp_path / "split" / "tiny.gguf", source, 3)


@pytest.mark.parametrize("named", [0, 1, 2])
def test_any_part_opens_all(parts: list[Path], tmp_path: Path, named: int) -> None:
    whole = GgufCheckpoint(tmp_path / "whole.gguf")
    split = open_checkpoint(parts[named])
    assert split.config == whole.config
    assert split.name == whole.name
    assert split.tokenizer.encode("the other") == whole.tokenizer.encode("the other")
    for name in expected_shapes(whole.config):
        one, other = (
            tensor if isinstance(tensor, torch.Tensor) else tensor.dequantize(torch.float32)
            for tensor in (split.tensor(name), whole.tensor(name))
        )
        assert torch.equal(one, other), name
    assert [(what, bytes(data)) for what, data in split.raw()] == [
        (what, bytes(data)) for what, data in whole.raw()
    ]
    split.close()
    whole.close()


def test_parts_that_are_missing(parts: list[Path]) -> None:
    parts[1].unlink()
    for path in (parts[0], parts[2]):
        with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf: this part .*3 files is"):
            GgufParts(path)
    parts[0].unlink()
    with pytest.raises(ModelError, match=r"tiny-00001-of-00003\.gguf: .* and 1 more is not there"):
        GgufParts(parts[2])


def test_a_part_that_is_damaged(parts: list[Path]) -> None:
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf: .*cut short or damaged"):
        GgufParts(parts[0])


def test_parts_that_were_renamed(parts: list[Path], tmp_path: Path) -> None:
    shutil.copy(parts[2], parts[1])
    with pytest.raises(ModelError, match=r"00002-of-00003\.gguf: by its name .*split\.no 2"):
        GgufParts(parts[0])
    alone = tmp_path / "model.gguf"
    shutil.copy(parts[0], alone)
    with pytest.raises(ModelError, match=r"model\.gguf: .*call them NAME-00001-of-00003\.gguf"):
        GgufParts(alone)
    shutil.copy(tmp_path / "whole.gguf", parts[1])
    with pytest.raises(ModelError, match=r"00002-of-00003\.gguf: .*split\.no None, split\.count 1"):
        GgufParts(parts[0])


def test_parts_of_another_model(parts: list[Path], tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "other.gguf", quantize="Q8_0", num_hidden_layers=1)
    (tmp_path / "others").mkdir()
    others = split_gguf(tmp_path / "others" / "tiny.gguf", other, 3)
    shutil.copy(others[1], parts[1])
    with pytest.raises(ModelError, match=r"(is in .* too|parts have \d+); .* (one|another) model"):
        GgufParts(parts[0])
    shutil.copy(others[2], parts[1])
    with pytest.raises(ModelError, match=r"00002-of-00003\.gguf: by its name"):
        GgufParts(parts[0])


def rewrite(path: Path, **metadata: Any) -> None:
    """The file with other metadata, keys written with _ for a dot."""
    file = GgufFile(path)
    tensors = [
        (info.name, info.shape, info.type, bytes(file.raw(info.name)))
        for info in file.tensors.values()
    ]
    changed = {key.replace("_", "."): value for key, value in metadata.items()}
    write_gguf(path, {**file.metadata, **changed}, tensors)


def test_metadata_that_no_split_has(parts: list[Path]) -> None:
    rewrite(parts[0], split_tensors_count=4)
    with pytest.raises(ModelError, match=r"has 4 tensors, and its 3 parts have 20"):
        GgufParts(parts[0])
    for count in (1 << 31, -0.5, "three"):
        rewrite(parts[0], split_count=count)
        with pytest.raises(ModelError, match=r"00001-of-00003\.gguf: split\.count is"):
            GgufParts(parts[0])


def test_names_of_parts() -> None:
    one = Path("/a/b-00002-of-00002.gguf")
    assert part_paths(one) == [Path("/a/b-00001-of-00002.gguf"), one]
    for name in ("b.gguf", "b-2-of-2.gguf", "b-00000-of-00000.gguf", "b-00001-of-99999.gguf"):
        assert part_paths(Path(name)) == [Path(name)]
