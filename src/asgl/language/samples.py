"""Several continuations from one point: see `PromptStream.sample`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from asgl.language.handle import Handle
from asgl.language.item import SetVariable
from asgl.language.ops import Gen
from asgl.language.outcome import Signal

if TYPE_CHECKING:
    from asgl.language.core import Core


async def sample(core: Core, name: str | None, n: int, op: Gen) -> list[Any]:
    """`n` values of the op, each from a branch of its own; sets the variable to the list."""
    op, seed = replace(op, params=replace(op.params, seed=None)), op.params.seed
    children = core.children(n)
    for child in children:
        if seed is not None:
            child.sampling = replace(child.sampling, seed=seed)
    handles: list[Handle[Any]] = [Handle(child, child.submit(op)) for child in children]
    try:
        values = await _all(handles)
    finally:
        for handle in handles:
            handle.core.cancel(handle.item)
            handle.item.see()
    if name is not None:
        core.submit(SetVariable(name, values), grows=False)
    return values


async def _all(handles: Sequence[Handle[Any]]) -> list[Any]:
    """The values, when all are there; or the first error, when it is."""
    ended = Signal()
    with ExitStack() as held:
        for handle in handles:
            held.enter_context(handle.core.held())
            handle.item.add_callback(ended.notify)
        while not all(handle.done() for handle in handles):
            if any(handle.item.error is not None for handle in handles):
                break
            await ended.wait()
    for handle in handles:
        if handle.item.error is not None:
            await handle
    return [await handle for handle in handles]
