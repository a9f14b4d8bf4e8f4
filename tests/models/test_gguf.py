from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asgl.errors import ModelError
from asgl.models.gguf import MAX_ITEMS, GgufFile
from tiny import quantized, write_gguf

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "an.int": 7,
    "a.float": 0.5,
    "a.bool": True,
    "some.strings": ["a", "", "é", "\n"],
    "some.ints": [1, 2, 3],
    "nested": [[1, 2], [3]],
    "tokens": [f"token {i}" for i in range(50)],
}
MATRIX = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))


def small_file(path: Path, **how: Any) -> Path:
    tensors = [
        ("f32", (6, 64), 0, MATRIX.numpy().tobytes()),
        ("f16", (2, 3, 4), 1, MATRIX[0, :24].half().numpy().tobytes()),
        ("bf16", (5,), 30, MATRIX[0, :5].bfloat16().view(torch.int16).numpy().tobytes()),
        ("q8_0", (6, 64), 8, quantized(MATRIX, "Q8_0")),
        ("q4_0", (6, 64), 2, quantized(MATRIX, "Q4_0")),
        ("q4_1", (6, 64), 3, quantized(MATRIX, "Q4_1")),
        ("iq2_xs", (2, 256), 17, b"\0" * 148),
    ]
    return write_gguf(path, METADATA, tensors, **how)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_file(tmp_path_factory.mktemp("gguf") / "small.gguf").read_bytes()


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_come_back(tmp_path: Path, version: int) -> None:
    file = GgufFile(small_file(tmp_path / "a.gguf", version=version))
    assert file.metadata == METADATA
    assert isinstance(file.metadata["a.bool"], bool)
    assert file.tensors["f16"].shape == (2, 3, 4)
    f32, f16, bf16 = (file.tensor(name) for name in ("f32", "f16", "bf16"))
    assert isinstance(f32, torch.Tensor)
    assert isinstance(f16, torch.Tensor)
    assert isinstance(bf16, torch.Tensor)
    assert torch.equal(f32, MATRIX)
    assert torch.equal(f16, MATRIX[0, :24].half().view(2, 3, 4))
    assert torch.equal(bf16, MATRIX[0, :5].bfloat16())


