from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import hf_quantized as packed
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from asgl.errors import ModelError
from asgl.kernels.quantized import QuantizedTensor
from asgl.models.layout import expected_shapes
from asgl.models.quantization import quantization
from asgl.models.safetensors_checkpoint import SafetensorsCheckpoint

GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "damp_percent": 0.1,
    "true_sequential": True,
}
AWQ: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": None,
}
FP8: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [32, 32],
}


def compressed(form: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {**group, **more}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def ints(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    of = {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": True}
    return {**of, "dynamic": False, "observer": "minmax", **more}


FLOAT = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}

KINDS: dict[str, tuple[dict[str, Any], packed.Packer, int | None]] = {
    "gptq": (GPTQ, packed.gptq(), 4),
    "gptq, asymmetric": (GPTQ | {"sym": False}, packed.gptq(symmetric=False), 4),
    "gptq v2": (
        GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
        packed.gptq(symmetric=False, first=0),
        4,
    ),
    "gptq, whole rows": (GPTQ | {"group_size": -1}, packed.gptq(group=32), 4),
    "gptq, 8 bits": (GPTQ | {"bits": 8}, packed.gptq(bits=8), 8),
    "gptq, 3 bits": (GPTQ | {"bits": 3}, packed.gptq(bits=3, symmetric=False), 3),
    "gptq, 2 bits": (GPTQ | {"bits": 2}, packed.gptq(bits=2), 2),
    "gptq, act-order": (GPTQ | {"desc_act": True}, packed.gptq(act_order=True), None),
    "awq": (AWQ, packed.awq(), 4),
    "fp8 blocks": (FP8, packed.float8("block", (32, 32)), 8),
    "fp8 blocks that do not divide": (
        FP8 | {"weight_block_size": [40, 40]},
        packed.float8("block", (40, 40)),
        None,
    ),
    "fp8 blocks that divide in part": (
        FP8 | {"weight_block_size": [48, 48]},
        packed.float8("block", (48, 48)),
        8,
    ),
    "fp8 tensors": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        packed.float8("tensor", name="weight_scale"),
        8,
    ),
    "W4A16": (
        compressed("pack-quantized", ints(4, "group", group_size=32)),
        packed.compressed(),
        4,
    ),
    "W4A16, asymmetric": (
        compressed("pack-quantized", ints(4, "group", group_size=32, symmetric=False)),
        packed.compressed(symmetric=False),
        4,
    ),
    "W4A16, act-order": (
        compressed("pack-quantized", ints(4, "group", group_size=32, actorder="group")),
        packed.compressed(act_order=True),
        None,
    ),
    "W8A16, channels": (
        compressed("pack-quantized", ints(8, "channel")),
        packed.compressed(bits=8, group=None),
        8,
    ),
    "int8": (compressed("int-quantized", ints(8, "channel")), packed.int8(), 8),
    "int8, asymmetric": (
        compressed("int-quantized", ints(8, "channel", symmetric=False)),
        packed.int8(symmetric=False),
        8,
    ),
    "float8": (
        compressed("float-quantized", FLOAT),
        packed.float8("row", name="weight_scale"),
        8,
    ),
    "float8 by group's format": (
        compressed("mixed-precision", FLOAT, format="float-quantized"),
        packed.float8("row", name="weight_scale"),
        8,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_have_the_numbers_of_the_definition(tmp_path: Path, kind: str) -> None:
    settings, packer, bits = KINDS[kind]
    expected = packed.quantized_directory(tmp_path / "model", settings, packer)
    checkpoint = SafetensorsCheckpoint(tmp_path / "model")
    for name in expected_shapes(checkpoint.config):
        tensor = checkpoint.tensor(name)
        stored = f"{checkpoint._layout.stored(name)}"
        if stored not in expected:
            assert isinstance(tensor, torch.Tensor)
            continue
        if bits is None:
            assert isinstance(tensor, torch.Tensor)
        else:
            assert isinstance(tensor, QuantizedTensor)
            assert tensor.bits == bits
            tensor = tensor.dequantize(torch.float32)
        torch.testing.assert_close(tensor, expected[stored], rtol=1e-6, atol=1e-7)
    names = [what.split()[0] for what, _ in checkpoint.raw()]
    assert len(names) > len(expected_shapes(checkpoint.config))
    checkpoint.close()


def test_a_zero_point_that_all_share_needs_no_offsets(tmp_path: Path) -> None:
    for kind, offsets in (("gptq", False), ("gptq, asymmetric", True), ("W4A16", False)):
        settings, packer, _ = KINDS[kind]
        packed.quantized_directory(tmp_path / kind, settings, packer)
        tensor = SafetensorsCheckpoint(tmp_path / kind).tensor("layers.0.q")
        assert isinstance(tensor, QuantizedTensor)
        assert (tensor.offset is not None) == offsets
        assert tensor.format.zero == (0 if offsets else 8)


def test_blocks_of_float8_as_transformers_reads_them() -> None:
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    parts, _ = packed.float8("block", (128, 128))(weight, torch.Generator())
    by_transformers = Fp8Dequantize(None)._dequantize_one(
        parts["weight"], parts["weight_scale_inv"], torch.float32
    )
    (form, _) = quantization(Path("c"), "llama", FP8 | {"weight_block_size": [128, 128]})
    tensor = form.read(parts, (256, 384))
    assert isinstance(tensor, QuantizedTensor)
    assert (tensor.group, tensor.bits) == (128, 8)
    torch.testing.assert_close(tensor.dequantize(torch.float32), by_transformers)


def test_mxfp4_as_transformers_reads_it() -> None:
    weight = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(0)) * 0.01
    parts, value = packed.mxfp4(weight)
    (form,) = quantization(Path("c"), "gpt_oss", {"quant_method": "mxfp4"})
    there = {"experts.gate_up_proj_blocks", "experts.gate_up_proj_scales"}
    assert set(form.names("experts.gate_up_proj", there).values()) == there
    tensor = form.read(parts, (3 * 8, 64))
    assert isinstance(tensor, QuantizedTensor)
    dense = tensor.dequantize(torch.float32)
    assert torch.equal(dense, value.view(24, 64))
    by_transformers = convert_moe_packed_tensors(
        parts["blocks"], parts["scales"], dtype=torch.float32
    )
    assert torch.equal(dense.view(3, 8, 64), by_transformers.transpose(1, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4}, "quantization_config.quant_method is None"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "quant_method is 'bitsandbytes' .*cannot be read; fp8, gptq, awq",
        ),
        (GPTQ | {"bits": 5}, "bits is 5 .*only 2, 3, 4 and 8"),
        (GPTQ | {"bits": "4"}, "bits is '4'"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        (GPTQ | {"dynamic": {"+:.*": {"bits": 8}}}, "dynamic is .*not known how"),
        (GPTQ | {"group_size": 0}, "group_size is 0"),
        (AWQ | {"version": "gemv"}, "version is 'gemv'"),
        (AWQ | {"bits": 8}, "bits is 8"),
        (FP8 | {"fmt": "e5m2"}, "fmt is 'e5m2'"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size is"),
        (FP8 | {"something": 1}, "something is 1 .*not known"),
        (compressed("nvfp4-pack-quantized", FLOAT), "format is 'nvfp4-pack-quantized'"),
        (compressed("pack-quantized", ints(3, "group")), "weights.num_bits is 3"),
        (compressed("pack-quantized", FLOAT), "num_bits is 8 .*'float'"),
        (compressed("int-quantized", ints(8, "token")), "strategy is 'token'"),
        (compressed("int-quantized", ints(8, "channel")) | {"sparsity_config": {"a": 1}}, "spars"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "config_groups is"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    packed.quantized_directory(tmp_path / "model", settings, packed.gptq())
    with pytest.raises(
        ModelError, match=rf"config\.json: quantization_config\.{message}|{message}"
    ):
        SafetensorsCheckpoint(tmp_path / "model")


def changed(path: Path, **parts: torch.Tensor | None) -> SafetensorsCheckpoint:
    """The model in the directory with other tensors of layer 0's down_proj."""
    tensors = {
        name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()
    }
    for end, tensor in parts.items():
        name = f"model.layers.0.mlp.down_proj.{end}"
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return SafetensorsCheckpoint(path)


DOWN = r"model\.safetensors: 'model\.layers\.0\.mlp\.down_proj\.', a quantized matrix of \[64, 96\]"


@pytest.mark.parametrize(
    ("kind", "parts", "message"),
    [
        ("gptq", {"qweight": torch.zeros(11, 64, dtype=torch.int32)}, "qweight has shape"),
        ("gptq", {"qweight": torch.zeros(12, 64)}, "not the type of words"),
        ("gptq", {"qzeros": torch.zeros(2, 8, dtype=torch.int32)}, "qzeros has shape"),
        ("gptq", {"g_idx": torch.full((96,), 3, dtype=torch.int32)}, "groups of inputs are not"),
        ("gptq", {"g_idx": torch.zeros(95, dtype=torch.int32)}, "g_idx has 95"),
        ("fp8 blocks", {"weight": torch.zeros(64, 96)}, r"weight is torch\.float32"),
        ("fp8 blocks", {"weight_scale_inv": torch.ones(2, 2)}, r"scales of shape \[2, 2\] in bl"),
        (
            "fp8 blocks",
            {"weight": torch.full((64, 96), torch.nan).to(torch.float8_e4m3fn)},
            "weights that are NaN",
        ),
        ("W4A16", {"weight_packed": torch.zeros(64, 13, dtype=torch.int32)}, "weight_packed has"),
        ("W4A16", {"weight_scale": torch.ones(64, 5)}, "scales of shape"),
        ("int8", {"weight_scale": torch.ones(63)}, "scales of shape"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, kind: str, parts: dict[str, torch.Tensor], message: str
) -> None:
    settings, packer, _ = KINDS[kind]
    packed.quantized_directory(tmp_path / "model", settings, packer)
    checkpoint = changed(tmp_path / "model", **parts)
    with pytest.raises(ModelError, match=rf"{DOWN}, cannot be read: .*{message}"):
        checkpoint.tensor("layers.0.down")


def test_a_matrix_of_which_a_tensor_is_missing(tmp_path: Path) -> None:
    packed.quantized_directory(tmp_path / "model", GPTQ, packed.gptq())
    with pytest.raises(ModelError, match=r"'model\.layers\.0\.mlp\.down_proj\.weight' is missing"):
        changed(tmp_path / "model", scales=None)


def test_scales_that_are_no_numbers(tmp_path: Path) -> None:
    packed.quantized_directory(tmp_path / "model", GPTQ, packed.gptq())
    checkpoint = changed(tmp_path / "model", scales=torch.full((3, 64), torch.inf))
    with pytest.raises(ModelError, match=r"down_proj\.' has scales that are NaN or infinite"):
        checkpoint.tensor("layers.0.down")


def test_a_bias_that_is_not_zero(tmp_path: Path) -> None:
    packed.quantized_directory(tmp_path / "model", GPTQ, packed.gptq())
    with pytest.raises(ModelError, match=r"down_proj\.bias' is of no use"):
        changed(tmp_path / "model", bias=torch.ones(64))


def test_settings_without_quantization() -> None:
    for nothing in (None, {}):
        assert quantization(Path("c"), "llama", copy.copy(nothing)) == ()
