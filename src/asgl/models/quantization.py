"""Quantized weights of Hugging Face directories: what `quantization_config` says, and how tensors
of that format become matrices.

A matrix NAME.weight of n outputs and k inputs is kept in several tensors:

    fp8                 weight float8 [n, k] | weight_scale_inv, or weight_scale
    gptq                qweight [k in words, n] | qzeros [groups, n in words] | scales | g_idx
    awq                 qweight [k, n in words] | qzeros [groups, n in words] | scales
    compressed-tensors  weight_packed [n, k in words], or weight | weight_scale | weight_zero_point
    mxfp4               NAME_blocks [..., k / 32, 16] | NAME_scales [..., k / 32]

Words are of 32 bits, filled from the lowest bit. Whether a matrix is quantized is told by the
tensors that there are, not by lists of modules. Activations are never rounded, whatever the config
says of them: that only comes nearer to the model that was quantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asgl.kernels.quantized import E2M1, QuantizedTensor
from asgl.models.settings import Settings

Read = Callable[[Mapping[str, Tensor], tuple[int, int]], Tensor | QuantizedTensor]
"""From the tensors of a matrix, by the ends of their names, and its shape n x k, to the matrix.
ValueError, which says why, if they do not fit together."""

_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where the word of eight columns has the first one, the second one, and so on."""
_FP8_UNIT = 512
"""All numbers of float8 (e4m3) are multiples of 1 / 512."""
_SMALLEST_GROUP = 16


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How a matrix is kept. `needed`, `optional`: ends of the names of its tensors, which stand
    after what `stem` gives. `unused`: those that say nothing of its weights."""

    needed: tuple[str, ...]
    read: Read
    optional: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    joint: str = "."

    def stem(self, stored: str) -> str:
        """What the names of the matrix's tensors begin with."""
        return stored.removesuffix(".weight") + self.joint

    def names(self, stored: str, there: Collection[str]) -> dict[str, str]:
        """The names of the tensors in the files that belong to the matrix, by their ends; none if
        it is not kept so."""
        stem = self.stem(stored)
        if any(stem + end not in there for end in self.needed):
            return {}
        ends = (*self.needed, *self.optional, *self.unused)
        return {end: stem + end for end in ends if stem + end in there}


def quantization(path: Path, architecture: str, config: Any) -> tuple[MatrixFormat, ...]:
    """The formats in which matrices of a model may be, by the quantization_config of its
    config.json. ModelError names what cannot be read."""
    settings = Settings(path, architecture, {"quantization_config": config})
    section = settings.section("quantization_config")
    if not section:
        return ()
    method = section.text("quant_method")
    if method not in _METHODS:
        raise section.error(
            "quant_method", f"weights in this format cannot be read; {', '.join(_METHODS)} can"
        )
    reader, harmless = _METHODS[method]
    formats = reader(section)
    section.finish(frozenset(harmless.split()) | _MODULES, {})
    return formats


_MODULES = frozenset(
    {"ignore", "ignored_layers", "modules_to_not_convert", "modules_in_block_to_quantize"}
)
"""Keys that say which modules are not quantized, which the tensors say, too."""


