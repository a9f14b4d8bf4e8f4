"""Every architecture, on every way through a step: a prompt at once, in parts, token by token, and
forks of one prefix say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from llama_oracle import all_logprobs
from steps import Row, step
from test_architectures import CONFIGS, random_model, saved, small_sizes
from torch import Tensor

from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.api import Kernels
from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.reference import ReferenceKernels
from asgl.models.checkpoint import Checkpoint
from asgl.models.registry import open_checkpoint
from asgl.plan import SharedSpan

VOCABULARY, LENGTH = 288, 90
TOKENS = torch.randint(0, VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(7))
EVERYTHING = tuple(range(VOCABULARY))
WINDOW = {"sliding_window": 24}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e4, "truncate": False,
        "original_max_position_embeddings": 32}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32, "attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 32, **WINDOW},
    "ministral3": {
        "head_dim": 32,
        "sliding_window": None,
        "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.2},
    },
    "qwen2": {"hidden_size": 128},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, **WINDOW},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 3, **WINDOW,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"hidden_size": 128, **WINDOW, "rope_parameters": {
        "rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.75}},
    "granite": {"hidden_size": 128, "residual_multiplier": 0.5, "logits_scaling": 0.7,
                "attention_multiplier": 0.2, "embedding_multiplier": 3.0},
    "smollm3": {"hidden_size": 128, "no_rope_layers": [1, 0]},
    "olmo2": {"hidden_size": 128},
    "olmo3": {"hidden_size": 128, **WINDOW},
    "qwen2_moe": {"hidden_size": 128, "moe_intermediate_size": 32,
                  "shared_expert_intermediate_size": 32},
    "qwen3_moe": {"head_dim": 32, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "gpt_oss": {"head_dim": 32, "intermediate_size": 32, "rope_parameters": YARN, **WINDOW},
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers.logging.set_verbosity_error()
    kind = CONFIGS[request.param]
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    sizes = {key: size for key, size in sizes.items() if key in small_sizes(kind())}
    model = random_model(kind(**{**small_sizes(kind()), **sizes, **MODELS[request.param]}))
    return open_checkpoint(saved(tmp_path_factory.mktemp(request.param) / "model", model))


def by_parts(runner: SerialRunner, sizes: list[int]) -> Tensor:
    """The log-probabilities after each token, of a prompt in parts of these sizes."""
    found: list[Any] = []
    tokens, at = TOKENS.tolist(), 0
    for size in sizes:
        new, slots = tokens[at : at + size], list(range(at, at + size))
        asked = [(i, EVERYTHING) for i in range(size)]
        found += runner.run(step([Row(new, slots, range(at), score=asked)])).scores
        at += size
    return torch.tensor(found)


def forked(runner: SerialRunner, prefix: int) -> Tensor:
    """The same, of which what is after the prefix is computed in three rows that share that."""
    tokens = TOKENS.tolist()
    found = list(by_parts_of(runner, tokens[:prefix]))
    rest = tokens[prefix:]
    asked = [(i, EVERYTHING) for i in range(len(rest))]
    first = len(tokens)
    rows = [
        Row(rest, range(first + 100 * row, first + 100 * row + len(rest)), range(prefix),
            score=asked if row == 1 else ())
        for row in range(3)
    ]  # fmt: skip
    shared = (SharedSpan(0, prefix, (0, 1, 2)),)
    return torch.tensor([*found, *runner.run(step(rows, shared=shared)).scores])


def by_parts_of(runner: SerialRunner, tokens: list[int]) -> Any:
    asked = [(i, EVERYTHING) for i in range(len(tokens))]
    return runner.run(step([Row(tokens, range(len(tokens)), score=asked)])).scores


WAYS = {
    "in parts": lambda runner: by_parts(runner, [1, 40, 2, 30, 17]),
    "token by token": lambda runner: by_parts(runner, [70, *[1] * 20]),
    "forked": lambda runner: forked(runner, 66),
}


def runner(checkpoint: Checkpoint, kernels: Kernels) -> SerialRunner:
    return SerialRunner(checkpoint, kernels, 500)


@pytest.mark.parametrize("way", WAYS)
def test_reference(checkpoint: Checkpoint, way: str) -> None:
    opened = runner(checkpoint, ReferenceKernels())
    expected = all_logprobs(opened, TOKENS.tolist())
    torch.testing.assert_close(WAYS[way](opened), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def exact() -> CpuKernels:
    return CpuKernels(threads=1, deterministic=True)


@pytest.fixture(scope="module")
def usual() -> CpuKernels:
    return CpuKernels(threads=2)


def test_cpu_in_deterministic_mode_to_the_last_bit(
    checkpoint: Checkpoint, exact: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgl.models.transformer.StepByStep", None)  # all layers run in one call
    opened = runner(checkpoint, exact)
    expected = all_logprobs(opened, TOKENS.tolist())
    for way in WAYS.values():
        assert torch.equal(way(opened), expected)


def test_cpu_is_near_float32(checkpoint: Checkpoint, usual: CpuKernels) -> None:
    """Nearer than models in bfloat16 are; where two experts are almost as good, the other may be
    taken."""
    expected = all_logprobs(runner(checkpoint, ReferenceKernels()), TOKENS.tolist())
    opened = runner(checkpoint, usual)
    for found in (all_logprobs(opened, TOKENS.tolist()), *(way(opened) for way in WAYS.values())):
        off = (found - expected).abs().amax(dim=1)
        assert off.median() < 0.12
        assert (off < 0.4).float().mean() > 0.85
