"""What a process may use, and what would spin beside its kernels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from asgl.kernels.cpu.cores import cores, warn_of_spinning_threads

ALONE = (
    "7f00-7f01 r-xp 0 fe:00 1 /venv/torch/lib/libgomp.so.1\n7f02-7f03 r--p 0 fe:00 1 "
    "/venv/torch/lib/libgomp.so.1\n"
    "7f06-7f07 r--p 0 fe:00 3 /venv/sentencepiece.libs/libgomp-6a29c32d.so.1.0.0\n"
)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    path = tmp_path / "maps"
    path.write_text(ALONE)
    return path


def test_the_quota_of_the_group_counts(tmp_path: Path) -> None:
    here = len(os.sched_getaffinity(0))
    for written, expected in (
        ("max 100000", here),
        ("150000 100000", min(here, 2)),
        ("1000 100000", 1),
        ("rubbish", here),
    ):
        (tmp_path / "cpu.max").write_text(written + "\n")
        assert cores(tmp_path) == expected
    assert cores(tmp_path / "nowhere") == here


def test_nothing_is_said_of_a_process_that_is_right(maps: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_spinning_threads(2, 2, maps)
        warn_of_spinning_threads(1, 2, tmp_path / "nowhere")


def test_more_threads_than_cores_are_told_with_the_remedy(maps: Path) -> None:
    with pytest.warns(RuntimeWarning, match="8 threads where .* 2 cores.* OMP_NUM_THREADS=2"):
        warn_of_spinning_threads(8, 2, maps)


@pytest.mark.parametrize(
    "other",
    ["/venv/some.libs/libgomp-24e2ab19.so.1.0.0", "/usr/lib/libiomp5.so", "/usr/lib/libomp.so.5"],
)
def test_a_second_runtime_is_told_with_the_remedy(maps: Path, other: str) -> None:
    maps.write_text(ALONE + f"7f04-7f05 r-xp 0 fe:00 2 {other}\n")
    with pytest.warns(RuntimeWarning, match=rf"{Path(other).name}.*OMP_WAIT_POLICY=passive"):
        warn_of_spinning_threads(2, 2, maps)
