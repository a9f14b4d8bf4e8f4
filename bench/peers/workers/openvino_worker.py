"""OpenVINO GenAI's continuous batching, on a GGUF file. python openvino_worker.py MODEL KV_GIB
MAX_RUNNING PROPERTIES

PROPERTIES: of the device, as JSON.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from serve import cut, serve, take_output


@dataclass
class Completion:
    request: dict[str, Any]
    prompt_tokens: int


@dataclass
class Scoring:
    """A request to score choices: each of them is a request to the pipeline, which echoes the
    log-probabilities of its prompt."""

    request: dict[str, Any]
    counts: list[int]
    """Tokens of each choice."""
    prompt_tokens: int
    logprobs: dict[int, list[float]] = field(default_factory=dict)


class OpenVino:
    def __init__(
        self, model: str, kv_gib: int, max_running: int, properties: dict[str, Any]
    ) -> None:
        config = genai.SchedulerConfig()
        config.cache_size = kv_gib
        config.max_num_seqs = max_running
        config.enable_prefix_caching = True
        config.dynamic_split_fuse = True
        config.max_num_batched_tokens = 512
        self._pipe = genai.ContinuousBatchingPipeline(model, config, "CPU", properties)
        self._tokenizer = self._pipe.get_tokenizer()
        self._numbers = itertools.count()
        self._live: dict[int, tuple[Any, Completion | Scoring, int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._live)

    def add(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["op"] == "score":
            self._add_score(request, request["prompt"])
            return None
        config = genai.GenerationConfig()
        config.max_new_tokens = request["max_tokens"]
        config.apply_chat_template = False
        config.ignore_eos = request["exact"]
        if request["stop"]:
            config.stop_strings = set(request["stop"])
        if request["temperature"] > 0:
            config.do_sample = True
            config.temperature = request["temperature"]
            config.rng_seed = request["seed"]
        if request["regex"] is not None:
            config.structured_output_config = genai.StructuredOutputConfig(regex=request["regex"])
        if request["schema"] is not None:
            config.structured_output_config = genai.StructuredOutputConfig(
                json_schema=request["schema"]
            )
        tokens = self._tokenizer.encode(request["prompt"]).input_ids
        self._submit(tokens, config, Completion(request, tokens.shape[1]), 0)
        return None

    def _add_score(self, request: dict[str, Any], prompt: str) -> None:
        head = self._ids(prompt)
        choices = [self._ids(choice) for choice in request["choices"]]
        scoring = Scoring(
            request,
            [choice.shape[1] for choice in choices],
            sum(head.shape[1] + c.shape[1] for c in choices),
        )
        for index, choice in enumerate(choices):
            config = genai.GenerationConfig()
            config.max_new_tokens = 1
            config.apply_chat_template = False
            config.echo = True
            config.logprobs = 1
            self._submit(
                openvino.Tensor(np.concatenate([head, choice], axis=1)), config, scoring, index
            )

    def _ids(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False).input_ids.data

    def _submit(self, tokens: Any, config: Any, owner: Completion | Scoring, index: int) -> None:
        number = next(self._numbers)
        self._live[number] = (self._pipe.add_request(number, tokens, config), owner, index)

    def step(self) -> Iterable[dict[str, Any]]:
        self._pipe.step()
        for number, (handle, owner, index) in list(self._live.items()):
            if handle.get_status() == genai.GenerationStatus.RUNNING:
                continue
            del self._live[number]
            output = handle.read_all()[0]
            if isinstance(owner, Completion):
                yield self._completed(owner, output, handle)
            elif (reply := self._scored(owner, index, output)) is not None:
                yield reply

    def _completed(self, owner: Completion, output: Any, handle: Any) -> dict[str, Any]:
        request = owner.request
        text = self._tokenizer.decode(output.generated_ids)
        return {
            "id": request["id"],
            "text": cut(text, request["stop"]),
            "prompt_tokens": owner.prompt_tokens,
            "cached_tokens": None,
            "generated_tokens": len(output.generated_ids),
            "time_to_first_token": handle.get_perf_metrics().get_ttft().mean / 1000,
        }

    def _scored(self, owner: Scoring, index: int, output: Any) -> dict[str, Any] | None:
        """The reply once all choices are scored. What is cached has no log-probabilities: a choice
        whose beginning is, or that begins with a block, is asked again after a line feed, which
        moves the blocks."""
        count = owner.counts[index]
        known = output.generated_log_probs[
            :-1
        ]  # the last is that of the token that had to be generated
        owner.logprobs[index] = known[len(known) - count :] if len(known) >= count else []
        if len(owner.logprobs) < len(owner.counts):
            return None
        if not all(owner.logprobs.values()):
            prompt = owner.request["again"] = "\n" + owner.request.get(
                "again", owner.request["prompt"]
            )
            if len(prompt) - len(owner.request["prompt"]) > 4:
                return {
                    "id": owner.request["id"],
                    "error": "no log-probabilities of what is cached",
                }
            self._add_score(owner.request, prompt)
            return None
        return {
            "id": owner.request["id"],
            "logprobs": [owner.logprobs[number] for number in range(len(owner.counts))],
            "prompt_tokens": owner.prompt_tokens,
            "cached_tokens": None,
            "generated_tokens": 0,
            "time_to_first_token": None,
        }


if __name__ == "__main__":
    model, kv_gib, max_running, properties = (
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        json.loads(sys.argv[4]),
    )
    out = take_output()
    serve(
        OpenVino(model, kv_gib, max_running, properties),
        out,
        {
            "version": version("openvino-genai"),
            "settings": "ContinuousBatchingPipeline, GGUF Q4_1, prefix caching, split fuse with "
            "512 tokens a step, "
            f"{kv_gib} GiB of KV, {max_running} sequences, "
            + ", ".join(f"{k} {v}" for k, v in properties.items()),
        },
    )
