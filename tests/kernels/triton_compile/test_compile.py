"""What the kernels compile to, on every target: against the checked-in table, and against what must
hold whatever it says."""

from __future__ import annotations

import functools

import pytest
import torch
import triton
from tests.kernels.triton_compile import compile_table
from tests.kernels.triton_compile.compile_cases import SHAPES, attention_cases
from tests.kernels.triton_compile.compile_table import taken
from tests.kernels.triton_compile.fake_driver import TARGETS, Launch
from tests.kernels.triton_compile.machine_code import Resources

from asgl.errors import ConfigError
from asgl.kernels.triton import tiles
from asgl.kernels.triton.target import Target, target_of

pytestmark = [pytest.mark.compile, pytest.mark.timeout(600)]

ATTENTION = ("extend", "decode", "decode, spans", "span")
SHARED_LIMITS = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}
WIDE = {"sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA"}

every = pytest.mark.parametrize(
    ("arch", "shape"), [(arch, shape) for arch in TARGETS for shape in SHAPES]
)


@functools.cache
def measured(arch: str, shape: str) -> dict[str, tuple[Launch, Resources]]:
    """By kernel; compiled once."""
    return {key[2]: found for key, found in compile_table.measure(arch, shape).items()}


@every
def test_table(arch: str, shape: str) -> None:
    version, expected = compile_table.read()
    if version != triton.__version__:
        pytest.skip(
            f"the table was written with Triton {version}, this is {triton.__version__}: run "
            "compile_table.py"
        )
    found = {
        (arch, shape, name): compile_table.row((arch, shape, name), *it)
        for name, it in measured(arch, shape).items()
    }
    assert found == {key: row for key, row in expected.items() if key[:2] == (arch, shape)}


@every
def test_every_kernel_fits_the_device(arch: str, shape: str) -> None:
    registers = 512 if arch == "gfx942" else 255
    for name, (launch, found) in measured(arch, shape).items():
        assert found.registers <= registers, name
        assert found.stack == 0, name  # nothing is spilled
        assert found.shared <= SHARED_LIMITS[arch], name
        assert launch.metadata.num_warps * launch.metadata.warp_size <= 1024, name


@every
def test_products_are_on_tensor_cores(arch: str, shape: str) -> None:
    kernels = measured(arch, shape)
    narrow = "MFMA" if arch == "gfx942" else "HMMA"
    for name in ("extend", "span"):
        assert kernels[name][1].products.startswith(WIDE.get(arch, "HMMA")), name
    for name in (
        "decode",
        "decode, spans",
        "head",
    ):  # 16 rows of queries are too few for the wide instructions
        assert kernels[name][1].products.startswith(narrow), name
    for name in kernels.keys() - {*ATTENTION, "head"}:
        assert kernels[name][1].products == "", name


@every
def test_keys_values_and_weights_are_read_128_bits_at_a_time(arch: str, shape: str) -> None:
    kernels = measured(arch, shape)
    for name in (*ATTENTION, "head"):
        loads = dict(part.split("x") for part in kernels[name][1].loads.split())
        assert int(loads["128"]) >= 1, name
        # narrow ones are slots, lengths and lists of rows: no 16-bit element is read alone
        assert not {"8", "16"} & loads.keys(), name
    for name in ("add_rms_norm", "silu_and_mul", "rope_and_store", "merge", "sample, greedy"):
        assert kernels[name][1].loads.startswith("128x"), name
    for name in ("add_rms_norm", "silu_and_mul", "rope_and_store"):
        assert kernels[name][1].stores.startswith("128x"), name


def test_the_bound_on_shared_memory_holds() -> None:
    """The rule that prunes tiles is above what compilers allocate, on every target."""
    chosen = {"extend": tiles.extend_tile, "decode": tiles.decode_tile, "span": tiles.span_tile}
    for arch, (_, multiprocessors) in TARGETS.items():
        for shape_name, shape in SHAPES.items():
            for name, choose in chosen.items():
                tile = choose(
                    shape.head_dim,
                    shape.heads // shape.kv_heads,
                    torch.bfloat16,
                    target_of(arch, multiprocessors),
                )
                bound = tile.shared_memory(shape.head_dim, 2)
                assert measured(arch, shape_name)[name][1].shared <= bound <= SHARED_LIMITS[arch], (
                    arch,
                    name,
                )


@pytest.mark.parametrize("arch", TARGETS)
def test_a_launch_that_would_not_fit_is_refused_before_it_is_made(arch: str) -> None:
    """With a shared memory that holds no tile, the rule raises; with less than the device has, it
    takes a smaller tile."""
    real = target_of(arch, 100)
    small = Target(arch, 100, 24_000, real.vendor)
    assert tiles.extend_tile(128, 4, torch.bfloat16, small).shared_memory(128, 2) <= 24_000
    with pytest.raises(ConfigError, match="no tile"):
        tiles.extend_tile(128, 4, torch.bfloat16, Target(arch, 100, 4_000, real.vendor))


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_head_size_has_a_tile_on_every_target(dtype: torch.dtype, head_dim: int) -> None:
    padded = max(16, 1 << (head_dim - 1).bit_length())
    for arch in TARGETS:
        target = target_of(arch, 100)
        for group in (1, 3, 4, 8, 16):
            for choose in (tiles.extend_tile, tiles.decode_tile, tiles.span_tile):
                tile = choose(head_dim, group, dtype, target)
                assert tile.shared_memory(padded, dtype.itemsize) <= SHARED_LIMITS[arch]
                assert tile.block_m >= group


@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype"),
    [
        (8, 80, torch.bfloat16),
        (8, 256, torch.bfloat16),
        (16, 128, torch.float16),
        (4, 128, torch.float32),
        (4, 256, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100", "gfx942"])
def test_other_heads_fit_by_the_same_rule(
    arch: str, heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Sizes that no table holds, at one KV head: what the rule chose compiles, and takes no more
    than the rule's bound."""
    cases = {case.name: case.launch for case in attention_cases(arch, heads, 1, head_dim, dtype)}
    for name, choose in {
        "extend": tiles.extend_tile,
        "decode": tiles.decode_tile,
        "span": tiles.span_tile,
    }.items():
        tile = choose(head_dim, heads, dtype, target_of(arch, 100))
        found = taken(cases[name])
        assert (
            found.shared
            <= tile.shared_memory(tiles.padded(head_dim), dtype.itemsize)
            <= SHARED_LIMITS[arch]
        ), name
        if dtype != torch.float32:
            # where products have memory of their own the compiler gives 8 warps 128 registers a
            # thread, and no tile was found that suits extend and span with heads of 256
            assert found.stack <= (64 if (arch, head_dim) == ("sm_100", 256) else 0), name


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_types_compile(arch: str, dtype: torch.dtype) -> None:
    for (_, _, name), (_, found) in compile_table.measure(arch, "smollm2-135m", dtype).items():
        assert found.shared <= SHARED_LIMITS[arch]
        if dtype == torch.float32:
            assert found.products == "", name  # exact float32: no tensor core rounds it to tf32
        else:
            assert found.stack == 0, name
