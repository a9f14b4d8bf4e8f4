from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import asgl
from asgl.errors import ConfigError
from asgl.kernels.api import ModelShape
from asgl.kernels.select import make_kernels
from tiny import tiny_directory


def test_reference_by_name() -> None:
    kernels = make_kernels("reference", "cpu", "float32", "int8")
    assert (kernels.name, kernels.device, kernels.kv_dtype, kernels.weights) == (
        "reference",
        torch.device("cpu"),
        torch.float32,
        "int8",
    )


def test_auto_takes_the_reference_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    kernels = make_kernels(device="cpu")
    assert kernels.name == "reference"
    assert kernels.weights == "dense"
    assert kernels.kv_dtype in (torch.bfloat16, torch.float32)


def test_auto_takes_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Own:
        def __init__(self, **arguments: Any) -> None:
            made.append(arguments)

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(CpuKernels=Own))
    assert isinstance(make_kernels(device="cpu", deterministic=True), Own)
    assert made == [
        {
            "device": torch.device("cpu"),
            "dtype": torch.bfloat16,
            "weights": "auto",
            "deterministic": True,
            "progress": None,
            "activations": "auto",
        }
    ]
    assert make_kernels(device="cpu", dtype="float32").name == "reference"
    make_kernels("cpu", dtype="float32", weights="int4", activations="int8")
    assert (made[1]["dtype"], made[1]["weights"], made[1]["activations"]) == (
        torch.float32,
        "int4",
        "int8",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "fast"},
            "kernels must be one of 'auto', 'reference', 'cpu', 'triton', not 'fast'",
        ),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"weights": "int2"}, "weights must be one of"),
        ({"activations": "int4"}, "activations must be one of 'auto', 'int8'"),
        ({"device": "tpu7"}, "device must be"),
        ({"device": "meta"}, "device must be"),
        ({"device": "cuda:97"}, "there is no device 'cuda:97'"),
        ({"name": "triton", "device": "cpu"}, "cannot run on device 'cpu'"),
    ],
)
def test_impossible_choices(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_kernels(**arguments)


def test_triton_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError,
        match=r"kernels='triton' needs a GPU, and torch .* sees none; use kernels='auto'",
    ):
        make_kernels("triton")


def test_an_unavailable_back_end_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"numba"}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    with pytest.raises(ConfigError, match="pip install numba; or use kernels='reference'"):
        make_kernels("cpu", "cpu")
    missing.clear()
    missing.add("asgl.kernels.cpu.kernels")
    with pytest.raises(ConfigError, match="this installation of asgl does not have it"):
        make_kernels("cpu", "cpu")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ModelShape(48, 2, (64, 96)), "heads of a multiple of 32, not of 48"),
        (ModelShape(100, 2, (64, 96)), "heads of a multiple of 32, not of 100"),
        (ModelShape(64, 2, (64, 90)), "a matrix of 90 inputs"),
    ],
    ids=str,
)
def test_auto_falls_through_to_a_back_end_that_can(shape: ModelShape, message: str) -> None:
    assert make_kernels(device="cpu", shape=shape).name == "reference"
    with pytest.raises(ConfigError, match=message):
        make_kernels("cpu", "cpu", shape=shape)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ({"head_dim": 48}, "reference"),
        ({"head_dim": 80}, "reference"),
        ({"head_dim": 100}, "reference"),
        ({"head_dim": 96}, "cpu"),
        ({"head_dim": 64, "hidden_size": 60}, "reference"),
        ({"head_dim": 64, "intermediate_size": 97}, "reference"),
    ],
    ids=str,
)
async def test_any_shape_opens(tmp_path: Path, sizes: dict[str, int], chosen: str) -> None:
    """And says nearly what float32 says."""
    model = str(tiny_directory(tmp_path, **sizes))
    found: list[list[float]] = []
    for options, name in (
        ({}, chosen),
        ({"kernels": "reference", "dtype": "float32"}, "reference"),
    ):
        async with asgl.Runtime(model, kv_cache_tokens=500, **options) as rt:
            assert rt.model.kernels == name
            select = rt.prompt("one of them").select(None, [" and", " other"], method="sum")
            await select
            found.append([number for option in select.token_logprobs for number in option])
    assert found[0] == pytest.approx(found[1], abs=0.1)


def test_a_fall_back_is_said(caplog: pytest.LogCaptureFixture) -> None:
    shape = ModelShape(48, 3, (64,))
    assert make_kernels(device="cpu", shape=shape).name == "reference"
    (record,) = caplog.records
    assert "heads of a multiple of 32, not of 48" in record.message
    assert "many times slower" in record.message
