"""The language: prompt streams, the ops that are submitted to them, and forks."""

from asgl.language.budget import Budget, budget
from asgl.language.choices import Option
from asgl.language.fork import TaskHandle
from asgl.language.handle import Handle, SelectHandle
from asgl.language.ops import assistant, extend, gen, role, select, system, token, tokens, user
from asgl.language.run_probe import BeamResult
from asgl.language.session import Session
from asgl.language.stream import Branches, Mark, PromptStream
from asgl.language.tool_calls import ToolCalls, Turn
from asgl.language.tools import AnyTool, Tool, ToolCall, tool

__all__ = [
    "AnyTool",
    "BeamResult",
    "Branches",
    "Budget",
    "Handle",
    "Mark",
    "Option",
    "PromptStream",
    "SelectHandle",
    "Session",
    "TaskHandle",
    "Tool",
    "ToolCall",
    "ToolCalls",
    "Turn",
    "assistant",
    "budget",
    "extend",
    "gen",
    "role",
    "select",
    "system",
    "token",
    "tokens",
    "tool",
    "user",
]
