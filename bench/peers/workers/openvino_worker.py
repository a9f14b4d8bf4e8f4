"""OpenVINO GenAI's continuous batching, on a GGUF file. python openvino.py MODEL KV_GIB MAX_RUNNING"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import openvino_genai as genai
from serve import cut, serve, take_output


class OpenVino:
    def __init__(self, model: str, kv_gib: int, max_running: int) -> None:
        config = genai.SchedulerConfig()
        config.cache_size = kv_gib
        config.max_num_seqs = max_running
        config.enable_prefix_caching = True
        config.dynamic_split_fuse = True
        config.max_num_batched_tokens = 512
        self._pipe = genai.ContinuousBatchingPipeline(model, config, "CPU", {"INFERENCE_NUM_THREADS": 2})
        self._tokenizer = self._pipe.get_tokenizer()
        self._live: dict[int, tuple[Any, dict[str, Any], int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._live)

    def add(self, request: dict[str, Any]) -> dict[str, Any] | None:
        number = request["id"]
        if request["op"] == "score":
            return {"id": number, "unsupported": "OpenVINO GenAI's continuous batching does not score given text"}
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
        tokens = self._tokenizer.encode(request["prompt"]).input_ids
        self._live[number] = (self._pipe.add_request(number, tokens, config), request, tokens.shape[1])
        return None

    def step(self) -> Iterable[dict[str, Any]]:
        self._pipe.step()
        for number, (handle, request, prompt_tokens) in list(self._live.items()):
            if handle.get_status() == genai.GenerationStatus.RUNNING:
                continue
            del self._live[number]
            output = handle.read_all()[0]
            text = self._tokenizer.decode(output.generated_ids)
            yield {"id": number, "text": cut(text, request["stop"]), "prompt_tokens": prompt_tokens, "cached_tokens": None,
                   "generated_tokens": len(output.generated_ids),
                   "time_to_first_token": handle.get_perf_metrics().get_ttft().mean / 1000}


if __name__ == "__main__":
    model, kv_gib, max_running = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    out = take_output()
    serve(OpenVino(model, kv_gib, max_running), out, {
        "version": version("openvino-genai"),
        "settings": f"ContinuousBatchingPipeline, GGUF Q4_1, prefix caching, split fuse with 512 tokens a step, "
                    f"{kv_gib} GiB of KV, {max_running} sequences, 2 threads",
    })
