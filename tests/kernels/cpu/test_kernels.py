"""What the contract does not ask of every back end: bit-identical results, all layers in one call,
processes, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.kernels.batches import (
    Span,
    arrival,
    batch_of,
    generator,
    how_to_sample,
    random_keys,
)
from torch import Tensor

from asgl.errors import ConfigError, EngineError
from asgl.kernels.api import Attending, Batch, Rotation
from asgl.kernels.cpu.compile import Entry
from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.cpu.threads import Team
from asgl.kernels.forward import StepByStep, Verbs
from asgl.kernels.quantized import quantize

HEADS, KV_HEADS, HEAD_DIM, D, F = 6, 2, 32, 64, 96
POOL = 3000
Make = Callable[..., CpuKernels]


class Model:
    """Random layers, with the states of a token a function of its id, and the KV of any context
    computed as it goes."""

    def __init__(
        self, kernels: CpuKernels, layers: int = 2, bits: int = 4, **attending: Any
    ) -> None:
        self.kernels = kernels

        def matrix(n: int, k: int, seed: int, bias: Tensor | None = None) -> Any:
            dense = torch.randn(n, k, generator=generator(seed)) / k**0.5
            return kernels.pack_linear(quantize(dense, bits) if bits < 16 else dense, bias=bias)

        qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        self.layers = [
            {
                "attention_norm": torch.rand(D, generator=generator(i)) + 0.5,
                "qkv": matrix(
                    qkv, D, 10 * i + 1, torch.randn(qkv, generator=generator(2)) if i else None
                ),
                "o": matrix(D, HEADS * HEAD_DIM, 10 * i + 3),
                "mlp_norm": torch.rand(D, generator=generator(10 * i + 4)) + 0.5,
                "gate_up": matrix(2 * F, D, 10 * i + 5),
                "down": matrix(D, F, 10 * i + 6),
            }
            for i in range(layers)
        ]
        self.norm = torch.rand(D, generator=generator(99)) + 0.5
        rope = torch.randn(2048, HEAD_DIM, generator=generator(98))
        self.rotation = Rotation(KV_HEADS, HEAD_DIM, rope)
        self.attending = Attending(HEAD_DIM**-0.5, **attending)
        self.table = torch.randn(100, D, generator=generator(97))
        self.caches = [
            tuple(
                torch.full((POOL, KV_HEADS, HEAD_DIM), torch.nan, dtype=torch.bfloat16)
                for _ in range(2)
            )
            for _ in range(layers)
        ]
        self.recorded = kernels.record(self.forward, D, 1e-5)

    def forward(self, verbs: Verbs) -> Any:
        for i, layer in enumerate(self.layers):
            verbs.start_layer(i)
            qkv = verbs.linear(verbs.norm(layer["attention_norm"]), layer["qkv"])
            q = verbs.rotate_and_store(qkv, self.rotation)
            attended = verbs.attention(q, self.attending)
            if i == len(self.layers) - 1:
                attended = verbs.keep_wanted(attended)
            verbs.add(attended, layer["o"])
            x = verbs.norm(layer["mlp_norm"])
            verbs.add(verbs.gated(x, layer["gate_up"], "silu"), layer["down"])
        return verbs.norm(self.norm)

    def run(
        self, contexts: list[list[int]], ids: list[list[int]], shared: tuple[Span, ...] = ()
    ) -> list[Tensor]:
        """The last states of each row's new tokens `ids`."""
        batch = batch_of(contexts, [len(own) for own in ids], shared)
        hidden = self.table[[token for own in ids for token in own]].clone()
        at = torch.arange(len(hidden))
        out = self.kernels.run(self.recorded, hidden, batch, self.caches, at)
        assert out is not None
        return [part.clone() for part in out.split([len(own) for own in ids])]


def by_single_calls(model: Model, hidden: Tensor, batch: Batch, at: Tensor) -> Tensor:
    verbs = StepByStep(model.kernels, hidden, batch, model.caches, at, 1e-5)
    return model.forward(verbs)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("rows", [[(0, 1)], [(5, 1), (70, 3)], [(0, 90), (130, 40)]], ids=str)
