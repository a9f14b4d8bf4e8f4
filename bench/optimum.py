"""What a run had to cost: the fewest prompt tokens that any cache could have left to compute, and
the time that the machine's limits allow for them.

    compute    (tokens to compute + tokens generated) x FLOPs of a token / FLOP/s of dense products
    bytes      longest chain of generated tokens x bytes of the weights / bytes/s of memory
    ideal      the larger of the two

Attention, sampling and all overhead are left out. The products are torch's, in float32 or bfloat16,
whichever is faster on the machine: only an engine that multiplies 8-bit integers could be faster
than this allows. The limits are measured in a process of their own, before the run: `python -m
bench.optimum` prints them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from bench import paths


class Computed(Protocol):
    """A request that has ended: `tokens` is its prompt and what it generated."""

    @property
    def prompt(self) -> Iterable[int]: ...
    @property
    def tokens(self) -> Iterable[int]: ...
    @property
    def wants_logits(self) -> bool: ...


class Work(NamedTuple):
    """Of a run's requests, in the order of their submission."""

    prompt_tokens: int
    computed_tokens: int
    """Prompt tokens that no cache can avoid: each distinct prefix once, and the last token of each
    prompt whose logits are wanted."""
    generated_tokens: int
    chain: int
    """The most tokens that had to be generated one after another."""


class Limits(NamedTuple):
    """Of the machine."""

    flops: float
    bytes_per_second: float


class Model(NamedTuple):
    """Of the model: FLOPs to compute a token, FLOPs of the head for a token whose logits are
    wanted, bytes of all weights."""

    token_flops: float
    head_flops: float
    bytes: float


def work(requests: Iterable[Computed]) -> Work:
    """Replays the requests one by one through a cache without bounds. Prefixes are told apart by
    rolling hashes."""
    seen: set[int] = set()
    ends: dict[int, int] = {}
    prompt_tokens = computed = generated = longest = 0
    for request in requests:
        prefix, chain, new, last_is_new = 0, 0, 0, True
        prompt, tokens = tuple(request.prompt), tuple(request.tokens)
        for token in prompt:
            prefix = hash((prefix, token))
            last_is_new = prefix not in seen
            new += last_is_new
            seen.add(prefix)
            chain = max(chain, ends.get(prefix, 0))
        prompt_tokens += len(prompt)
        computed += new + (not last_is_new and request.wants_logits)
        for token in tokens[len(prompt) :]:
            prefix = hash((prefix, token))
            seen.add(prefix)
            generated += 1
            chain += 1
            ends[prefix] = max(ends.get(prefix, 0), chain)
        longest = max(longest, chain)
    return Work(prompt_tokens, computed, generated, longest)


def hit_rate(works: Sequence[Work]) -> float:
    """The best that can be reached in all of the runs together; 0 if there was no prompt."""
    prompts = sum(work.prompt_tokens for work in works)
    return 1 - sum(work.computed_tokens for work in works) / prompts if prompts else 0.0


def ideal_seconds(done: Work, model: Model, limits: Limits) -> float:
    """The time below which no engine can be that multiplies floats."""
    arithmetic = (
        done.computed_tokens + done.generated_tokens
    ) * model.token_flops + done.generated_tokens * model.head_flops
    return max(arithmetic / limits.flops, done.chain * model.bytes / limits.bytes_per_second)


def measure() -> Limits:
    """The limits, from a process of their own: products in the process of a Runtime would disturb
    its threads."""
    output = subprocess.run(
        [sys.executable, "-m", "bench.optimum"],
        check=True,
        capture_output=True,
        text=True,
        cwd=paths.REPOSITORY,
    ).stdout
    return Limits(**json.loads(output.splitlines()[-1]))


def _measure_here() -> Limits:
    import torch

    flops = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(256, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
        flops = max(flops, 2 * 256 * 1024 * 1024 / _best(lambda a=a, b=b: a @ b))
    large = torch.zeros(64 * 2**20, dtype=torch.int64)
    return Limits(flops, large.numel() * 8 / _best(lambda: large.sum()))


def _best(function: Callable[[], object], seconds: float = 1.0) -> float:
    """The shortest of the times that the function takes in a second's worth of calls."""
    function()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    print(json.dumps(_measure_here()._asdict()))
