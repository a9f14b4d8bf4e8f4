"""Starts each installed peer and asks it everything that the workloads ask: a request, a batch, a
regular expression, scores.

    python -m bench.peers.check [openvino vllm llama.cpp transformers]

Prints what it answered and how long it took. The exit status is 1 if any failed.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from bench import results
from bench.client import Options, Unsupported
from bench.peers.all import PEERS, AnyPeer, make_peer
from bench.peers.remote import Limits, PeerError
from bench.workloads.long_prompts import FIELDS, FIELDS_GBNF, SCHEMA

_MODEL = "smollm2-135m"


async def _one(peer: AnyPeer) -> str:
    """The same request twice: the second time its prompt is cached."""
    prompt = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"
    done = [await peer.complete(prompt, Options(max_tokens=8, exact=True)) for _ in range(2)]
    if done[0].text != done[1].text or done[0].usage.generated_tokens != 8:
        raise PeerError(f"twice the same request gave {done}")
    usage = done[1].usage
    cached = f"{usage.cached_tokens} of {usage.prompt_tokens} tokens"
    return f"{done[0].text!r}, cached {cached} the second time"


async def _batch(peer: AnyPeer) -> str:
    options = Options(max_tokens=32, exact=True)
    done = await asyncio.gather(
        *(peer.complete(f"Number {n} of a story:", options) for n in range(32))
    )
    return (
        f"{sum(completion.usage.generated_tokens for completion in done)} tokens from 32 requests"
    )


async def _sampled(peer: AnyPeer) -> str:
    done = await peer.complete(
        "Once upon a time", Options(max_tokens=32, temperature=0.7, seed=1, stop=(".", "\n"))
    )
    if any(stop in done.text for stop in (".", "\n")):
        raise PeerError(f"the stop is in the text: {done.text!r}")
    return repr(done.text)


async def _regex(peer: AnyPeer) -> str:
    options = Options(max_tokens=128, regex=FIELDS, gbnf=FIELDS_GBNF)
    done = await asyncio.gather(
        *(peer.complete(f"Describe book {n} as JSON: ", options) for n in range(4))
    )
    for completion in done:
        if re.fullmatch(FIELDS, completion.text) is None:
            raise PeerError(f"{completion.text!r} does not match")
    return done[0].text


async def _schema(peer: AnyPeer) -> str:
    done = await peer.complete("Describe a play as JSON: ", Options(max_tokens=128, schema=SCHEMA))
    if json.loads(done.text).keys() != SCHEMA["properties"].keys():
        raise PeerError(f"{done.text!r} does not match")
    return done.text


async def _score(peer: AnyPeer) -> str:
    scores, _ = await peer.score("The capital of France is", [" Paris", " Rome, the eternal city"])
    return str([round(sum(choice), 2) for choice in scores])


_CHECKS: dict[str, Callable[[AnyPeer], Awaitable[str]]] = {
    "one": _one,
    "batch": _batch,
    "sampled": _sampled,
    "regex": _regex,
    "schema": _schema,
    "score": _score,
}


async def check(name: str) -> bool:
    """Whether the peer starts, and fails at nothing."""
    try:
        peer = make_peer(name, _MODEL, Limits())
        began = time.perf_counter()
        await peer.start()
    except PeerError as error:
        print(f"{name}: {error}", flush=True)
        return False
    print(f"{name}: started in {time.perf_counter() - began:.1f} s; {peer.about}", flush=True)
    sound = True
    try:
        for title, ask in _CHECKS.items():
            began = time.perf_counter()
            try:
                answer = await ask(peer)
            except Unsupported as error:
                answer = f"not supported: {error}"
            except (PeerError, json.JSONDecodeError) as error:
                answer, sound = f"FAILED: {error}", False
            print(f"{name}: {title:<8} {time.perf_counter() - began:6.2f} s   {answer}", flush=True)
        print(
            f"{name}: takes {await _idle(peer):.0%} of a core when it has nothing to do", flush=True
        )
    finally:
        await peer.stop()
    return sound


async def _idle(peer: AnyPeer) -> float:
    """The share of a core that a peer without requests takes from the engine that runs."""
    if peer.pid is None:
        return 0.0
    before, began = results.cpu_seconds(peer.pid), time.perf_counter()
    await asyncio.sleep(2)
    return (results.cpu_seconds(peer.pid) - before) / (time.perf_counter() - began)


def main(names: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # peers are stopped with it
    sound = [asyncio.run(check(name)) for name in names or PEERS]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