def test_all_layers_at_once_are_the_single_calls(
    make: Make, bits: int, rows: list[tuple[int, int]]
) -> None:
    model = Model(make(weights="auto"), bits=bits)
    contexts = [
        list(range(200 * i, 200 * i + prefix + new)) for i, (prefix, new) in enumerate(rows)
    ]
    if any(prefix for prefix, _ in rows):
        model.run(
            [c[:prefix] for c, (prefix, _) in zip(contexts, rows, strict=True) if prefix],
            [list(range(prefix)) if prefix < 100 else [7] * prefix for prefix, _ in rows if prefix],
        )
    batch = batch_of(contexts, [new for _, new in rows])
    n = len(batch.input_ids)
    hidden = torch.randn(n, D, generator=generator(5))
    for at in (torch.arange(n), torch.tensor([n - 1]), torch.tensor([n - 1, 0, n - 1])):
        expected = by_single_calls(model, hidden.clone(), batch, at).clone()
        found = model.kernels.run(model.recorded, hidden.clone(), batch, model.caches, at)
        assert found is not None
        assert torch.equal(found, expected)
    assert model.kernels.run(model.recorded, hidden.clone(), batch, model.caches, None) is None


def test_layers_of_another_model_leave_no_phases_of_a_deeper_one() -> None:
    """They share the record that says how many pieces each phase has, and a late helper of the
    deeper one may read it."""
    entry = Entry("log_softmax", Team(1, 9), 1)
    for phases in (5, 2):
        entry.need(phases)
        assert entry.phases == 5


def test_an_entry_takes_the_fields_of_its_record() -> None:
    entry = Entry("log_softmax", Team(1, 1), 1)
    for fields in ({"m": 1}, {"logits": 0, "m": 0, "n": 0, "out": 0, "d": 0}):
        with pytest.raises(TypeError, match=r"log_softmax takes job, logits, m, n, out"):
            entry(**fields)


def test_deterministic_results_depend_on_nothing_but_the_tokens(make: Make) -> None:
    """alone = batched = shared = extended in pieces = decoded one by one, in every bit."""
    model = Model(make(weights="auto", deterministic=True), layers=2)
    ids = [int(i) for i in torch.randint(0, 100, (700,), generator=generator(3))]
    own = list(range(700))
    alone = model.run([own], [ids])[0]

    pieces = [
        model.run([own[:end]], [ids[start:end]])[0]
        for start, end in ((0, 33), (33, 300), (300, 699), (699, 700))
    ]
    assert torch.equal(torch.cat(pieces), alone)

    other = list(range(1000, 1600))
    batched = model.run([other, own], [[5] * 600, ids])[1]
    assert torch.equal(batched, alone)

    tails = [list(range(2000 + 40 * i, 2040 + 40 * i)) for i in range(20)]
    contexts = [own[:650] + tail for tail in tails]
    model.run([context[:-1] for context in contexts], [ids[650:689]] * 20)
    for shared in (
        (),
        ((0, 650, tuple(range(20))),),
        ((0, 256, tuple(range(20))), (256, 650, tuple(range(7)))),
    ):
        for out in model.run(contexts, [[ids[689]]] * 20, shared):
            assert torch.equal(out[0], alone[689])
    assert torch.equal(model.run(contexts[:1], [[ids[689]]])[0][0], alone[689])


def test_deterministic_logits_do_not_depend_on_the_batch(make: Make) -> None:
    kernels = make(weights="auto", deterministic=True)
    head = kernels.pack_head(quantize(torch.randn(500, D, generator=generator(1)), 8))
    x = torch.randn(70, D, generator=generator(2))
    together = kernels.head(x, head).clone()
    for m in (1, 3, 8, 40):
        assert torch.equal(kernels.head(x[5 : 5 + m], head), together[5 : 5 + m])


def test_results_do_not_depend_on_the_number_of_threads(make: Make) -> None:
    outs = []
    for threads in (1, 2, 3):
        kernels = CpuKernels(weights="auto", deterministic=True, threads=threads)
        assert kernels.threads == threads
        model = Model(kernels)
        outs.append(model.run([list(range(400)), list(range(500, 900))], [[3] * 400, [4] * 400]))
    for out in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(out, outs[0], strict=True))


