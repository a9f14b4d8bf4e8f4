"""The worker's side of the line between the harness and a peer: runs in the peer's environment,
standard library only.

One JSON object a line on standard input, one a line on standard output. What libraries print goes
to standard error.

    {"id": 1, "op": "complete", "prompt": ..., "max_tokens": ..., "stop": [...],
     "temperature": ..., "seed": ..., "exact": ...,
     "regex": ..., "schema": ...}
    {"id": 1, "text": ..., "prompt_tokens": ..., "cached_tokens": ..., "generated_tokens": ...,
     "time_to_first_token": ...}
    {"id": 2, "op": "score", "prompt": ..., "choices": [...]}
    {"id": 2, "logprobs": [[...]], ...}
    {"id": 3, "unsupported": "why"}       {"id": 3, "error": "what"}

The first line out says that the model is loaded: {"ready": {versions and settings}}. The end of
input ends the worker.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterable
from typing import Any, Protocol, TextIO


class Stepped(Protocol):
    """A peer that is driven by calls. `add` takes a request or answers at once; `step` works on all
    and answers some."""

    def add(self, request: dict[str, Any]) -> dict[str, Any] | None: ...

    def step(self) -> Iterable[dict[str, Any]]: ...

    @property
    def busy(self) -> bool: ...


def take_output() -> TextIO:
    """Standard output for replies alone; prints of libraries go to standard error from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def write(out: TextIO, reply: dict[str, Any]) -> None:
    out.write(json.dumps(reply) + "\n")
    out.flush()


def serve(peer: Stepped, out: TextIO, about: dict[str, Any]) -> None:
    """Serves until the input ends."""
    requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        requests.put(None)

    threading.Thread(target=read, daemon=True).start()
    write(out, {"ready": about})
    while True:
        while not peer.busy or not requests.empty():
            request = requests.get()
            if request is None:
                return
            try:
                reply = peer.add(request)
            except Exception as error:
                reply = {"id": request["id"], "error": repr(error)}
            if reply is not None:
                write(out, reply)
        for reply in peer.step():
            write(out, reply)


def cut(text: str, stops: Iterable[str]) -> str:
    """The text up to the first of the stops."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
