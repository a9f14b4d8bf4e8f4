"""Budgets: how many tokens may be generated, and how many seconds may pass, for all that is
submitted inside a block.

    with asgl.budget(tokens=2000, seconds=30) as spending:
        async with s.fork(5) as branches: ...

An op is bound by the budgets that are open where it is submitted, and by that of its prompt
(`Runtime.prompt(budget=...)`), which forks inherit. Each op that is bound carries an `Allowance`,
which the stream that carries it out keeps informed:

    begin        the op starts: BudgetError if its time is over
    clamp        a generation is about to be requested: `max_tokens` is cut to what is left;
                 BudgetError if that is nothing
    count        so many tokens were generated: when none are left, all that still generates ends
                 with BudgetError and is cancelled in the engine
    finish       the generation ended: BudgetError if the limit is why
    end          the op has ended, however

What is counted stays within the limit: what the engine computed beyond it in the same step is
dropped. (Only a run of tokens that a grammar forces comes as one, and may end a little beyond.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Self

from asgl.checks import integer, number
from asgl.errors import BudgetError, ConfigError
from asgl.sampling import SamplingParams
from asgl.types import FinishReason


class Budget:
    """Bounds everything that is submitted while it is open: see `budget`. It may be opened again,
    and goes on from what was spent."""

    def __init__(self, tokens: int | None, seconds: float | None) -> None:
        if tokens is None and seconds is None:
            raise ConfigError("a budget needs a limit: tokens, seconds, or both")
        if tokens is not None:
            integer("the tokens of a budget", tokens, 0)
        if seconds is not None:
            number("the seconds of a budget", seconds, 0)
        self.tokens = tokens
        self.seconds = seconds
        self.spent = 0
        """How many tokens were generated on this budget."""
        self._began: float | None = None
        self._running: set[Allowance] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self.start()
        _open.set((*_open.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        still_open = list(_open.get())
        if (
            self in still_open
        ):  # it is not, where it is left in another context than it was entered in
            still_open.remove(self)
            _open.set(tuple(still_open))

    def __repr__(self) -> str:
        of_tokens = (
            f"{self.spent} of {self.tokens} tokens"
            if self.tokens is not None
            else f"{self.spent} tokens"
        )
        of_seconds = "" if self.seconds is None else f", {self.seconds:g} seconds"
        return f"<Budget: {of_tokens} spent{of_seconds}>"

    @property
    def tokens_left(self) -> int | None:
        """How many tokens may still be generated; None for any number."""
        return None if self.tokens is None else max(0, self.tokens - self.spent)

    @property
    def passed(self) -> float:
        """Seconds since its time began."""
        if self._began is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._began

    # --- for allowances

    def start(self) -> None:
        """The time begins: with the first block or prompt. Outside of an event loop nothing
        happens, and the first op does it."""
        if self._began is None:
            try:
                self._began = asyncio.get_running_loop().time()
            except RuntimeError:
                return

    def admit(self, allowance: Allowance) -> None:
        """The op of the allowance starts. BudgetError if the time is over."""
        self.start()
        loop = asyncio.get_running_loop()
        if self.seconds is not None:
            assert self._began is not None
            if (passed := self.passed) >= self.seconds:
                raise self._out_of_time(passed)
            if self._timer is None:
                self._timer = loop.call_at(self._began + self.seconds, self._time_is_over)
        self._running.add(allowance)

    def leave(self, allowance: Allowance) -> None:
        """The op of the allowance ended. Idempotent."""
        self._running.discard(allowance)
        if self._timer is not None and not self._running:
            self._timer.cancel()
            self._timer = None

    def stop_generating(self) -> None:
        """Ends all that still generates, if nothing is left."""
        if self.tokens_left == 0:
            for allowance in list(self._running):
                if allowance.generating:
                    allowance.interrupt(self.out_of_tokens())

    def out_of_tokens(self) -> BudgetError:
        """The error of an op that would need more."""
        assert self.tokens is not None
        return BudgetError(
            f"the budget of {self.tokens} tokens is spent ({self.spent}), and more would have to "
            "be generated: "
            "raise it, or ask for fewer",
            spent=self.spent,
            limit=self.tokens,
        )

    def _out_of_time(self, passed: float) -> BudgetError:
        assert self.seconds is not None
        return BudgetError(
            f"the budget of {self.seconds:g} seconds is spent: {passed:.3f} seconds have passed",
            spent=passed,
            limit=self.seconds,
        )

    def _time_is_over(self) -> None:
        self._timer = None
        passed = self.passed
        for allowance in list(self._running):
            allowance.interrupt(self._out_of_time(passed))


_open: ContextVar[tuple[Budget, ...]] = ContextVar("asgl_budgets", default=())
"""The budgets that are open here, outermost first."""


def budget(*, tokens: int | None = None, seconds: float | None = None) -> Budget:
    """`with asgl.budget(tokens=2000, seconds=30):` bounds everything submitted inside, in forks and
    tasks started there too.

    tokens: how many may be generated in all; prompts, selects and extends cost none. seconds: of
    the event loop's clock, from the moment that the block is entered. An op that would pass a limit
    ends with BudgetError where it is awaited, and is cancelled in the engine. Blocks can be nested:
    each op is bound by all that are open. `Runtime.prompt(budget=...)` binds the ops of one prompt
    and its forks, wherever they are submitted. Raises ConfigError for a bad or missing limit.
    """
    return Budget(tokens, seconds)


class Allowance:
    """What one op may spend."""

    __slots__ = ("_budgets", "_clamped_by", "_counted", "_interrupt", "generating")

    def __init__(self, budgets: tuple[Budget, ...]) -> None:
        self._budgets = budgets
        self._counted = 0
        """Tokens of the request that runs now that were counted."""
        self._clamped_by: Budget | None = None
        self._interrupt: Callable[[BudgetError], None] | None = None
        self.generating = False

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return self._budgets

    def begin(self, interrupt: Callable[[BudgetError], None]) -> None:
        """The op starts; `interrupt` ends it with an error."""
        self._interrupt = interrupt
        for one in self._budgets:
            one.admit(self)

    def end(self) -> None:
        """The op ended. Idempotent."""
        self._interrupt = None
        self.generating = False
        for one in self._budgets:
            one.leave(self)

    def interrupt(self, error: BudgetError) -> None:
        if self._interrupt is not None:
            self._interrupt(error)

    def clamp(self, params: SamplingParams) -> SamplingParams:
        """The parameters for a generation that now begins, which can pass no limit. BudgetError if
        nothing is left."""
        self._counted = 0
        self._clamped_by = None
        assert params.max_tokens is not None
        left = params.max_tokens
        for one in self._budgets:
            if one.tokens_left is not None and one.tokens_left < left:
                left, self._clamped_by = one.tokens_left, one
        if self._clamped_by is not None:
            if not left:
                raise self._clamped_by.out_of_tokens()
            params = replace(params, max_tokens=left, min_tokens=min(params.min_tokens or 0, left))
        self.generating = True
        return params

    def count(self, tokens: int) -> None:
        """The generation has `tokens` tokens by now."""
        new, self._counted = tokens - self._counted, tokens
        for one in self._budgets:
            one.spent += new
        for one in self._budgets:
            one.stop_generating()

    def finish(self, tokens: int, reason: FinishReason | None) -> None:
        """The generation ended with so many tokens, for that reason. BudgetError if a budget is
        what cut it."""
        self.generating = False
        self.count(tokens)
        if (
            reason == "length"
            and self._clamped_by is not None
            and self._clamped_by.tokens_left == 0
        ):
            raise self._clamped_by.out_of_tokens()


def opened() -> tuple[Budget, ...]:
    """The budgets that are open here, outermost first."""
    return _open.get()


def allowance(of_prompt: tuple[Budget, ...]) -> Allowance | None:
    """For an op that is submitted here, on a stream with these budgets; None if nothing bounds
    it."""
    opened = _open.get()
    if not opened and not of_prompt:
        return None
    return Allowance(tuple(dict.fromkeys((*opened, *of_prompt))))
