"""A model that is none: it answers orders at once, waits until it is stopped, is refused, or ends, by the prompt."""

from __future__ import annotations

import queue
import signal
import sys
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mccompile.diagnostics.failure import StatedFailure
from mccompile.diagnostics.source import Source
from mccompile.generate.video import write_mp4
from mccompile.policy.phases import Grid
from mccompile.studio.serve.errors import WorkerEnded
from mccompile.studio.serve.orders import (
    ALONE,
    REPORT,
    SIDE_BY_SIDE,
    Answer,
    Given,
    Loaded,
    Order,
    Preset,
    RunOutcome,
    RunProgress,
    RunRefused,
    RunStopped,
)

GIVEN = Given("embedded", None, None, "eager", False, {}, 0)
GRID = Grid(10, tuple(1000.0 - 100 * i for i in range(10)), tuple(1.0 - 0.1 * i for i in range(10)))
SMALL = Preset("small: 9 frames", {"num_frames": 9}, GRID)
LOADED = Loaded("ToyPipeline", "a red circle", 3, (SMALL, Preset("whole: 31 frames", {}, GRID)))
TEXT = """policy mine {
  param n = 2 in 1..9

  phase all { compute every n steps }

  layers blocks[*] { keep residual }
}
"""
DONE = RunOutcome(
    "policy mine is approximate", 2.0, 5.0, 0.4, 0.35, 31.25, 28.5, 7, ("conv3d_1: mixes tokens",), ("a warning",)
)  # fmt: skip
SCRIPT = "document.getElementById('p').textContent = 'drawn'"
PAGE = f"<!doctype html><title>r</title><p id=p>no script</p><script>{SCRIPT}</script>"


class NoRoom(StatedFailure):
    code = "MC0763"


def refusal() -> RunRefused:
    return RunRefused(NoRoom("the model refuses it", "ask for something else").diagnostics)


def order(folder: Path, prompt: str = "p", text: str = TEXT) -> Order:
    return Order(Source("mine.policy", text, folder / "mine.policy"), {}, SMALL, prompt, 0, folder / "results")


@cache
def movie() -> bytes:
    """A short video file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.mp4"
        write_mp4(path, np.full((4, 32, 64, 3), 90, np.uint8), 12)
        return path.read_bytes()


def write_results(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in (SIDE_BY_SIDE, ALONE):
        (folder / name).write_bytes(movie())
    (folder / REPORT).write_text(PAGE)


class FakeWorker:
    """Stands in for WorkerProcess, in this process. started: how many there have been."""

    started = 0

    def __init__(self, obeys: bool = True) -> None:
        type(self).started += 1
        self.obeys, self.closed = obeys, False
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._dead = False

    def loaded(self) -> Loaded:
        return LOADED

    def give(self, order: Order) -> None:
        match order.prompt:
            case "dies":
                self._dead = True
            case "refused":
                self._answers.put(refusal())
            case "waits":
                self._answers.put(RunProgress("motioncache", 3, 12))
            case _:
                write_results(order.folder)
                self._answers.put(DONE)

    def answer(self, seconds: float | None) -> Answer | None:
        if self._dead:
            raise WorkerEnded(-9)
        try:
            return self._answers.get(timeout=0.02)
        except queue.Empty:
            return None

    def stop(self) -> None:
        if self.obeys:
            self._answers.put(RunStopped())

    def finish(self) -> None:
        """Lets an order that waits be done."""
        self._answers.put(DONE)

    def close(self) -> None:
        self.closed = True


def work(given: Given, server: Connection, stop: Event) -> None:
    """What a real process does, without a model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if given.model == "none":
        server.send(refusal())
        return
    server.send(LOADED)
    while True:
        try:
            order: Order = server.recv()
        except EOFError:
            return
        if order.prompt == "dies":
            sys.exit(3)
        if order.prompt == "waits":
            server.send(RunProgress("motioncache", 3, 12))
            stop.wait()
            server.send(RunStopped())
        else:
            server.send(DONE)
