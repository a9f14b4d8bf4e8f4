"""asgl: language model programs on asyncio, with their engine in the same process.

    async with asgl.Runtime("smollm2-135m") as rt:
        s = rt.prompt("The capital of France is")
        city = await s.gen("city", max_tokens=8, stop=".")

Importing asgl is quick: torch and the rest are imported when a Runtime is entered.
"""

import importlib
from types import ModuleType

from asgl.compile.function import Function, function
from asgl.compile.graph import Graph
from asgl.compile.symbols import arg
from asgl.errors import (
    AsglError,
    BudgetError,
    CapacityError,
    CompileError,
    ConfigError,
    ContextLengthError,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    GrammarError,
    InternalError,
    ModelError,
    NumericalError,
    OpCancelledError,
    OutputError,
    QueueFullError,
    RequestError,
    StreamClosedError,
    StreamError,
    ToolError,
    TraceError,
    VariableError,
)
from asgl.language import (
    AnyTool,
    BeamResult,
    Branches,
    Budget,
    Handle,
    Mark,
    Option,
    PromptStream,
    SelectHandle,
    TaskHandle,
    Tool,
    ToolCall,
    ToolCalls,
    Turn,
    assistant,
    budget,
    extend,
    gen,
    role,
    select,
    system,
    token,
    tokens,
    tool,
    user,
)
from asgl.language.message_list import messages
from asgl.language.op_info import OpInfo
from asgl.language.program import Completed
from asgl.language.run import ProgramStream, Run
from asgl.runtime import Runtime
from asgl.sampling import SamplingParams
from asgl.trace import JsonlTracer, Tracer
from asgl.types import EngineStatistics, Message, ModelInfo, TokenLogprob

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """`asgl.viewer` and `asgl.telemetry` without imports of their own, and without the cost of
    them for others."""
    if name in ("viewer", "telemetry"):
        return importlib.import_module(f"asgl.{name}")
    raise AttributeError(f"module 'asgl' has no attribute {name!r}")


__all__ = [
    "AnyTool",
    "AsglError",
    "BeamResult",
    "Branches",
    "Budget",
    "BudgetError",
    "CapacityError",
    "CompileError",
    "Completed",
    "ConfigError",
    "ContextLengthError",
    "EngineClosedError",
    "EngineCrashedError",
    "EngineError",
    "EngineStatistics",
    "Function",
    "GrammarError",
    "Graph",
    "Handle",
    "InternalError",
    "JsonlTracer",
    "Mark",
    "Message",
    "ModelError",
    "ModelInfo",
    "NumericalError",
    "OpCancelledError",
    "OpInfo",
    "Option",
    "OutputError",
    "ProgramStream",
    "PromptStream",
    "QueueFullError",
    "RequestError",
    "Run",
    "Runtime",
    "SamplingParams",
    "SelectHandle",
    "StreamClosedError",
    "StreamError",
    "TaskHandle",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCalls",
    "ToolError",
    "TraceError",
    "Tracer",
    "Turn",
    "VariableError",
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
]
