"""Progress of a pull as a bar in the terminal, for the command line and for a Runtime that fetches its model."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ProgressBar:
    """A context manager; called as `models.pull.Progress`. Nothing is shown before the first call.

    A step whose words differ from the last one's gets a bar of its own. Drawn on standard error; a console that is no
    terminal gets nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console or Console(stderr=True),
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        if self._task is not None:
            self._progress.stop()

    def _finish(self) -> None:
        """Fills the bar of a step that is over: its last call may have come a little before its end."""
        if self._task is not None:
            total = self._progress.tasks[self._progress.task_ids.index(self._task)].total
            self._progress.update(self._task, completed=total)
