"""What a Runtime says of a text, beside what transformers says of it."""

from __future__ import annotations

from pathlib import Path

import torch

import asgl
from asgl.models.registry import open_checkpoint

TEXT = """def fibonacci(n: int) -> list[int]:
    \"\"\"The first n Fibonacci numbers.\"\"\"
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]

# The river Rhine rises in the Swiss Alps and flows through Germany and the Netherlands into the
# North Sea. Die Donau fließt von Westen nach Osten. 12 * 12 = 144, and 3 < 5.
"""
PLACES = 100
"""Tokens at the end of the text whose log-probabilities are compared."""


def tokens(path: Path) -> list[int]:
    """The tokens of the text, with what the model wants before it."""
    checkpoint = open_checkpoint(path)
    try:
        tokenizer = checkpoint.tokenizer
        first = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
        return first + tokenizer.encode_run([TEXT])
    finally:
        checkpoint.close()


async def errors(path: Path, expected: torch.Tensor, **options: str) -> torch.Tensor:
    """How far the Runtime is off, in nats, for each of the last tokens. `expected`: the
    log-probabilities of all tokens after each token of the text."""
    ids = tokens(path)
    right = expected[-PLACES:].gather(1, torch.tensor(ids[-PLACES:])[:, None])[:, 0]
    async with asgl.Runtime(path, kv_cache_tokens=2048, **options) as rt:
        s = rt.prompt(rt.tokenizer.decode(ids[:-PLACES], control=False))
        handle = s.select(None, [rt.tokenizer.decode(ids[-PLACES:])], method="sum")
        await handle
        assert s.token_ids == ids
        found = (torch.tensor(handle.token_logprobs[0]) - right).abs()
    print(f"off by {found.mean():.5f} nat on average, {found.max():.5f} at most")
    return found
