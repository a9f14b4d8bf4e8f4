"""Progress as bars in the terminal: of a pull, for the command line and a Runtime that fetches its
model, and of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from asgl.types import EngineStatistics


class ProgressBar:
    """A context manager; called as `models.pull.Progress`. Nothing is shown before the first call.

    counts: what is counted, "bytes" or "things".

    A step whose words differ from the last one's gets a bar of its own. Drawn on standard error; a
    console that is no terminal gets nothing.
    """

    def __init__(
        self, console: Console | None = None, *, counts: Literal["bytes", "things"] = "bytes"
    ) -> None:
        measures = (
            (DownloadColumn(), TransferSpeedColumn())
            if counts == "bytes"
            else (MofNCompleteColumn(),)
        )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *measures,
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._what = ""
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int | None, what: str) -> None:
        if not self._progress.console.is_terminal:
            return
        if self._task is None or what != self._what:
            self._finish()
            self._progress.start()
            self._what, self._task = what, self._progress.add_task(what, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        if self._task is not None:
            self._progress.stop()

    def _finish(self) -> None:
        """Fills the bar of a step that is over: its last call may have come a little before its
        end."""
        if self._task is not None:
            total = self._progress.tasks[self._progress.task_ids.index(self._task)].total
            self._progress.update(self._task, completed=total)


class BatchBar:
    """The progress of a batch of programs, with programs and tokens per second and the share of
    prompt tokens that were cached.

    A context manager; called after each program. Drawn on standard error; a console that is no
    terminal gets nothing.
    """

    def __init__(
        self,
        total: int,
        what: str,
        statistics: Callable[[], EngineStatistics],
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._total, self._what, self._statistics, self._clock = total, what, statistics, clock
        self._began = clock()
        self._before = statistics()
        self._done = 0
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._progress.console.is_terminal:
            self._progress.start()
            self._task = self._progress.add_task(self._what, total=self._total, rates="")
        return self

    def __call__(self) -> None:
        self._done += 1
        if self._task is not None:
            self._progress.update(self._task, completed=self._done, rates=self.rates())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._progress.stop()

    def rates(self) -> str:
        """How fast it went since the beginning."""
        now, before = self._statistics(), self._before
        seconds = max(self._clock() - self._began, 1e-9)
        prompt, cached = (
            now.prompt_tokens - before.prompt_tokens,
            now.cached_tokens - before.cached_tokens,
        )
        tokens = now.generated_tokens - before.generated_tokens
        return (
            f"{self._done / seconds:.1f} programs/s  {tokens / seconds:.0f} tokens/s  "
            f"{cached / prompt if prompt else 0:.0%} cached"
        )
