"""The workloads of the SGLang paper (arXiv 2312.07104, section 6), at the size of a small model on
two cores.

`WORKLOADS` has them all by name. Each is a program of a few lines over `bench.client.Prompt` and
the items it runs on.
"""

from __future__ import annotations

from bench.workloads import agents, branching, few_shot, long_prompts
from bench.workloads.base import Workload

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        few_shot.MCQ,
        few_shot.SELECT,
        few_shot.REASONING,
        agents.REACT,
        agents.GENERATIVE,
        branching.TREE,
        branching.DEEP_TREE,
        branching.SKELETON,
        branching.JUDGE,
        branching.CHAINS,
        long_prompts.JSON_REGEX,
        long_prompts.JSON_SCHEMA,
        long_prompts.CHAT_SHORT,
        long_prompts.CHAT_LONG,
        long_prompts.DOCUMENTS,
        long_prompts.IN_BATCH,
    )
}
