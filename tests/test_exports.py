"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import asgl
from asgl import errors

PUBLIC = {
    "Option",
    "BeamResult",
    "AnyTool",
    "ToolCalls",
    "Turn",
    "Branches",
    "Budget",
    "Completed",
    "EngineStatistics",
    "Function",
    "Graph",
    "Handle",
    "JsonlTracer",
    "Mark",
    "OpInfo",
    "Run",
    "Message",
    "ModelInfo",
    "ProgramStream",
    "PromptStream",
    "Runtime",
    "SamplingParams",
    "SelectHandle",
    "TaskHandle",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Tracer",
    "arg",
    "assistant",
    "budget",
    "extend",
    "function",
    "gen",
    "messages",
    "role",
    "select",
    "system",
    "token",
    "tokens",
    "tool",
    "user",
}


def test_the_public_names():
    raised = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    }
    assert set(asgl.__all__) == PUBLIC | raised
    assert list(asgl.__all__) == sorted(asgl.__all__)
    assert all(hasattr(asgl, name) for name in asgl.__all__)


def test_importing_asgl_imports_nothing_heavy():
    heavy = ("torch", "triton", "numba", "transformers", "numpy")
    code = f"import sys, asgl; print(*sorted(set({heavy}) & set(sys.modules)))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == []
