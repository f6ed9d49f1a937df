"""Shows progress: bars if stderr is a terminal, and nothing otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from mccompile.generate.run import OnStep


class Display:
    """One bar per task, the tasks one after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._compiling: TaskID | None = None

    def task(self, name: str) -> OnStep:
        """A new bar; the returned function is told how many steps are done, of how many."""
        task = self._progress.add_task(name, total=None)
        return lambda done, total: self._progress.update(task, completed=done, total=total)

    def compiled(self, role: str, done: int, total: int, seconds: float) -> None:
        """A graph was compiled."""
        if self._compiling is None:
            self._compiling = self._progress.add_task("compiling")
        self._progress.update(self._compiling, completed=done, total=total, description=f"compiling {role}")


@contextlib.contextmanager
def display() -> Iterator[Display]:
    """Bars while inside; without a terminal nothing is shown."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Display(progress)