def test_an_unknown_type_is_an_error_only_when_that_tensor_is_asked_for(
    valid: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(valid)
    file = GgufFile(path)
    with pytest.raises(
        ModelError,
        match=r"a\.gguf: tensor 'iq2_xs' at offset \d+ has type IQ2_XS, which cannot be read",
    ):
        file.tensor("iq2_xs")
    with pytest.raises(ModelError, match="no tensor 'nope'"):
        file.tensor("nope")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number(tmp_path: Path, bad: float) -> None:
    blocks = bytearray(quantized(MATRIX, "Q4_1"))
    blocks[2 * 20 : 2 * 20 + 2] = np.float16(bad).tobytes()
    path = write_gguf(tmp_path / "a.gguf", METADATA, [("broken", (6, 64), 3, bytes(blocks))])
    with pytest.raises(ModelError, match=r"a\.gguf: tensor 'broken' .* scales that are NaN"):
        GgufFile(path).tensor("broken")


def test_tensors_outlive_the_file(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(valid)
    file = GgufFile(path)
    kept = file.tensor("f32")
    file.close()
    assert isinstance(kept, torch.Tensor)
    assert torch.equal(kept, MATRIX)
    with pytest.raises(ModelError, match="after the file was closed"):
        file.tensor("f32")


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with pytest.raises(ModelError, match="cannot be opened"):
        GgufFile(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="0 bytes are too few"):
        GgufFile(path)
    path.write_bytes(b"<!DOCTYPE html><html><body>Not Found")
    with pytest.raises(ModelError, match="does not begin with 'GGUF'"):
        GgufFile(path)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + b"\0" * 8)
    with pytest.raises(ModelError, match="version 50331648"):
        GgufFile(path)


def header(tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HOSTILE = {
    "2**50 tensors": (header(tensors=1 << 50), "claims 1125899906842624 tensors"),
    "2**50 pairs": (header(pairs=1 << 50), "claims 1125899906842624 metadata pairs"),
    "a string of 2**60 bytes": (
        header(pairs=1) + struct.pack("<Q", 1 << 60) + b"x" * 20,
        "a string of 1152921504606846976",
    ),
    "an array of 2**50 strings": (
        header(pairs=1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 50),
        "strings in 'k'",
    ),
    "an array of 2**50 numbers": (
        header(pairs=1) + text("k") + struct.pack("<IIQ", 9, 4, 1 << 50),
        "numbers in 'k'",
    ),
    "an array of 2**63 bytes": (
        header(pairs=1) + text("k") + struct.pack("<IIQ", 9, 0, 1 << 63),
        "numbers in 'k'",
    ),
    "an array of 2**50 arrays": (
        header(pairs=1) + text("k") + struct.pack("<IIQ", 9, 9, 1 << 50),
        "arrays in 'k'",
    ),
    "deep nesting": (
        header(pairs=1) + text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 1000,
        "nested more than 4",
    ),
    "an unknown type": (header(pairs=1) + text("k") + struct.pack("<II", 77, 0), "unknown type 77"),
    "an array of an unknown type": (
        header(pairs=1) + text("k") + struct.pack("<IIQ", 9, 77, 0),
        "unknown type 77",
    ),
    "a key that is no UTF-8": (
        header(pairs=1) + struct.pack("<Q", 2) + b"\xff\xfe" + b"\0" * 8,
        "not valid UTF-8",
    ),
    "a key twice": (
        header(pairs=2) + (text("k") + struct.pack("<II", 4, 1)) * 2,
        "'k' occurs twice",
    ),
    "a tensor twice": (header(tensors=2) + tensor("t", 1) * 2 + b"\0" * 64, "'t' occurs twice"),
    "no dimension": (header(tensors=1) + tensor("t") + b"\0" * 64, "has 0 dimensions"),
    "five dimensions": (
        header(tensors=1) + tensor("t", 1, 1, 1, 1, 1) + b"\0" * 64,
        "has 5 dimensions",
    ),
    "an empty tensor": (header(tensors=1) + tensor("t", 4, 0) + b"\0" * 64, "is empty"),
    "dimensions whose product overflows": (
        header(tensors=1) + tensor("t", 1 << 33, 1 << 33) + b"\0" * 64,
        "would end at byte",
    ),
    "a tensor past the end": (
        header(tensors=1) + tensor("t", 1, offset=1 << 40) + b"\0" * 64,
        "would end at byte",
    ),
    "an unknown type past the end": (
        header(tensors=1) + tensor("t", 1, kind=99, offset=1 << 40) + b"\0" * 64,
        "would end",
    ),
    "an offset that is not aligned": (
        header(tensors=1) + tensor("t", 1, offset=4) + b"\0" * 64,
        "not a multiple of 32",
    ),
    "part of a block": (
        header(tensors=1) + tensor("t", 33, kind=8) + b"\0" * 64,
        "not a multiple of the 32",
    ),
    "a bad alignment": (
        header(pairs=1) + text("general.alignment") + struct.pack("<II", 4, 24),
        "not a power of two",
    ),
    "an alignment of text": (
        header(pairs=1) + text("general.alignment") + struct.pack("<I", 8) + text("x"),
        "not a power",
    ),
    "too many values": (
        header(pairs=1) + text("k") + struct.pack("<IIQ", 9, 0, MAX_ITEMS) + b"\0" * MAX_ITEMS,
        "more than",
    ),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_at_once(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content.ljust(24, b"\0"))
    with pytest.raises(
        ModelError, match=rf"hostile\.gguf: at byte \d+: .*{message.replace('*', '.')}"
    ):
        GgufFile(path)


def read_all(path: Path) -> None:
    """Opens the file and reads all it has; nothing but ModelError may be raised."""
    with contextlib.suppress(ModelError):
        file = GgufFile(path)
        for name in file.tensors:
            with contextlib.suppress(ModelError):
                file.tensor(name)
        file.close()


def test_every_truncation(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    end_of_header = valid.rindex(b"iq2_xs") + 64
    for length in [*range(end_of_header), *range(end_of_header, len(valid), 97)]:
        path.write_bytes(valid[:length])
        read_all(path)
    path.write_bytes(valid[:-1])
    read_all(path)


@settings(max_examples=400)
@given(data=st.data())
def test_mutations(
    valid: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(valid)
    end_of_header = valid.rindex(b"iq2_xs") + 64
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, end_of_header))
        new = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=4),
                st.sampled_from([0, 1, 3, 1 << 31, 1 << 50, (1 << 64) - 1, len(valid)]).map(
                    lambda value: struct.pack("<Q", value)
                ),
            )
        )
        if data.draw(st.booleans()):
            content[at : at + len(new)] = new
        else:
            content[at:at] = new
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    read_all(path)
