"""llama.cpp's server, over HTTP on the loopback interface.

The model is requantized to a format that llama.cpp computes faster than the file's own.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import paths
from bench.client import Completion, Options, Unsupported, Usage
from bench.peers.remote import REQUEST_SECONDS, Limits, PeerError, kill_group

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1
_KV_BYTES = 23_040
"""Of a token of SmolLM2-135M, in 16 bits."""


class LlamaServer:
    """`start`, `complete`, `stop`. It shares prefixes inside a slot and between slots by copying;
    it cannot score options."""

    def __init__(self, model: str, limits: Limits, weights: str) -> None:
        self.name = "llama.cpp"
        self._weights = weights
        self._model = model
        self._limits = limits
        self._bin = paths.peers() / self.name / "bin"
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self.about: dict[str, Any] = {}

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        model = self._quantized()
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            self._port = probe.getsockname()[1]
        tokens = self._limits.tokens(_KV_BYTES)
        log = paths.peers() / f"{self.name}.log"
        with open(log, "ab") as output:  # noqa: ASYNC230  nothing else runs yet
            self._process = await asyncio.create_subprocess_exec(
                str(self._bin / "llama-server"),
                "-m",
                str(model),
                "--host",
                _HOST,
                "--port",
                str(self._port),
                "-t",
                "2",
                "-tb",
                "2",
                "-c",
                str(tokens),
                "-np",
                str(self._limits.running),
                "--kv-unified",
                "-fa",
                "on",
                "-ub",
                "512",
                "-b",
                "2048",
                "--cache-reuse",
                "64",
                "--no-webui",
                stdout=output,
                stderr=output,
                env=self._environment(),
                start_new_session=True,
                preexec_fn=_ends_with_parent if sys.platform == "linux" else None,
            )
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await self._healthy():
                    if self._process.returncode is not None:
                        raise PeerError(f"llama.cpp did not start; its log is {log}")
                    await asyncio.sleep(0.2)
        except TimeoutError:
            await self.stop()
            raise PeerError(
                f"llama.cpp did not start in {_START_SECONDS:.0f} s; its log is {log}"
            ) from None
        self.about = {
            "version": self._version(),
            "settings": f"llama-server, {self._weights.upper()}, flash attention, "
            f"{self._limits.running} slots with {tokens} "
            "tokens of KV in common, prompt cache, 2 threads",
        }

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        await process.wait()
            kill_group(process.pid)
            await process.wait()

    async def complete(self, prompt: str, options: Options) -> Completion:
        body: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": options.max_tokens,
            "stop": list(options.stop),
            "temperature": options.temperature,
            "seed": options.seed,
            "ignore_eos": options.exact,
            "cache_prompt": True,
        }
        if options.temperature > 0:
            body |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        if options.regex is not None:
            if options.gbnf is None:
                raise Unsupported("llama.cpp takes grammars, not regular expressions")
            body["grammar"] = options.gbnf
        if options.schema is not None:
            body["json_schema"] = options.schema
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                status, reply = await _post(self._port, "/completion", body)
        except TimeoutError:
            raise PeerError(f"llama.cpp: no answer within {REQUEST_SECONDS:.0f} s") from None
        except OSError as error:
            raise PeerError(f"llama.cpp does not answer: {error}") from error
        if status != 200:
            raise PeerError(f"llama.cpp: status {status}: {reply}")
        timings = reply["timings"]
        return Completion(
            reply["content"],
            Usage(
                timings["prompt_n"] + timings.get("cache_n", 0),
                timings.get("cache_n"),
                timings["predicted_n"],
                timings["prompt_ms"] / 1000,
            ),
        )

    async def score(self, prompt: str, choices: Sequence[str]) -> tuple[list[list[float]], Usage]:
        raise Unsupported("llama.cpp's server does not score given text")

    def _quantized(self) -> Path:
        """The model in the format asked for, written when first needed."""
        from asgl.models.pull import pull

        model = paths.peers() / self.name / f"model-{self._weights}.gguf"
        if not model.exists():
            partial = model.with_suffix(".part")
            subprocess.run(
                [
                    str(self._bin / "llama-quantize"),
                    "--allow-requantize",
                    str(pull(self._model)),
                    str(partial),
                    self._weights,
                    "2",
                ],
                check=True,
                env=self._environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            partial.rename(model)
        return model

    def _version(self) -> str:
        done = subprocess.run(
            [str(self._bin / "llama-server"), "--version"],
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(),
        )
        lines = (done.stderr + done.stdout).splitlines()
        return next(
            (line.removeprefix("version: ") for line in lines if line.startswith("version")),
            "unknown",
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LD_LIBRARY_PATH": str(self._bin)}

    async def _healthy(self) -> bool:
        try:
            status, _ = await _post(self._port, "/tokenize", {"content": ""})
        except OSError:
            return False
        return status == 200


def _ends_with_parent() -> None:
    """In the child: asks Linux for SIGKILL when the harness ends, however it does. The other peers
    see their input end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _post(port: int, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """The status and the JSON of the answer."""
    reader, writer = await asyncio.open_connection(_HOST, port, limit=1 << 24)
    try:
        content = json.dumps(body).encode()
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {_HOST}\r\nContent-Type: "
            "application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        lengths = [
            line.split(":", 1)[1] for line in head if line.lower().startswith("content-length:")
        ]
        answer = await reader.readexactly(int(lengths[0])) if lengths else await reader.read()
        return int(head[0].split()[1]), json.loads(answer)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the server closed the connection") from error
    finally:
        writer.close()
