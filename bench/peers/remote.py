"""Peers in processes of their own: started and stopped by the harness, spoken to over pipes or on
the loopback interface."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import paths
from bench.client import Completion, Options, Unsupported, Usage
from bench.peers.install import installed

_LINE_LIMIT = 1 << 26
_START_SECONDS = 420.0
"""vLLM compiles at its first start."""
_STOP_SECONDS = 10.0
REQUEST_SECONDS = 120.0
"""After which a request that was not answered is an error: longer than any run may take."""


class PeerError(Exception):
    """A peer did not start, or failed at a request."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What every engine is held to: requests that run at once, and memory for keys and values."""

    running: int = 64
    kv_gib: int = 2

    def tokens(self, bytes_per_token: int) -> int:
        return self.kv_gib * 2**30 // bytes_per_token


@dataclass(slots=True)
class Peer:
    """A worker process (`bench.peers.workers`) that is spoken to over its standard input and
    output.

    command: its program and arguments. environment: what is set besides the harness's own
    environment. `about` has the version and settings that the worker reported.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    _process: asyncio.subprocess.Process | None = None
    _replies: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the worker and waits until its model is loaded. PeerError if it ends before, or
        takes too long."""
        with open(self._log, "ab") as errors:  # noqa: ASYNC230  nothing else runs yet
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **self.environment},
                limit=_LINE_LIMIT,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        line, late = b"", False
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            late = True
        if not line:
            await self.stop()
            raise PeerError(
                f"{self.name} did not start within {_START_SECONDS:.0f} s; its log is {self._log}"
                if late
                else f"{self.name} ended while it started; its log is {self._log}"
            )
        self.about = json.loads(line)["ready"]
        self._reader = asyncio.create_task(self._read(self._process.stdout))

    async def stop(self) -> None:
        """Ends the worker: by closing its input, and if that does not help by force. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        kill_group(process.pid)
        await process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def _log(self) -> Path:
        return paths.peers() / f"{self.name}.log"

    async def complete(self, prompt: str, options: Options) -> Completion:
        reply = await self._ask(
            {
                "op": "complete",
                "prompt": prompt,
                "max_tokens": options.max_tokens,
                "stop": list(options.stop),
                "temperature": options.temperature,
                "seed": options.seed,
                "exact": options.exact,
                "regex": options.regex,
                "schema": json.dumps(options.schema) if options.schema else None,
            }
        )
        return Completion(reply["text"], _usage(reply))

    async def score(self, prompt: str, choices: Sequence[str]) -> tuple[list[list[float]], Usage]:
        reply = await self._ask({"op": "score", "prompt": prompt, "choices": list(choices)})
        return reply["logprobs"], _usage(reply)

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.stdin is None:
            raise PeerError(f"{self.name} does not run")
        number = next(self._numbers)
        future = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            self._process.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")
            await self._process.stdin.drain()
            async with asyncio.timeout(REQUEST_SECONDS):
                reply = await future
        except TimeoutError:
            raise PeerError(
                f"{self.name}: no answer within {REQUEST_SECONDS:.0f} s; its log is {self._log}"
            ) from None
        finally:
            del self._replies[number]
        if "unsupported" in reply:
            raise Unsupported(reply["unsupported"])
        if "error" in reply:
            raise PeerError(f"{self.name}: {reply['error']}")
        return reply

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        while line := await stdout.readline():
            reply = json.loads(line)
            future = self._replies.get(reply["id"])
            if future is not None and not future.done():
                future.set_result(reply)
        for future in self._replies.values():
            if not future.done():
                future.set_exception(PeerError(f"{self.name} ended; its log is {self._log}"))


def kill_group(pid: int) -> None:
    """Ends what a worker, which leads a process group, may have left behind."""
    with suppress(ProcessLookupError):
        os.killpg(pid, 9)


def _usage(reply: dict[str, Any]) -> Usage:
    return Usage(
        reply["prompt_tokens"],
        reply["cached_tokens"],
        reply["generated_tokens"],
        reply["time_to_first_token"],
    )


def hf_model(model: str) -> Path:
    """The model as a directory in Hugging Face's layout, converted when first needed."""
    directory = paths.peers() / "model"
    if not (directory / "config.json").exists():
        subprocess.run(
            [sys.executable, "-m", "bench.peers.convert", model, str(directory)],
            check=True,
            cwd=paths.REPOSITORY,
        )
    return directory


def worker(
    name: str, script: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Peer:
    """A peer by its worker script. It must be installed."""
    python = installed(name)
    path = Path(__file__).parent / "workers" / script
    return Peer(name, [str(python), str(path), *arguments], environment or {})
