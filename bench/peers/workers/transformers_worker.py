"""transformers' `generate` in static batches: the floor. python transformers_worker.py MODEL BATCH DTYPE"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from serve import cut, serve, take_output
from transformers import AutoModelForCausalLM, AutoTokenizer


class Transformers:
    """Requests that wait are taken together, up to a batch, if they are generated alike. Nothing is shared or cached."""

    def __init__(self, model: str, batch: int, dtype: str) -> None:
        torch.set_num_threads(2)
        self._tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        self._tokenizer.pad_token_id = self._tokenizer.pad_token_id or 0
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._batch = batch
        self._waiting: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["op"] == "complete" and (request["regex"] or request["schema"]) is not None:
            return {"id": request["id"], "unsupported": "transformers' generate takes no regular expression and no schema"}
        self._waiting.append(request)
        return None

    def step(self) -> Iterable[dict[str, Any]]:
        first = self._waiting[0]
        if first["op"] == "score":
            self._waiting.pop(0)
            return [self._score(first)]
        chosen = [request for request in self._waiting if _kind(request) == _kind(first)][: self._batch]
        self._waiting = [request for request in self._waiting if request not in chosen]
        return self._generate(chosen)

    def _generate(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first = requests[0]
        inputs = self._tokenizer([request["prompt"] for request in requests], return_tensors="pt", padding=True)
        options: dict[str, Any] = {"max_new_tokens": max(request["max_tokens"] for request in requests)}
        if first["exact"]:
            options["min_new_tokens"] = options["max_new_tokens"]
        if first["stop"]:
            options |= {"stop_strings": first["stop"], "tokenizer": self._tokenizer}
        if first["temperature"] > 0:
            torch.manual_seed(first["seed"])
            options |= {"do_sample": True, "temperature": first["temperature"], "top_k": 0, "top_p": 1.0}
        else:
            options["do_sample"] = False
        with torch.inference_mode():
            outputs = self._model.generate(**inputs, pad_token_id=self._tokenizer.pad_token_id, **options)
        replies = []
        for request, output, mask in zip(requests, outputs, inputs["attention_mask"], strict=True):
            generated = output[inputs["input_ids"].shape[1]:][: request["max_tokens"]]
            text = cut(self._tokenizer.decode(generated, skip_special_tokens=True), request["stop"])
            replies.append({"id": request["id"], "text": text, "prompt_tokens": int(mask.sum()), "cached_tokens": 0,
                            "generated_tokens": len(generated), "time_to_first_token": None})
        return replies

    def _score(self, request: dict[str, Any]) -> dict[str, Any]:
        head = self._tokenizer.encode(request["prompt"])
        logprobs = []
        for choice in request["choices"]:
            ids = self._tokenizer.encode(choice, add_special_tokens=False)
            with torch.inference_mode():
                logits = self._model(torch.tensor([head + ids]), logits_to_keep=len(ids) + 1).logits[0, :-1].float()
            logprobs.append(torch.log_softmax(logits, -1)[torch.arange(len(ids)), torch.tensor(ids)].tolist())
        return {"id": request["id"], "logprobs": logprobs, "prompt_tokens": len(head) * len(request["choices"]),
                "cached_tokens": 0, "generated_tokens": 0, "time_to_first_token": None}


def _kind(request: dict[str, Any]) -> tuple[Any, ...]:
    return (request["op"], request.get("stop"), request.get("temperature"), request.get("exact"))


if __name__ == "__main__":
    out = take_output()
    model, batch, dtype = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    serve(Transformers(model, batch, dtype), out, {
        "version": version("transformers"), "settings": f"generate, {dtype}, static batches of up to {batch}, 2 threads"})
