"""A progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress"]

Item = TypeVar("Item")


class Progress:
    """A bar with counts, free text and time left; silent unless `show` and standard error is a terminal."""

    def __init__(self, show: bool) -> None:
        self._bar = _terminal_bar() if show and sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def task(self, description: str, total: int | None) -> TaskID | None:
        """Open a bar of `total` ticks, or of as many as come."""
        return None if self._bar is None else self._bar.add_task(description, total=total, note="")

    def advance(self, task: TaskID | None, ticks: int = 1, note: str | None = None) -> None:
        """Move a bar on, with a new note if one is given."""
        if self._bar is None or task is None:
            return
        if note is None:
            self._bar.advance(task, ticks)
        else:
            self._bar.update(task, advance=ticks, note=note)

    def track(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        """Iterate under a bar."""
        task = self.task(description, total)
        for item in items:
            yield item
            self.advance(task)


def _terminal_bar() -> RichProgress:
    # Imported here: on import rich draws from Python's random generator, which only a bar is worth.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
