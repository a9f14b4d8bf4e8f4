"""The peers by name, each in the best configuration that we know of."""

from __future__ import annotations

import json
from pathlib import Path

from bench import paths
from bench.peers.install import installed
from bench.peers.llama_cpp import LlamaServer
from bench.peers.remote import Limits, Peer, PeerError, hf_model, worker


def _fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; one with AVX2 alone takes 30 times as long
    as for float32."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii")
    except OSError:
        return False


DTYPE = "bfloat16" if _fast_bfloat16() else "float32"
"""Of the weights of vLLM and transformers, which read no 4-bit file."""

OPENVINO = {"INFERENCE_NUM_THREADS": 2}
LLAMA_WEIGHTS = "q4_0"
VLLM = {"dtype": DTYPE}

TRANSFORMERS = {"transformers": "static", "transformers:continuous": "continuous"}
"""Its two interfaces, both of which are run."""

PEERS = ("openvino", "vllm", "llama.cpp", *TRANSFORMERS)


_FLOATS = (
    "reads no 4-bit file; bfloat16 only where the processor multiplies it, since torch takes 30 "
    "times as long elsewhere"
)

REASONS = {
    "openvino": "decodes faster as it comes (541 tokens/s, 8 prompts) than with keys and values in "
    "float16 (476) or dynamic "
    "quantization in groups of 32 (457)",
    "llama.cpp": "the fastest of its formats here: Q4_0 decodes 179 tokens/s and prefills 538, "
    "Q8_0 165 and 448; Q4_1 is not "
    "repacked for the processor, and slower at both",
    "vllm": "AsyncLLM spares it HTTP; one bound thread a core, as its documentation advises; "
    f"{_FLOATS}",
    "transformers": f"`generate`, the floor: it has no cache between calls; {_FLOATS}",
    "transformers:continuous": "shares prefixes and pads nothing, and was faster than `generate` "
    "on the four workloads tried "
    "that it ended in time; sdpa, since the flash attention that it prefers is for GPUs; small "
    "pages "
    "share prefixes of more lengths than its 256; no torch.compile, which pads the mask for all",
}
"""Why each peer is run as it is; what was measured stands in docs/log.md."""

AnyPeer = Peer | LlamaServer


def make_peer(name: str, model: str, limits: Limits) -> AnyPeer:
    """A peer that can be started. PeerError if it is not installed."""
    from asgl.models.pull import pull

    if name not in PEERS:
        raise PeerError(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
    if installed(name) is None:
        raise PeerError(f"{name} is not installed: run `make peers`")
    if name == "openvino":
        return worker(
            name,
            "openvino_worker.py",
            str(pull(model)),
            str(limits.kv_gib),
            str(limits.running),
            json.dumps(OPENVINO),
            environment={"OPENVINO_TELEMETRY": "0"},
        )
    if name == "vllm":
        # one thread a core, bound: what its documentation advises where nothing else runs
        return worker(
            name,
            "vllm_worker.py",
            str(hf_model(model)),
            str(limits.kv_gib),
            str(limits.running),
            json.dumps(VLLM),
            environment={
                "VLLM_CPU_OMP_THREADS_BIND": "0-1",
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "OMP_NUM_THREADS": "2",
                "VLLM_CPU_KVCACHE_SPACE": str(limits.kv_gib),
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
                "VLLM_HOST_IP": "127.0.0.1",
                "GLOO_SOCKET_IFNAME": "lo",
                "VLLM_CACHE_ROOT": str(paths.peers() / "vllm" / "cache"),
            },
        )
    if name in TRANSFORMERS:
        return worker(
            name,
            "transformers_worker.py",
            TRANSFORMERS[name],
            str(hf_model(model)),
            str(limits.kv_gib),
            str(limits.running),
            DTYPE,
            environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        )
    return LlamaServer(model, limits, LLAMA_WEIGHTS)
