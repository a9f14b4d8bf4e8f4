"""For tests of programs: a Runtime without a model, whose answers are written down beforehand.

    async with asgl.testing.ScriptedRuntime({"city": "Paris", "verdict": ["yes", "no"]}) as rt:
        s = await my_program(rt)

Everything but the model is the real thing: streams, forks, handles, budgets, cancellation, errors.
Time passes by one token of each running generation a turn of the event loop, so nothing waits and
everything is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, cast

from asgl import checks
from asgl.language.session import Session
from asgl.runtime import OpenResources, Runtime, tell_closed, tell_opened
from asgl.sampling import LIBRARY_DEFAULTS, SamplingParams
from asgl.testing.engine import ScriptedEngine
from asgl.testing.script import Answer, Answers, Asked, Script, ScriptedAnswers, ScriptError
from asgl.trace import Tracer, Tracers
from asgl.types import ModelInfo

__all__ = ["Answer", "Answers", "Asked", "Script", "ScriptError", "ScriptedRuntime"]


class ScriptedRuntime(Runtime):
    """A Runtime that answers by `script`: see `Script`, `Answers` and `Answer`.

    A word, with the white space before it, is a token; answers end at stops and at max_tokens as a
    model's would. Messages are written in ChatML. An answer must be what the op lets a model say:
    one of a select's options, a whole text of the op's regex, choices, grammar, JSON schema or
    dtype. Of JSON only the value counts, which is said in the layout that a model would write. An
    op that finds no such answer fails with ScriptError; leaving the block without an exception
    raises ScriptError if an answer was not used, and an ExceptionGroup of failures that nobody saw,
    as any Runtime does.

    Args:
        script: Answers by the name of the variable; the name of ops without one is None.
        sampling: Defaults for all prompts.
        tracers: Hear of every event, as those of any Runtime.
        context_length: In words; longer prompts fail with ContextLengthError.
    """

    def __init__(
        self,
        script: Script,
        *,
        sampling: SamplingParams | None = None,
        tracers: Iterable[Tracer] = (),
        context_length: int = 1 << 20,
    ) -> None:
        super().__init__("scripted", sampling=sampling, tracers=tracers)
        self._answers = ScriptedAnswers(script)
        self._context_length = checks.integer("context_length", context_length, 1)

    @property
    def asked(self) -> list[Asked]:
        """What the ops have asked so far, in order."""
        return list(self._answers.asked)

    async def _open(self) -> OpenResources:
        tracers = Tracers(self._tracers_attached)
        engine = ScriptedEngine(
            self._answers,
            (self._sampling or SamplingParams()).over(LIBRARY_DEFAULTS),
            self._context_length,
            tracers,
        )
        model = ModelInfo(
            name="scripted",
            architecture="none",
            parameters=0,
            context_length=self._context_length,
            vocabulary=0,
            dtype="none",
            device="none",
            kernels="none",
            weights="none",
        )
        tell_opened(tracers, model, 0, 0)

        async def close() -> None:
            await engine.close()
            tell_closed(tracers)

        return OpenResources(
            cast(Any, engine), Session(engine), cast(Any, engine.tokenizer), model, close
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if error is None:
            self._answers.check_used()
