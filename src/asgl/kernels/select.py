"""Chooses and makes the kernel back end of a Runtime. What is asked for by name and cannot be had
raises."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from typing import Any, Literal, get_args

import torch

from asgl import checks
from asgl.errors import ConfigError
from asgl.kernels.api import ActivationFormat, Kernels, ModelShape, Progress, WeightFormat
from asgl.kernels.reference import ReferenceKernels

KernelName = Literal["auto", "reference", "cpu", "triton"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]

_LOG = logging.getLogger("asgl")
_LAZY = {
    "cpu": ("asgl.kernels.cpu.kernels", "CpuKernels", "numba"),
    "triton": ("asgl.kernels.triton.kernels", "TritonKernels", "triton"),
}
"""Back ends that are imported when chosen: module, class, and the package that they need."""


def make_kernels(
    name: KernelName = "auto",
    device: str = "auto",
    dtype: DTypeName = "auto",
    weights: WeightFormat | Literal["auto"] = "auto",
    deterministic: bool = False,
    activations: ActivationFormat = "auto",
    progress: Progress | None = None,
    shape: ModelShape | None = None,
) -> Kernels:
    """Makes a back end, on the calling thread, which must be the device thread.

    auto: the first GPU if torch sees one, else the CPU; on it the device's own back end if it is
    installed, has the dtype and can compute models of this `shape` (None: any), else the reference;
    the dtype and weights that suit the back end. activations="int8" is a permission, of which only
    the CPU's makes use. `progress(what, ready, all)` hears of the compiling that some back ends do
    once. ConfigError for an unknown or unavailable choice: what is wrong and what to do.
    """
    checks.choice("kernels", name, get_args(KernelName))
    checks.choice("dtype", dtype, get_args(DTypeName))
    checks.choice("weights", weights, ("auto", *get_args(WeightFormat)))
    checks.choice("activations", activations, get_args(ActivationFormat))
    where = _device(device)
    chosen = _automatic(where, dtype, shape) if name == "auto" else name
    kind = _dtype(chosen, where, dtype)
    if chosen == "reference":
        return ReferenceKernels(
            where, kind, "dense" if weights == "auto" else weights, deterministic
        )
    # in Triton's interpreter its kernels run on the CPU, slowly, for tests
    interpreted = chosen == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if chosen == "triton" and where.type == "cpu" and device == "auto" and not interpreted:
        raise ConfigError(
            f"kernels='triton' needs a GPU, and torch {torch.__version__} sees none; use "
            "kernels='auto'"
        )
    if (chosen == "cpu") != (where.type == "cpu") and not interpreted:
        raise ConfigError(
            f"kernels={chosen!r} cannot run on device {str(where)!r}; leave one of them at 'auto'"
        )
    if (problem := _missing(chosen)) is not None:
        raise ConfigError(
            f"kernels={chosen!r} cannot be used: {problem}; or use kernels='reference'"
        )
    back_end = _back_end(chosen)
    if shape is not None:
        back_end.check_shape(shape, kind, where)
    return back_end(
        device=where,
        dtype=kind,
        weights=weights,
        deterministic=deterministic,
        progress=progress,
        **({"activations": activations} if chosen == "cpu" else {}),
    )


def _automatic(where: torch.device, dtype: DTypeName, shape: ModelShape | None) -> KernelName:
    """The device's own back end if it can do what is asked, else the reference."""
    own: KernelName = "triton" if where.type == "cuda" else "cpu"
    if (own == "cpu" and dtype not in ("auto", "bfloat16")) or _missing(own) is not None:
        return "reference"
    if shape is not None:
        try:
            _back_end(own).check_shape(shape, _dtype(own, where, dtype), where)
        except ConfigError as error:
            _LOG.warning("%s, which are many times slower: kernels='auto' takes them now", error)
            return "reference"
    return own


def _back_end(name: str) -> Any:
    """The class of a lazily imported back end."""
    module, kind, _ = _LAZY[name]
    return getattr(importlib.import_module(module), kind)


def _device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device must be 'auto', 'cpu' or 'cuda' (or 'cuda:0', ...), not {device!r}"
        )
    if chosen.type == "cpu":
        return chosen
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.index or 0) >= count:
        raise ConfigError(
            f"there is no device {device!r}: torch {torch.__version__} sees {count} GPUs; use 'cpu'"
        )
    return chosen if chosen.index is not None else torch.device("cuda", torch.cuda.current_device())


def _missing(name: str) -> str | None:
    """Why a lazily imported back end cannot be imported, and what to do; None if it can."""
    module, _, needs = _LAZY[name]
    if importlib.util.find_spec(needs) is None:
        return f"it needs the package {needs}, which is not installed: pip install {needs}"
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    return None if found is not None else "this installation of asgl does not have it"


def _dtype(name: str, device: torch.device, asked: DTypeName) -> torch.dtype:
    """What was asked for; by default bfloat16, but where torch would only emulate it."""
    if asked != "auto":
        return getattr(torch, asked)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if name == "reference" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16
