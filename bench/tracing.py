"""What tracing costs, on the small model: the time of the event loop's thread that tracers take.

    python -m bench.tracing

The same streams decode with no tracer, with asgl.JsonlTracer, and with asgl.viewer.Live on a
pseudo-terminal of 160 by 70, in turn. What is compared is the processor time of the event loop's
thread, since wall time depends on what else the machine does: as a share of the time that the run
took where nothing else ran. Besides, the longest that the view held the loop up, drawing included.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import pty
import statistics
import struct
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

import asgl
from asgl.viewer import Live

_PROMPT = "Tips for a long walk in the rain, from one who has walked much: "


class Measured:
    """A tracer, and how long it held up the loop."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self.longest = self.seconds = 0.0
        self.events = 0
        if isinstance(tracer, Live):
            tracer._draw = self._timed(tracer._draw)  # pyright: ignore[reportPrivateUsage]
        self._event = self._timed(tracer.event)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args)
            finally:
                spent = time.thread_time() - began
                self.longest = max(self.longest, spent)
                self.seconds += spent

        return timed

    def event(self, event: Any) -> None:
        self.events += 1
        self._event(event)


@contextmanager
def console() -> Iterator[Console]:
    """A terminal that takes all that is written to it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 70, 160, 0, 0))

    def drain() -> None:
        try:
            while os.read(master, 1 << 16):
                pass
        except OSError:
            return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    file = os.fdopen(slave, "w")
    yield Console(file=file, force_terminal=True, color_system="truecolor")
    file.close()
    thread.join()
    os.close(master)


async def decode(model: str, tracer: Any, streams: int, tokens: int) -> tuple[float, float]:
    """Seconds of the loop's thread, and of the wall, for so many streams."""
    async with asgl.Runtime(model, tracers=[tracer] if tracer is not None else []) as rt:
        prompts = [rt.prompt(f"{number} {_PROMPT}") for number in range(streams)]
        await asyncio.gather(*(s.extend("") for s in prompts))
        began, thread = time.perf_counter(), time.thread_time()
        options = {"max_tokens": tokens, "ignore_eos": True}
        await asyncio.gather(*(s.gen("x", seed=n, **options) for n, s in enumerate(prompts)))
        return time.thread_time() - thread, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seen: dict[str, list[float]] = {"none": [], "jsonl": [], "view": []}
    walls: list[float] = []
    held: dict[str, list[Measured]] = {"jsonl": [], "view": []}
    for _ in range(args.rounds):
        for name in seen:
            with tempfile.TemporaryDirectory() as folder, console() as screen:
                tracer = None
                if name == "jsonl":
                    tracer = Measured(asgl.JsonlTracer(Path(folder) / "run.jsonl"))
                elif name == "view":
                    tracer = Measured(Live(console=screen, keys=False))
                spent, wall = asyncio.run(decode(args.model, tracer, args.streams, args.tokens))
            seen[name].append(spent)
            walls.append(wall)
            if tracer is not None:
                held[name].append(tracer)
    quiet = min(walls)
    base = statistics.median(seen["none"])
    print(f"{args.streams} streams of {args.tokens} tokens, {quiet:.2f} s at the quickest")
    print(f"no tracer: {base:.3f} s of the loop's thread")
    for name, tracers in held.items():
        more = statistics.median(seen[name]) - base
        own = statistics.median(one.seconds for one in tracers)
        longest = max(one.longest for one in tracers)
        events = tracers[0].events
        print(
            f"{name}: {more:+.3f} s, {more / quiet:+.1%} of the run; {own:.3f} s in the tracer "
            f"({own / quiet:.1%}), {1e6 * own / events:.1f} us for each of {events} events; "
            f"longest {1e3 * longest:.1f} ms"
        )


if __name__ == "__main__":
    main()