def _fp8(settings: Settings) -> tuple[MatrixFormat, ...]:
    if settings.text("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise settings.error("fmt", "only e4m3 can be read")
    block = _block_size(settings, "weight_block_size")
    return tuple(
        MatrixFormat(
            needed=("weight", scale),
            read=lambda parts, shape, scale=scale: _float8(
                parts["weight"], parts[scale], shape, block
            ),
            unused=("input_scale", "activation_scale"),
        )
        for scale in ("weight_scale_inv", "weight_scale")
    )


def _block_size(settings: Settings, key: str) -> tuple[int, int] | None:
    block = settings.items(key)
    if not block:
        return None
    if len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise settings.error(key, "two positive numbers are needed")
    return (block[0], block[1])


def _float8(
    weight: Tensor, scale: Tensor, shape: tuple[int, int], block: tuple[int, int] | None
) -> QuantizedTensor | Tensor:
    """float8 numbers times a scale for all, for each row, for groups of a row, or for blocks."""
    if weight.dtype != torch.float8_e4m3fn or tuple(weight.shape) != shape:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}")
    quants = weight.view(torch.uint8)
    if bool(((quants & 0x7F) == 0x7F).any()):
        raise ValueError("there are weights that are NaN")
    n, k = shape
    across, along = _spread(scale, shape, block)
    group = math.gcd(k, along)
    scale = scale.float().reshape(-1, -(-k // along))
    if group < _SMALLEST_GROUP:
        columns = torch.arange(k) // along
        return weight.float() * scale.repeat_interleave(across, dim=0)[:n, columns]
    columns = torch.arange(0, k, group) // along
    scale = scale.repeat_interleave(across, dim=0)[:n, columns] / _FP8_UNIT
    return QuantizedTensor(quants, scale, None, 8, group, codebook=_float8_levels())


def _spread(
    scale: Tensor, shape: tuple[int, int], block: tuple[int, int] | None
) -> tuple[int, int]:
    """How many rows and columns share one of the scales."""
    n, k = shape
    if scale.numel() == 1:
        return (n, k)
    if scale.dim() == 1 and scale.numel() == n:
        return (1, k)
    if scale.dim() == 2:
        rows, columns = scale.shape
        if block is not None and (rows, columns) == (-(-n // block[0]), -(-k // block[1])):
            return block
        if block is None and rows == n and columns and k % columns == 0:
            return (1, k // columns)
    of = f" in blocks of {block[0]} x {block[1]}" if block else ""
    raise ValueError(f"scales of shape {list(scale.shape)}{of} do not fit")


def _float8_levels() -> tuple[int, ...]:
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(0)
    return tuple(int(number) for number in (numbers * _FP8_UNIT).tolist())


def _gptq(settings: Settings) -> tuple[MatrixFormat, ...]:
    bits = settings.integer("bits")
    if bits not in (2, 3, 4, 8):
        raise settings.error("bits", "only 2, 3, 4 and 8 can be read")
    form = settings.text("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise settings.error("checkpoint_format", "only gptq and gptq_v2 can be read")
    first = 1 if form == "gptq" else 0  # the first version stored zero points less one
    _group_size(settings, "group_size")

    def read(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor | QuantizedTensor:
        n, k = shape
        words = parts["qweight"]
        _has_shape("qweight", words, (k * bits // 32, n))
        scale = parts["scales"]
        _has_shape("qzeros", parts["qzeros"], (len(scale), n * bits // 32))
        quants = _unpack(words.T.contiguous(), bits)
        zeros = (_unpack(parts["qzeros"], bits).T + first) & (2**bits - 1)
        groups = parts.get("g_idx")
        if groups is not None and groups.numel() != k:
            raise ValueError(f"g_idx has {groups.numel()} elements")
        return _grouped(quants, scale.T.float(), zeros, bits, groups)

    return (MatrixFormat(("qweight", "qzeros", "scales"), read, optional=("g_idx",)),)


def _awq(settings: Settings) -> tuple[MatrixFormat, ...]:
    if settings.integer("bits") != 4:
        raise settings.error("bits", "only 4 can be read")
    if settings.text("version", "gemm").lower() != "gemm":
        raise settings.error("version", "only gemm can be read")
    _group_size(settings, "group_size")

    def read(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor | QuantizedTensor:
        n, k = shape
        _has_shape("qweight", parts["qweight"], (k, n // 8))
        scale = parts["scales"]
        _has_shape("qzeros", parts["qzeros"], (len(scale), n // 8))

        def columns(words: Tensor) -> Tensor:
            return _unpack(words, 4).unflatten(1, (-1, 8))[:, :, _AWQ_ORDER].flatten(1).T

        quants = columns(parts["qweight"]).contiguous()
        return _grouped(quants, scale.T.float(), columns(parts["qzeros"]), 4, None)

    return (MatrixFormat(("qweight", "qzeros", "scales"), read),)


def _compressed(settings: Settings) -> tuple[MatrixFormat, ...]:
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if settings.section(key):
            raise settings.error(key, "this cannot be computed")
    groups = settings.section("config_groups")
    if len(groups.keys()) != 1:
        raise settings.error("config_groups", "one group of modules can be read")
    (name,) = groups.keys()
    group = groups.section(name)
    source = group if group.mentions("format") else settings
    form = source.text("format")
    if form not in ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"):
        raise source.error(
            "format", "only pack-quantized, int-quantized and float-quantized can be read"
        )
    settings.text("format", form)
    weights = group.section("weights")
    found = _compressed_weights(weights, form)
    weights.finish(_NOT_OF_WEIGHTS, {})
    group.finish(frozenset({"targets", "input_activations", "output_activations"}), {})
    groups.finish(frozenset(), {})
    return (found,)


_NOT_OF_WEIGHTS = frozenset(
    {"actorder", "dynamic", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"}
)
"""Keys of compressed-tensors that say how weights were rounded, or what the tensors say, too."""


def _compressed_weights(weights: Settings, form: str) -> MatrixFormat:
    """How the weights of one of the config_groups are kept."""
    bits, kind = weights.integer("num_bits"), weights.text("type", "int")
    weights.flag("symmetric", True)
    strategy = weights.text("strategy", "tensor")
    if strategy not in ("tensor", "channel", "group", "block"):
        raise weights.error("strategy", "only tensor, channel, group and block can be read")
    _group_size(weights, "group_size")
    block = _block_size(weights, "block_structure") if strategy == "block" else None
    unused = (
        "input_scale",
        "output_scale",
        "input_zero_point",
        "output_zero_point",
        "weight_shape",
    )
    if kind == "float":
        if bits != 8 or form == "pack-quantized":
            raise weights.error("num_bits", f"only 8 bits of the type {kind!r} can be read")
        return MatrixFormat(
            ("weight", "weight_scale"),
            lambda parts, shape: _float8(parts["weight"], parts["weight_scale"], shape, block),
            unused=("weight_zero_point", *unused),
        )
    if kind != "int" or bits not in ((2, 4, 8) if form == "pack-quantized" else (8,)):
        raise weights.error("num_bits", f"this cannot be read in the format {form} of type {kind}")
    if block is not None:
        raise weights.error("strategy", "blocks can be read of the type 'float' only")
    packed = "weight_packed" if form == "pack-quantized" else "weight"
    half = 1 << (bits - 1)  # signed numbers are stored with this added, where they are packed

    def read(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor | QuantizedTensor:
        n, k = shape
        words, scale = parts[packed], parts["weight_scale"].float()
        if form == "pack-quantized":
            _has_shape(packed, words, (n, -(-k * bits // 32)))
            quants = _unpack(words, bits)[:, :k].contiguous()
        else:
            _has_shape(packed, words, shape)
            quants = words.view(torch.uint8) ^ 0x80
        rows, _ = _spread(scale, shape, None)
        scale = scale.reshape(n // rows, -1).expand(n, -1)
        zeros = parts.get("weight_zero_point")
        if zeros is None:
            zeros = torch.tensor(half).expand(scale.shape)
        elif zeros.dtype == torch.int32:  # packed along the outputs
            zeros = _unpack(zeros.T.contiguous(), bits)[:, :n].T
            _has_shape("weight_zero_point", zeros, tuple(scale.shape))
        else:
            zeros = (zeros.int().reshape(n // rows, -1) + half).expand(scale.shape)
        return _grouped(quants, scale, zeros, bits, parts.get("weight_g_idx"))

    optional = ("weight_zero_point", "weight_g_idx")
    return MatrixFormat((packed, "weight_scale"), read, optional, unused)


def _mxfp4(settings: Settings) -> tuple[MatrixFormat, ...]:
    def read(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> QuantizedTensor:
        n, k = shape
        blocks, exponents = parts["blocks"], parts["scales"]
        if blocks.numel() != n * k // 2 or exponents.numel() != n * k // 32:
            raise ValueError(f"blocks {list(blocks.shape)}, scales {list(exponents.shape)}")
        quants = torch.stack([blocks & 15, blocks >> 4], dim=-1).view(n, k)
        # the levels are doubled, which halves the scales
        exponents = exponents.view(n, -1).int() - 128
        scale = torch.ldexp(torch.ones(exponents.shape), exponents)
        return QuantizedTensor(quants, scale, None, 4, 32, codebook=E2M1)

    return (MatrixFormat(("blocks", "scales"), read, joint="_"),)


_METHODS: Mapping[str, tuple[Callable[[Settings], tuple[MatrixFormat, ...]], str]] = {
    "fp8": (_fp8, "activation_scheme dequantize scale_fmt"),
    "gptq": (
        _gptq,
        "act_group_aware backend batch_size block_name_to_quantize cache_block_outputs "
        "damp_auto_increment damp_percent dataset desc_act exllama_config format hyb_act lm_head "
        "max_input_length meta method model_file_base_name model_name_or_path model_seqlen mse "
        "pack_dtype pad_token_id quantizer static_groups sym tokenizer true_sequential "
        "use_cuda_fp16 use_exllama",
    ),
    "awq": (_awq, "backend do_fuse exllama_config fuse_max_seq_len modules_to_fuse zero_point"),
    "compressed-tensors": (
        _compressed,
        "global_compression_ratio quantization_status run_compressed version",
    ),
    "mxfp4": (_mxfp4, "dequantize"),
}
"""By quant_method: what reads its settings, and the keys that say nothing of the numbers."""


def _group_size(settings: Settings, key: str) -> None:
    """The size of groups shows in the scales' shape; it must be a number, if it is there."""
    if settings.integer(key, 1) == 0:
        raise settings.error(key, "a positive number is needed, or -1 for whole rows")


def _has_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(shape)}")


def _unpack(words: Tensor, bits: int) -> Tensor:
    """uint8 [rows, 32 / bits * words] of int32 [rows, words]."""
    if words.dtype != torch.int32:
        raise ValueError(f"{words.dtype} is not the type of words of 32 bits")
    packed = words.contiguous().view(torch.uint8)
    if bits == 3:  # across the ends of bytes and words
        stream = np.unpackbits(packed.numpy(), axis=1, bitorder="little")
        stream = stream[:, : stream.shape[1] // 3 * 3].reshape(len(stream), -1, 3)
        return torch.from_numpy(stream[:, :, 0] | stream[:, :, 1] << 1 | stream[:, :, 2] << 2)
    each = 8 // bits
    quants = packed.new_empty(packed.shape[0], packed.shape[1] * each)
    for i in range(each):
        quants[:, i::each] = packed >> (i * bits) & (2**bits - 1)
    return quants


def _grouped(
    quants: Tensor, scale: Tensor, zeros: Tensor, bits: int, group_of: Tensor | None
) -> Tensor | QuantizedTensor:
    """scale * (quant - zero). scale, zeros: [n, groups]. group_of [k]: the group of each input;
    None, or in order, for groups of neighbours. Otherwise the matrix comes dense."""
    n, k = quants.shape
    _has_shape("scales", scale, (n, scale.shape[1]))
    _has_shape("zero points", zeros, (n, scale.shape[1]))
    groups = scale.shape[1]
    if groups == 0 or k % groups:
        raise ValueError(f"{groups} groups do not divide {k} inputs")
    group = k // groups
    if group_of is not None and not torch.equal(group_of, torch.arange(k) // group):
        if not 0 <= int(group_of.min()) <= int(group_of.max()) < groups:
            raise ValueError(f"the groups of inputs are not 0 to {groups - 1}")
        at = group_of.long()
        return scale[:, at] * (quants.float() - zeros.float()[:, at])
    scale = scale.contiguous()
    if zeros.numel() and bool((zeros == zeros[0, 0]).all()):
        return QuantizedTensor(quants, scale, None, bits, group, int(zeros[0, 0]))
    return QuantizedTensor(quants, scale, -scale * zeros, bits, group)
