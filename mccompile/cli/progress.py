"""Shows what is being done, on stderr: bars on a terminal, and lines with the seconds so far in a file or a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from mccompile.generate.run import OnStep

PARTS = 4  # of a run, each told by a line when it is done


class Bars:
    """One bar per task, the tasks one after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._compiling: TaskID | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A bar that moves while inside."""
        task = self._progress.add_task(name, total=None)
        yield
        self._progress.update(task, completed=1, total=1)

    def task(self, name: str) -> OnStep:
        """A new bar; the returned function is told how many steps are done, of how many."""
        task = self._progress.add_task(name, total=None)
        return lambda done, total: self._progress.update(task, completed=done, total=total)

    def compiled(self, role: str, done: int, total: int, seconds: float) -> None:
        """A graph was compiled."""
        if self._compiling is None:
            self._compiling = self._progress.add_task("compiling")
        self._progress.update(self._compiling, completed=done, total=total, description=f"compiling {role}")


class Lines:
    """One line per stage when it begins, per compiled graph, and per quarter of a run."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def _say(self, text: str) -> None:
        sys.stderr.write(f"[{time.perf_counter() - self._begun:6.1f} s] {text}\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A line as the stage begins."""
        self._say(name)
        yield

    def task(self, name: str) -> OnStep:
        """A line now; the returned function is told how many steps are done, of how many (one step: no line)."""
        self._say(name)

        def told(done: int, total: int) -> None:
            if total > 1 and done * PARTS // total > (done - 1) * PARTS // total:
                self._say(f"{name}: step {done} of {total}")

        return told

    def compiled(self, role: str, done: int, total: int, seconds: float) -> None:
        """A graph was compiled."""
        self._say(f"compiled {role}, {done} of {total} graphs")


Display: TypeAlias = Bars | Lines


@contextlib.contextmanager
def display() -> Iterator[Display]:
    """What is told of the stages, compiles and runs inside."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)
