from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asgl.errors import ConfigError
from asgl.kernels import select
from asgl.kernels.select import make_kernels


def test_reference_by_name() -> None:
    kernels = make_kernels("reference", "cpu", "float32", "int8")
    assert (kernels.name, kernels.device, kernels.kv_dtype, kernels.weights) == (
        "reference",
        torch.device("cpu"),
        torch.float32,
        "int8",
    )


def test_auto_takes_the_reference_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_missing", lambda name: "it is not there")
    kernels = make_kernels(device="cpu")
    assert kernels.name == "reference"
    assert kernels.weights == "dense"
    assert kernels.kv_dtype in (torch.bfloat16, torch.float32)


def test_auto_takes_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Own:
        def __init__(self, **arguments: Any) -> None:
            made.append(arguments)

    monkeypatch.setattr(select, "_missing", lambda name: None)
    monkeypatch.setattr(
        select.importlib, "import_module", lambda name: SimpleNamespace(CpuKernels=Own)
    )
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
        ({"name": "fast"}, "kernels must be one of auto, reference, cpu, triton, not 'fast'"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"weights": "int2"}, "weights must be one of"),
        ({"activations": "int4"}, "activations must be one of auto, int8"),
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
    monkeypatch.setitem(
        select._LAZY, "cpu", ("asgl.kernels.nowhere.kernels", "None", "no_such_package")
    )
    with pytest.raises(
        ConfigError, match="pip install no_such_package; or use kernels='reference'"
    ):
        make_kernels("cpu", "cpu")
    monkeypatch.setitem(select._LAZY, "cpu", ("asgl.kernels.nowhere.kernels", "None", "torch"))
    with pytest.raises(ConfigError, match="this installation of asgl does not have it"):
        make_kernels("cpu", "cpu")