def test_a_forked_child_is_told(make: Make) -> None:
    kernels = make(weights="auto")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # no test framework here: only the answer
        try:
            kernels.add_rms_norm(torch.ones(1, 32), None, torch.ones(32), 1e-5)
            answer = b"ran"
        except EngineError as error:
            answer = b"EngineError" if "forked" in str(error) else b"another message"
        except BaseException as error:
            answer = repr(error).encode()
        os.write(write, answer)
        os._exit(0)
    os.close(write)
    assert os.read(read, 1000) == b"EngineError"
    os.close(read)
    os.waitpid(pid, 0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        CpuKernels(dtype=torch.float32)
    with pytest.raises(ConfigError, match="'cpu'"):
        CpuKernels("cuda")
    with pytest.raises(ConfigError, match="threads"):
        CpuKernels(threads=0)


def test_a_head_dim_that_cannot_be_says_what_to_do(make: Make) -> None:
    kernels = make(weights="auto")
    batch = batch_of([[0]], [1])
    cache = torch.zeros(4, 1, 48, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="multiple of 32"):
        kernels.rotate_and_store(
            torch.zeros(1, 3 * 48), batch, Rotation(1, 48, torch.zeros(8, 48)), cache, cache
        )


@pytest.mark.parametrize("vocabulary", [7, 16, 1000, 30_000])
def test_flat_and_steep_distributions(make: Make, vocabulary: int) -> None:
    """What vectors leave out without a logarithm could not have won."""
    kernels = make(weights="auto")
    for steepness in (0.0, 0.3, 5.0):
        logits = torch.randn(10, vocabulary, generator=generator(1)) * steepness
        keys = random_keys(10, vocabulary)
        found = kernels.sample(logits.clone(), how_to_sample(kernels, 10, key=keys)).tolist()
        weights = torch.exp(logits - logits.max(1, keepdim=True).values).tolist()
        for row, key in enumerate(keys):
            times = [arrival(token, key) / weights[row][token] for token in range(vocabulary)]
            assert times[found[row]] <= min(times) * (1 + 1e-5)


def test_compiled_kernels_are_kept_under_asgl_home(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asgl.kernels.cpu.cache import cache_directory

    monkeypatch.setenv("ASGL_HOME", str(tmp_path))
    assert cache_directory().parent == tmp_path / "kernels"
    monkeypatch.delenv("ASGL_HOME")
    assert cache_directory().parent.name == "kernels"


_GENERIC = """
import ctypes
import torch
from numba import njit
from asgl.kernels.cpu import inputs, llvm, multiply
from asgl.kernels.cpu.compile import Entry
from asgl.kernels.cpu.formats import WHOLE, Formats
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.threads import Team
from asgl.kernels.cpu.weights import pack
from asgl.kernels.memory import Arena
from asgl.kernels.quantized import quantize

assert llvm.PER_WORD == 1 and TARGET.pair_words in (0, 4) and TARGET.dot_words == 0, TARGET
assert not TARGET.half_conversion, TARGET

@njit
def describe(x, k, target, rows, size):
    for row in range(rows):
        inputs.describe_whole(x + row * k * 4, k, target + row * size)

formats, fill = Formats(), Entry("pack", Team(1, 1), 1)
for bits in (4, 8, 16):
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(bits))
    weight = weight.bfloat16() if bits == 16 else quantize(weight, bits)
    exact = weight.float() if bits == 16 else weight.dequantize(torch.float32)
    packed = pack(weight, Arena(), formats, fill)
    assert formats.need(packed.code) and not formats.need(packed.code, byte_inputs=True)
    address = int(formats.table[packed.code, WHOLE // 8])
    product = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(address)
    for rows in (1, 2, 3, 9):
        x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows))
        size = 96 * 4 if bits == 16 else 3 * inputs.WHOLE_BYTES
        room = torch.empty(rows * size + multiply.ROOM, dtype=torch.uint8)
        out = torch.full((rows, 32), torch.nan)
        at, free = x.data_ptr(), room.data_ptr()
        if bits < 16:
            describe(at, 96, free, rows, size)
            at = free
        product(rows, at, size, out.data_ptr(), packed.address, 3, free + rows * size)
        error = (out - x @ exact.T).abs().max()
        assert error < 0.001, error
print("right")
"""


def _on_a_generic_processor(*arguments: str, timeout: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_products_on_a_processor_without_wide_vectors() -> None:
    result = _on_a_generic_processor("-c", _GENERIC, timeout=100)
    assert result.stdout == "right\n", result.stderr


_COMPILED = """
import sys
from llvmlite import binding
from asgl.kernels.cpu.compile import Entry
from asgl.kernels.cpu.multiply import compile_product
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.threads import Team
from asgl.kernels.cpu.tiles import DENSE, Tiling

instruction, register, *names = sys.argv[1:]
machine = binding.Target.from_default_triple().create_target_machine(
    cpu=TARGET.name, features=TARGET.features, opt=3
)
functions = {"dense": DENSE, "packed": Tiling(6, 16, 32), "bytes": Tiling(5)}
for name in names:
    if name in functions:
        function = compile_product(functions[name], byte_inputs=name == "bytes")
    else:
        function = Entry(name, Team(1, 1), 1).function
    code = machine.emit_assembly(binding.parse_assembly(function.inspect_llvm()))
    assert register in code and instruction in code, name
print("right")
"""
_AVX2 = "+ssse3,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"
_AVX512 = _AVX2 + ",+avx512f,+avx512bw,+avx512dq,+avx512vl"
_VNNI = _AVX512 + ",+avx512vnni"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("processor", "features", "instruction", "register", "names"),
    [
        ("znver4", _VNNI + ",+avx512bf16", "vdpbf16ps", "zmm", ["dense", "operations"]),
        ("znver4", _VNNI + ",+avx512bf16", "vpdpbusd", "zmm", ["packed", "bytes"]),
        ("cascadelake", _VNNI, "vpdpbusd", "zmm", ["packed", "bytes"]),
        ("skylake-avx512", _AVX512, "vpmaddwd", "zmm", ["packed", "bytes"]),
        ("alderlake", _AVX2 + ",+avxvnni", "vpdpbusd", "ymm", ["packed", "bytes"]),
        ("haswell", _AVX2, "vpmaddubsw", "ymm", ["bytes"]),
        ("haswell", _AVX2, "vpmaddwd", "ymm", ["packed"]),
        ("generic", "", "pmaddwd", "xmm", ["packed"]),
    ],
)
def test_kernels_compile_for_other_processors(
    tmp_path, processor: str, features: str, instruction: str, register: str, names: list[str]
) -> None:
    """They are not run: this processor may not have the instructions."""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": features,
        "ASGL_HOME": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-c", _COMPILED, instruction, register, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert result.stdout == "right\n", result.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_contract_on_a_processor_without_wide_vectors() -> None:
    result = _on_a_generic_processor(
        "-m",
        "pytest",
        "tests/kernels/test_contract.py",
        "-k",
        "cpu and not float",
        "-p",
        "no:cacheprovider",
        "--timeout=800",
        timeout=880,
    )
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_head_some_gives_the_very_columns_of_head(kernels, bits, rows):
    if kernels.name != "cpu":
        pytest.skip("other back ends come close, but not to the last bit")
    weight = torch.randn(500, D, generator=generator(1))
    head = kernels.pack_head(weight if bits == 16 else quantize(weight, bits))
    x = torch.randn(rows, D, generator=generator(2)).bfloat16()
    tokens = torch.tensor([0, 5, 31, 32, 250, 498, 499])
    together = kernels.head(x, head).clone()
    assert torch.equal(kernels.head_some(x, head, tokens), together[:, tokens])


def test_a_layer_of_several_formats_computes_all_of_them() -> None:
    """Also as the first thing that is asked of the kernels: each part is a phase of its own."""
    kernels = CpuKernels(threads=1)
    parts = [torch.randn(rows, 64, generator=generator(rows)) for rows in (64, 33, 32)]
    held = [quantize(parts[0], 4), parts[1].bfloat16().float(), quantize(parts[2], 8)]
    dense = [part if isinstance(part, Tensor) else part.dequantize(torch.float32) for part in held]
    x, bias = torch.randn(3, 64, generator=generator(1)), torch.randn(129, generator=generator(2))
    found = kernels.linear(x, kernels.pack_linear(*held, bias=bias))
    torch.testing.assert_close(found, x @ torch.cat(dense).T + bias, rtol=0, atol=0.1)


def test_tables_stay_while_a_late_helper_may_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = CpuKernels(threads=1)
    weight = kernels.pack_linear(torch.ones(32, 32))
    idle = False
    monkeypatch.setattr(Team, "idle", property(lambda team: idle))
    kernels.linear(torch.ones(1, 32), weight)
    table = weakref.ref(weight.recorded)
    del weight
    other = kernels.pack_linear(torch.ones(32, 32))
    kernels.linear(torch.ones(1, 32), other)
    assert table() is not None
    idle = True
    kernels.linear(torch.ones(1, 32), other)
    assert table() is None
