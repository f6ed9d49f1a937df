"""The process that runs the model, seen from the server: started, given orders, stopped, killed where it must be."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from mccompile.diagnostics.failure import Failure
from mccompile.studio.serve.errors import WorkerEnded
from mccompile.studio.serve.orders import Answer, Given, Loaded, Order, RunRefused

WorkFunction = Callable[[Given, Connection, Event], None]
_STOP_SECONDS = 5.0  # that a process gets to end by itself


class WorkerProcess:
    """One process with the model in it. It reads orders, and answers each with its progress and its end."""

    def __init__(self, work: WorkFunction, given: Given) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._stop = context.Event()
        self._process = context.Process(target=work, args=(given, there, self._stop), name="mccompile-model")
        self._process.start()
        there.close()

    def loaded(self) -> Loaded:
        """Waits for the model. Raises Failure where it cannot be loaded, WorkerEnded (MC0764)."""
        while True:
            answer = self.answer(None)
            if isinstance(answer, Loaded):
                return answer
            if isinstance(answer, RunRefused):
                raise Failure(answer.diagnostics)

    def give(self, order: Order) -> None:
        """The next order. Raises WorkerEnded (MC0764)."""
        self._stop.clear()
        try:
            self._here.send(order)
        except OSError:
            raise self._ended() from None

    def answer(self, seconds: float | None) -> Answer | None:
        """The next answer; None where there is none within so many seconds. Raises WorkerEnded (MC0764)."""
        try:
            return self._here.recv() if self._here.poll(seconds) else None
        except (EOFError, OSError):
            raise self._ended() from None

    def stop(self) -> None:
        """Asks for the end of the run under way; it ends with its next step."""
        self._stop.set()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._here.close()
        self._process.terminate()
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ended(self) -> WorkerEnded:
        self._process.join(_STOP_SECONDS)
        return WorkerEnded(self._process.exitcode)
