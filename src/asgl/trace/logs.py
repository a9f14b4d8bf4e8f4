"""Lines for the logger "asgl", of the standard library's logging.

    ERROR    the engine has crashed
    WARNING  a request was retracted: the KV cache is too small for what runs
    INFO     a Runtime was opened or closed; a program failed; cached prefixes were dropped
    DEBUG    each program, op, tool and request

No line has what a program or a model says. With a logger that is not enabled for INFO when a
Runtime is opened, nothing is written and nothing is built.
"""

from __future__ import annotations

import logging

from asgl.trace.events import (
    Event,
    EvictionEvent,
    OpEvent,
    ProgramEvent,
    RequestEvent,
    RuntimeEvent,
    ToolEvent,
)

logger = logging.getLogger("asgl")


class LogTracer:
    """A tracer that writes the lines. A Runtime attaches one if the logger is enabled for INFO."""

    def __init__(self) -> None:
        self._crashed: set[int] = set()
        """The Runtimes whose engine has crashed: the first request that hears of it says so."""

    def event(self, event: Event, /) -> None:
        """Writes a line, if the event is worth one at the logger's level."""
        match event:
            case RuntimeEvent(kind="opened"):
                logger.info(
                    "opened %s on %s, kernels %s, %d tokens of KV cache",
                    event.model,
                    event.device,
                    event.kernels,
                    event.capacity,
                )
            case RuntimeEvent():
                logger.info("closed")
            case RequestEvent(kind="failed") if event.reason.startswith("EngineCrashedError"):
                if event.run not in self._crashed:
                    self._crashed.add(event.run)
                    logger.error("the engine has crashed: %s", event.reason)
            case RequestEvent(kind="retracted"):
                logger.warning("request %d was retracted: %s", event.request_id, event.reason)
            case EvictionEvent():
                logger.info("%d cached tokens were dropped: %s", event.tokens, event.cause)
            case ProgramEvent():
                level = logging.INFO if event.kind == "failed" else logging.DEBUG
                kind = event.reason.partition("(")[0]
                logger.log(level, "program %s %s %s", _program(event), event.kind, kind)
            case OpEvent(kind="finished" | "failed" | "cancelled"):
                logger.debug(
                    "stream %d: %s %d %s", event.stream_id, event.op, event.number, event.kind
                )
            case ToolEvent():
                logger.debug(
                    "stream %d: tool %s %s, %.3f s",
                    event.stream_id,
                    event.tool,
                    event.kind,
                    event.seconds,
                )
            case RequestEvent():
                logger.debug(
                    "request %d %s: %d tokens of prompt, %d cached, %d generated",
                    event.request_id,
                    event.kind,
                    event.prompt_tokens,
                    event.cached_tokens,
                    event.generated_tokens,
                )
            case _:
                pass


def _program(event: ProgramEvent) -> str:
    return event.program if event.item is None else f"{event.program}[{event.item}]"
