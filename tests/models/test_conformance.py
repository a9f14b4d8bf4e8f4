"""The real model, against transformers with the same weights: float32 to 1e-3, bfloat16 no worse
than transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llama_oracle import logprobs, oracle
from steps import Row, step

from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.reference import ReferenceKernels
from asgl.models.checkpoint import Checkpoint
from asgl.models.registry import open_checkpoint

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

SENTENCES = (
    "The capital of France is Paris, which lies on the river Seine. ",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n",
    "In 1969, two people walked on the moon; 600 million watched. ",
    "Question: what weighs more, a pound of feathers or a pound of lead?\n",
)
SHORT = 500
"""transformers takes long in bfloat16."""
LAST = 12
"""Of a long prompt so many tokens are compared, beside those at its chunks' ends."""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint("smollm2-135m")


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> dict[str, list[int]]:
    encode = checkpoint.tokenizer.encode
    question, answer = (
        encode("user\nWhat is the capital of France?"),
        encode("assistant\nThe capital of"),
    )
    chat = [1, *question, 2, *encode("\n"), 1, *answer]
    varied = encode("".join(f"{i}. {SENTENCES[i % 4]}" for i in range(200)))
    return {"raw": encode(SENTENCES[0] + SENTENCES[1]), "chat": chat, "long": varied[:2000]}


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    return oracle(checkpoint)


@pytest.fixture(scope="module")
def expected(model: Any, prompts: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: logprobs(model, tokens, compared(tokens)) for name, tokens in prompts.items()}


def compared(tokens: list[int]) -> list[int]:
    return sorted(
        {0, 1, *range(0, len(tokens), 100), *range(max(0, len(tokens) - LAST), len(tokens))}
    )


def computed(
    runner: SerialRunner, tokens: list[int], places: list[int], chunk: int
) -> torch.Tensor:
    """Log-probabilities at the places: prefill in chunks, and decode steps for the last tokens."""
    everything = tuple(range(runner.info.vocabulary))
    wanted, scores = set(places), []
    slots = [runner.capacity - 1 - i for i in range(len(tokens))]
    begin = 0
    while begin < len(tokens):
        until_decode = len(tokens) - LAST // 2 - begin
        end = begin + (min(chunk, until_decode) if until_decode > 0 else 1)
        score = [(i - begin, everything) for i in range(begin, end) if i in wanted]
        scores += runner.run(
            step([Row(tokens[begin:end], slots[begin:end], slots[:begin], score=score)])
        ).scores
        begin = end
    return torch.tensor(scores)


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint) -> SerialRunner:
    return SerialRunner(checkpoint, ReferenceKernels("cpu", torch.float32), 2100)


@pytest.mark.parametrize("name", ["raw", "chat", "long"])
def test_float32(
    exact: SerialRunner, name: str, prompts: dict[str, list[int]], expected: dict[str, torch.Tensor]
) -> None:
    tokens = prompts[name]
    found = computed(exact, tokens, compared(tokens), chunk=512)
    torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-3)


def test_bfloat16(
    checkpoint: Checkpoint,
    model: Any,
    prompts: dict[str, list[int]],
    expected: dict[str, torch.Tensor],
) -> None:
    """Compared on the ten likeliest tokens at each place; in all no further off than transformers
    in bfloat16.

    Keys and values in bfloat16, all else being float32, are off by 0.18 at the worst of 600 places.
    """
    runner = SerialRunner(checkpoint, ReferenceKernels("cpu", torch.bfloat16), 2100)
    model.to(torch.bfloat16)
    ours, theirs = [], []
    for name, prompt in prompts.items():
        tokens = prompt[:SHORT]
        right = expected[name][: sum(place < len(tokens) for place in compared(prompt))]
        likeliest = right.topk(10, dim=1).indices
        places = [place for place in compared(prompt) if place < len(tokens)]
        ours.append(
            (computed(runner, tokens, places, chunk=256) - right).abs().gather(1, likeliest)
        )
        theirs.append((logprobs(model, tokens, places) - right).abs().gather(1, likeliest))
    off, their_off = torch.cat(ours), torch.cat(theirs)
    assert off.max() <= their_off.max()
    assert off.mean() <= their_off.mean()
    assert off.quantile(0.98) < 0.15
    assert off.mean() < 0.04


@pytest.mark.parametrize(
    ("activations", "nearly_always", "mean"), [("auto", 0.15, 0.04), ("int8", 0.5, 0.12)]
)
def test_the_cpu_kernels(
    checkpoint: Checkpoint,
    prompts: dict[str, list[int]],
    expected: dict[str, torch.Tensor],
    activations: Any,
    nearly_always: float,
    mean: float,
) -> None:
    """What runs by default, and with inputs of 8 bits, against float32: on the ten likeliest
    tokens, in prompts and in decode steps, off by so many nat at 98 of 100 places, and on average.
    Keys and values are bfloat16 here too."""
    runner = SerialRunner(checkpoint, CpuKernels(activations=activations), 2100)
    offs = []
    for name, tokens in prompts.items():
        right = expected[name]
        off = (computed(runner, tokens, compared(tokens), chunk=256) - right).abs()
        offs.append(off.gather(1, right.topk(10, dim=1).indices))
    off = torch.cat(offs)
    assert off.quantile(0.98) < nearly_always
    assert off.mean() < mean
