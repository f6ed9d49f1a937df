"""Runs in the order of their arrival: one at a time, the others know their place, and each can be cancelled."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import Failure
from mccompile.studio.serve.errors import RequestRefused
from mccompile.studio.serve.orders import Answer, Loaded, Order, RunOutcome, RunProgress, RunRefused, RunStopped
from mccompile.studio.serve.process import WorkerProcess

MOST_WAITING, MOST_KEPT = 8, 20
GRACE = 15.0  # seconds from a cancel to the end of the process, if no step comes
_LOOK = 0.2  # seconds between two looks at what was cancelled
WAITING = RunProgress("waiting", 0, 0)
RunState = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(slots=True)
class PageRun:
    """One run of the page. outcome: of one that is done. failed: why one is not."""

    number: int
    order: Order
    state: RunState = "waiting"
    progress: RunProgress = WAITING
    outcome: RunOutcome | None = None
    failed: tuple[Diagnostic, ...] = ()
    cancelled_at: float | None = None

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class Desk:
    """Takes orders from many threads and gives them to one process, which it starts anew where it has ended."""

    def __init__(self, start: Callable[[], WorkerProcess], grace: float = GRACE) -> None:
        """Starts the process and waits for the model. Raises what `WorkerProcess.loaded` raises."""
        self._start, self._grace = start, grace
        self._changed = threading.Condition()
        self._runs: dict[int, PageRun] = {}
        self._last, self._closed = 0, False
        self._worker: WorkerProcess | None = start()
        try:
            self.loaded: Loaded = self._worker.loaded()
        except BaseException:
            self._worker.close()
            raise
        self._thread = threading.Thread(target=self._carry_out_all, name="mccompile-desk", daemon=True)
        self._thread.start()

    def submit(self, order: Callable[[int], Order]) -> PageRun:
        """A new run at the end of the queue. order: by the run's number. Raises RequestRefused (MC0763)."""
        with self._changed:
            waiting = sum(run.state == "waiting" for run in self._runs.values())
            if waiting >= MOST_WAITING:
                raise RequestRefused(429, f"{waiting} runs are waiting already", "cancel one, or wait for one to end")
            self._last += 1
            run = self._runs[self._last] = PageRun(self._last, order(self._last))
            self._changed.notify_all()
            return run

    def cancel(self, number: int) -> PageRun:
        """Takes a run out of the queue, or stops it with its next step. Raises RequestRefused (MC0763)."""
        with self._changed:
            run = self.run(number)
            if run.state == "waiting":
                run.state = "cancelled"
            elif run.state == "running" and run.cancelled_at is None:
                run.cancelled_at = time.monotonic()
            self._changed.notify_all()
            return run

    def run(self, number: int) -> PageRun:
        """The run of that number. Raises RequestRefused (MC0763) where there is none, or none any more."""
        found = self._runs.get(number)
        if found is None:
            why = f"there is no run {number}; the last {MOST_KEPT} are kept"
            raise RequestRefused(404, why, "choose one from the list of runs")
        return found

    def runs(self) -> Sequence[PageRun]:
        """The runs that are kept, the latest last."""
        with self._changed:
            return tuple(self._runs.values())

    def place(self, run: PageRun) -> int:
        """How many runs come before one that waits."""
        ahead = [r for r in self.runs() if r.number < run.number and not r.over]
        return len(ahead) if run.state == "waiting" else 0

    def close(self) -> None:
        """Ends everything at once; what runs is lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._worker is not None:
            self._worker.close()

    def _carry_out_all(self) -> None:
        while True:
            with self._changed:
                run = next((r for r in self._runs.values() if r.state == "waiting"), None)
                if run is None and not self._closed:
                    self._changed.wait()
                    continue
                if self._closed or run is None:
                    return
                run.state, run.progress = "running", RunProgress("beginning", 0, 0)
            try:
                self._carry_out(run)
            except Failure as error:
                run.failed, run.state = error.diagnostics, "failed"
                self._drop_worker()
            self._forget()

    def _carry_out(self, run: PageRun) -> None:
        """Raises Failure where the process ends, or cannot load the model again."""
        if self._worker is None:
            run.progress = RunProgress("loading the model", 0, 0)
            self._worker = self._start()
            self._worker.loaded()
        self._worker.give(run.order)
        stopping = False
        while not run.over:
            if self._closed:
                run.state = "cancelled"
                return
            if run.cancelled_at is not None and not stopping:
                self._worker.stop()
                stopping = True
            if run.cancelled_at is not None and time.monotonic() - run.cancelled_at > self._grace:
                self._drop_worker()
                run.state = "cancelled"
                return
            answer = self._worker.answer(_LOOK)
            if answer is not None:
                _note(run, answer)

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _forget(self) -> None:
        """Runs that are over and too many go, with their files."""
        with self._changed:
            over = [r for r in self._runs.values() if r.over]
            for run in over[: max(0, len(over) - MOST_KEPT)]:
                del self._runs[run.number]
                shutil.rmtree(run.order.folder, ignore_errors=True)


def _note(run: PageRun, answer: Answer) -> None:
    match answer:
        case RunProgress():
            run.progress = answer
        case RunOutcome():
            run.outcome, run.state = answer, "done"
        case RunRefused(diagnostics):
            run.failed, run.state = diagnostics, "failed"
        case RunStopped():
            run.state = "cancelled"
        case Loaded():
            pass
        case _:
            assert_never(answer)


def folder_of(base: Path, number: int) -> Path:
    """Where the results of a run lie."""
    return base / f"run-{number}"
