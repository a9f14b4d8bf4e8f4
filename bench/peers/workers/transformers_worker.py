"""transformers: `generate` in static batches, the floor, or continuous batching. python
transformers_worker.py MODE MODEL KV_GIB MAX_RUNNING DTYPE

MODE: "static" or "continuous".
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from serve import cut, serve, take_output
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
)

BATCH = 16
"""Requests that `generate` takes at once."""
PAGE = 16
"""Tokens of a page of continuous batching's cache: prefixes are shared in whole pages."""
STEP_TOKENS = 512
"""Tokens of a step of continuous batching. Its mask is of all of them by all keys of all
requests."""
_POLL_SECONDS = 0.01


class Transformers:
    """The model, and log-probabilities of choices: what both modes do alike."""

    def __init__(self, model: str, dtype: str) -> None:
        torch.set_num_threads(2)
        self._tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        self._tokenizer.pad_token_id = self._tokenizer.pad_token_id or 0
        self._model = self._scorer = self._load(model, dtype)
        self._waiting: list[dict[str, Any]] = []

    @staticmethod
    def _load(model: str, dtype: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["op"] == "complete" and (request["regex"] or request["schema"]) is not None:
            return {
                "id": request["id"],
                "unsupported": "transformers takes no regular expression and no schema",
            }
        self._waiting.append(request)
        return None

    def _score(self, request: dict[str, Any]) -> dict[str, Any]:
        head = self._tokenizer.encode(request["prompt"])
        logprobs = []
        for choice in request["choices"]:
            ids = self._tokenizer.encode(choice, add_special_tokens=False)
            with torch.inference_mode():
                logits = (
                    self._scorer(torch.tensor([head + ids]), logits_to_keep=len(ids) + 1)
                    .logits[0, :-1]
                    .float()
                )
            logprobs.append(
                torch.log_softmax(logits, -1)[torch.arange(len(ids)), torch.tensor(ids)].tolist()
            )
        return {
            "id": request["id"],
            "logprobs": logprobs,
            "prompt_tokens": len(head) * len(request["choices"]),
            "cached_tokens": 0,
            "generated_tokens": 0,
            "time_to_first_token": None,
        }

    def stop(self) -> None:
        """Ends what runs beside the caller's thread."""


class Static(Transformers):
    """Requests that wait are taken together, up to a batch, if they are generated alike. Nothing is
    shared or cached."""

    settings = f"generate, {{dtype}}, static batches of up to {BATCH}, 2 threads"

    def step(self) -> Iterable[dict[str, Any]]:
        first = self._waiting[0]
        if first["op"] == "score":
            self._waiting.pop(0)
            return [self._score(first)]
        chosen = [request for request in self._waiting if _kind(request) == _kind(first)][:BATCH]
        self._waiting = [request for request in self._waiting if request not in chosen]
        return self._generate(chosen)

    def _generate(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first = requests[0]
        inputs = self._tokenizer(
            [request["prompt"] for request in requests], return_tensors="pt", padding=True
        )
        options: dict[str, Any] = {
            "max_new_tokens": max(request["max_tokens"] for request in requests)
        }
        if first["exact"]:
            options["min_new_tokens"] = options["max_new_tokens"]
        if first["stop"]:
            options |= {"stop_strings": first["stop"], "tokenizer": self._tokenizer}
        if first["temperature"] > 0:
            torch.manual_seed(first["seed"])
            options |= {
                "do_sample": True,
                "temperature": first["temperature"],
                "top_k": 0,
                "top_p": 1.0,
            }
        else:
            options["do_sample"] = False
        with torch.inference_mode():
            outputs = self._model.generate(
                **inputs, pad_token_id=self._tokenizer.pad_token_id, **options
            )
        replies = []
        for request, output, mask in zip(requests, outputs, inputs["attention_mask"], strict=True):
            generated = output[inputs["input_ids"].shape[1] :][: request["max_tokens"]]
            text = cut(self._tokenizer.decode(generated, skip_special_tokens=True), request["stop"])
            replies.append(
                {
                    "id": request["id"],
                    "text": text,
                    "prompt_tokens": int(mask.sum()),
                    "cached_tokens": 0,
                    "generated_tokens": len(generated),
                    "time_to_first_token": None,
                }
            )
        return replies


class Continuous(Transformers):
    """The manager under `generate_batch`, which takes requests as they come and shares the pages of
    prefixes.

    A manager either samples or takes the likeliest token, for all of its requests; so there is one
    of each kind, opened when first needed, with half of the memory for keys and values.
    """

    settings = (
        f"continuous batching (the manager under generate_batch), {{dtype}}, sdpa, pages of "
        f"{PAGE}, prefix sharing, "
        f"{STEP_TOKENS} tokens a step, {{kv_gib}} GiB of KV, {{running}} sequences, 2 threads"
    )

    def __init__(self, model: str, dtype: str, kv_gib: int, max_running: int) -> None:
        super().__init__(model, dtype)
        self._scorer = self._load(
            model, dtype
        )  # a manager makes its model attend to pages, and without them to all tokens
        config = self._model.config
        page = (
            PAGE
            * 2
            * config.num_hidden_layers
            * config.num_key_value_heads
            * config.head_dim
            * self._model.dtype.itemsize
        )
        self._config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=kv_gib * 2**30 // 2 // page,
            max_batch_tokens=STEP_TOKENS,
            max_requests_per_batch=max_running,
            per_request_processors=True,
            auto_switch_to_flash=False,
        )
        self._managers: dict[bool, Any] = {}
        self._live: dict[str, dict[str, Any]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._live)

    def step(self) -> Iterable[dict[str, Any]]:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            if request["op"] == "score":
                yield self._score(request)
            else:
                self._submit(request)
        for manager in list(self._managers.values()):
            # what is there is taken at once; only the first is waited for
            output = manager.get_result(timeout=_POLL_SECONDS)
            while output is not None:
                if (reply := self._reply(manager, output)) is not None:
                    yield reply
                output = (
                    manager.get_result(timeout=0)
                    if not manager.output_router.output_queue.empty()
                    else None
                )
            if not manager.is_running():
                raise RuntimeError(
                    "the thread of continuous batching ended: "
                    f"{manager.background_thread_status.fatal_error!r}"
                )

    def _submit(self, request: dict[str, Any]) -> None:
        sampled = request["temperature"] > 0
        request["tokens"] = self._tokenizer.encode(request["prompt"])
        name = str(request["id"])
        self._live[name] = request
        # a request that ends with its first token leaves nothing in the cache, so that at least two
        # are asked for
        self._manager(sampled).add_request(
            request["tokens"],
            request_id=name,
            max_new_tokens=max(request["max_tokens"], 2),
            streaming=bool(request["stop"]) or request["max_tokens"] == 1,
            record_timestamps=True,
            eos_token_id=-1 if request["exact"] else self._tokenizer.eos_token_id,
            **({"temperature": request["temperature"]} if sampled else {}),
        )

    def _manager(self, sampled: bool) -> Any:
        if sampled not in self._managers:
            # a temperature of one would leave out the processor that takes each request's own
            options: dict[str, Any] = (
                {"temperature": 0.5, "top_k": 0, "top_p": 1.0} if sampled else {}
            )
            config = GenerationConfig(
                do_sample=sampled, eos_token_id=self._tokenizer.eos_token_id, **options
            )
            with torch.inference_mode():
                self._managers[sampled] = self._model.init_continuous_batching(config, self._config)
                self._managers[sampled].start()
        return self._managers[sampled]

    def _reply(self, manager: Any, output: Any) -> dict[str, Any] | None:
        """The answer, if there is one already: it ends at the first stop, before the request
        does."""
        request = self._live.get(output.request_id)
        if request is None:  # it was answered before
            return None
        if output.error is not None:
            del self._live[output.request_id]
            return {"id": request["id"], "error": output.error}
        generated = output.generated_tokens[: request["max_tokens"]]
        whole = self._tokenizer.decode(generated, skip_special_tokens=True)
        text = cut(whole, request["stop"])
        if not output.is_finished():
            if text == whole and len(generated) < request["max_tokens"]:
                return None
            manager.cancel_request(output.request_id)
        del self._live[output.request_id]
        return {
            "id": request["id"],
            "text": text,
            "prompt_tokens": len(request["tokens"]),
            "cached_tokens": None,
            "generated_tokens": len(generated),
            "time_to_first_token": output.timestamps[0] - output.created_time,
        }

    def stop(self) -> None:
        for manager in self._managers.values():
            manager.stop(hard_stop=True, timeout=5)


def _kind(request: dict[str, Any]) -> tuple[Any, ...]:
    return (request["op"], request.get("stop"), request.get("temperature"), request.get("exact"))


if __name__ == "__main__":
    mode, model, kv_gib, running, dtype = (
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        sys.argv[5],
    )
    out = take_output()
    peer = (
        Continuous(model, dtype, kv_gib, running) if mode == "continuous" else Static(model, dtype)
    )
    try:
        serve(
            peer,
            out,
            {
                "version": version("transformers"),
                "settings": peer.settings.format(dtype=dtype, kv_gib=kv_gib, running=running),
            },
        )
    finally:
        peer.stop()
